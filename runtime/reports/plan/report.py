"""A plan: every part at keep 1.0 and keep k, against a device's memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from divprune.runtime.directory.keep import describe_keep, kept_count
from divprune.runtime.memory import format_bytes
from divprune.runtime.reports.plan.estimate import Estimate
from divprune.runtime.reports.plan.fit import (
    Change,
    cheapest_fit,
    estimate,
    spare_bytes,
    swap_to_build,
)
from divprune.runtime.reports.plan.gain import Gain, predict_gain
from divprune.runtime.reports.plan.weights import table_bytes

if TYPE_CHECKING:
    from divprune.configs.device import Device
    from divprune.runtime.families.dimensions import ModelDimensions
    from divprune.runtime.reports.plan.settings import PlanSettings

__all__ = ["MemoryPlan", "make_memory_plan", "render_plan", "to_dict"]

_MIB = 1 << 20
_ROWS = (
    ("vision weights", "vision_weights"),
    ("language model weights", "llm_weights"),
    ("embedding table ({table} on disk)", "embedding_table"),
    ("KV cache, filled", "kv_cache"),
    ("vision activations", "activations"),
    ("prefill scratch", "prefill_scratch"),
    ("process and libraries", "process"),
)


@dataclass(frozen=True)
class MemoryPlan:
    """The memory a model needs at keep 1.0 and at keep k, for one device or without one.

    Attributes:
        model: Its shape.
        settings: How it is exported and run.
        device: Where; None for nowhere in particular.
        baseline: With the largest picture at keep 1.0.
        pruned: With the largest picture at keep k.
        typical: At keep 1.0 and k with a picture of 640 x 480 pixels, where that is smaller than
            the largest; None otherwise.
        change: What makes keep k fit where it does not, and its engines build without swap; None
            where nothing needs to change or nothing helps.
        change_with_swap: What makes keep k run, at the price of swap while engines are built;
            None where it runs already, where nothing helps, and where it is ``change``.
    """

    model: ModelDimensions
    settings: PlanSettings
    device: Device | None
    baseline: Estimate
    pruned: Estimate
    typical: tuple[Estimate, Estimate] | None
    change: Change | None
    change_with_swap: Change | None

    @property
    def fits(self) -> bool | None:
        """Whether keep k runs on the device and is built there; None without one."""
        return None if self.device is None else _fits(self.pruned, self.device)


def make_memory_plan(
    model: ModelDimensions, settings: PlanSettings, device: Device | None
) -> MemoryPlan:
    """Predict both fractions, and look for what makes keep k fit where it does not.

    Raises:
        OptionError: for settings that the model cannot have.
        CheckpointError: where a quantisation does not fit its weights.
    """
    pruned = estimate(model, settings)
    baseline = estimate(model, replace(settings, keep=1.0))
    change = with_swap = None
    if device is not None and not _fits(pruned, device):
        change = cheapest_fit(model, settings, device)
        if spare_bytes(pruned, device) < 0:
            with_swap = cheapest_fit(model, settings, device, swap=True)
        if with_swap is not None and not swap_to_build(with_swap.estimate, device):
            with_swap = None  # it is the other one
    typical = None
    if model.typical().num_image_tokens < model.num_image_tokens:
        of_typical = (estimate(model.typical(), s) for s in (replace(settings, keep=1.0), settings))
        typical = next(of_typical), next(of_typical)
    return MemoryPlan(model, settings, device, baseline, pruned, typical, change, with_swap)


def to_dict(plan: MemoryPlan) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    model, settings, device = plan.model, plan.settings, plan.device
    return {
        "model": model.name,
        "settings": asdict(settings),
        "device": None if device is None else asdict(device),
        "available_bytes": None if device is None else device.available_bytes,
        "keeps": [
            _keep_dict(model, device, keep, needs)
            for keep, needs in ((1.0, plan.baseline), (settings.keep, plan.pruned))
        ],
        "typical_keeps": None
        if plan.typical is None
        else [
            _keep_dict(model.typical(), device, keep, needs)
            for keep, needs in zip((1.0, settings.keep), plan.typical, strict=True)
        ],
        "gains": [{**asdict(gain), "ceiling": round(gain.ceiling, 3)} for _, gain in _gains(plan)],
        "fits": plan.fits,
        "change": _change_dict(plan.change, device),
        "change_with_swap": _change_dict(plan.change_with_swap, device),
    }


def render_plan(plan: MemoryPlan) -> str:
    """The plan as a terminal shows it."""
    settings, model = plan.settings, plan.model
    quant = settings.quant or (model.packed and f"{model.packed} (the checkpoint's)")
    precision = f"language model {quant or settings.dtype}"
    if settings.prefill_quant:
        precision += f", prefill {settings.prefill_quant}"
    precision += f", vision tower {settings.vision_quant or settings.dtype}"
    lines = [
        f"{model.name} on {plan.device.title if plan.device else 'no device in particular'}",
        f"target {settings.target}: {precision}, {settings.max_seq_len} positions",
        f"residency {settings.residency}",
        *_pictures(plan),
        "",
        *_table(plan),
        "",
        *_verdict(plan),
    ]
    return "\n".join(lines)


def _gains(plan: MemoryPlan) -> list[tuple[str, Gain]]:
    """For the largest picture and for a typical one, each with the words that say so."""
    model, keep = plan.model, plan.settings.keep
    gain = predict_gain(model, keep)
    if model.typical_image_tokens is None:
        return [("", gain)]
    crops = f" ({model.crops} crops)" if model.crops > 1 else ""
    largest = f", of the largest picture{' or video' * model.bounds_videos}"
    if plan.typical is None:
        return [(f"{largest}, such as 640 x 480{crops}", gain)]
    small = model.typical()
    of_small = f" ({small.crops} crops)" if small.crops > 1 else ""
    return [
        (f"{largest}{crops}", gain),
        (f", of a picture of 640 x 480{of_small}", predict_gain(small, keep)),
    ]


def _pictures(plan: MemoryPlan) -> list[str]:
    """What is kept of each picture, and what that can buy."""
    keep, lines = plan.settings.keep, []
    for which, gain in _gains(plan):
        tokens = gain.num_image_tokens
        lines += [
            f"keep {keep:g}: {describe_keep(kept_count(keep, tokens), tokens)}{which}",
            f"  {gain}",
        ]
    return lines


def _table(plan: MemoryPlan) -> list[str]:
    columns = (("keep 1.0", plan.baseline), (f"keep {plan.settings.keep:g}", plan.pruned))
    rows = [("MiB", *(title for title, _ in columns))]
    table = format_bytes(table_bytes(plan.model, plan.settings))
    for label, field in _ROWS:
        rows.append(
            (label.format(table=table), *(_mib(getattr(needs, field)) for _, needs in columns))
        )
    rows += _differences(plan, [needs for _, needs in columns])
    rows.append(("peak while running", *(_mib(_peak(n, plan.device)) for _, n in columns)))
    # TensorRT sets aside what the largest one takes.
    if plan.typical is not None and plan.settings.on_onnxruntime:
        peaks = (_mib(_peak(needs, plan.device)) for needs in plan.typical)
        rows.append(("  with a picture of 640 x 480", *peaks))
    if plan.pruned.build_peak is not None:
        rows.append(("peak while building", *(_mib(n.build_peak or 0) for _, n in columns)))
    if plan.device is not None:
        available = _mib(plan.device.available_bytes)
        rows.append(("the device has left", available, available))
    width = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{width}}  {row[1]:>10}  {row[2]:>10}" for row in rows]


def _differences(plan: MemoryPlan, columns: list[Estimate]) -> list[tuple[str, ...]]:
    """What lies between the parts above and the peak below, so that the rows add up."""
    parts = [sum(getattr(needs, field) for _, field in _ROWS) for needs in columns]
    elsewhere = [0 for _ in columns]
    if plan.device is not None and not plan.device.shared:
        elsewhere = [needs.host_peak if needs.device_peak else 0 for needs in columns]
    rest = [
        _peak(needs, plan.device) - part + other
        for needs, part, other in zip(columns, parts, elsewhere, strict=True)
    ]
    rows = (
        ("of it in the host's own memory", [-count for count in elsewhere]),
        ("of it not held at once", [min(0, count) for count in rest]),
        ("copies while loading", [max(0, count) for count in rest]),
    )
    return [(label, *map(_mib, counts)) for label, counts in rows if any(counts)]


def _verdict(plan: MemoryPlan) -> list[str]:
    device, settings = plan.device, plan.settings
    if device is None:
        return ["--board says whether it fits (divprune-plan --help lists the known ones)"]
    spare, swap = spare_bytes(plan.pruned, device), swap_to_build(plan.pruned, device)
    if spare >= 0:
        verb = "runs" if swap else "fits"
        lines = [f"{verb} at keep {settings.keep:g}, {format_bytes(spare)} to spare"]
        if (lacking := -spare_bytes(plan.baseline, device)) > 0:
            lines.append(
                f"keep 1.0 does not: {format_bytes(lacking)} too much (export with --no-baseline)"
            )
        if swap:
            lines.append(f"building the engines there needs {format_bytes(swap)} of swap")
    else:
        lines = [f"does not fit: {format_bytes(-spare)} too much"]
    lines += _advice(plan, device) if swap or spare < 0 else []
    if device.bandwidth_gb_s is not None:
        lines.append(_decode_bound(plan, device.bandwidth_gb_s))
    return lines


def _advice(plan: MemoryPlan, device: Device) -> list[str]:
    lines = []
    if (change := plan.change_with_swap) is not None:
        swap = format_bytes(swap_to_build(change.estimate, device))
        lines.append(
            f"cheapest change that runs: {_described(change, device)}; "
            f"building its engines there needs {swap} of swap"
        )
    if plan.change is not None:
        lines.append(f"cheapest change that fits: {_described(plan.change, device)}")
    elif lines or spare_bytes(plan.pruned, device) >= 0:
        lines.append("no change builds there without swap")
    else:
        lines.append("no shorter cache, quantisation, residency or smaller keep makes it fit")
    return lines


def _described(change: Change, device: Device) -> str:
    spare = spare_bytes(change.estimate, device)
    return f"{' '.join(change.flags)} ({format_bytes(spare)} to spare)"


def _fits(needs: Estimate, device: Device) -> bool:
    return spare_bytes(needs, device) >= 0 and not swap_to_build(needs, device)


def _change_dict(change: Change | None, device: Device | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "flags": list(change.flags),
        "peak_bytes": _peak(change.estimate, device),
        "swap_to_build_bytes": None if device is None else swap_to_build(change.estimate, device),
    }


def _decode_bound(plan: MemoryPlan, bandwidth: float) -> str:
    """Every token reads all of the language model's weights."""
    rate = bandwidth * 1e9 / plan.pruned.llm_weights
    return f"decode: at most {rate:.1f} tokens/s, which is {bandwidth:g} GB/s over those weights"


def _keep_dict(
    model: ModelDimensions, device: Device | None, keep: float, needs: Estimate
) -> dict[str, Any]:
    tokens = model.num_image_tokens
    return {
        "keep": keep,
        "num_kept": kept_count(keep, tokens),
        "num_image_tokens": tokens,
        **{f"{name}_bytes": value for name, value in needs.to_dict().items()},
        "peak_bytes": _peak(needs, device),
        "spare_bytes": None if device is None else spare_bytes(needs, device),
        "swap_to_build_bytes": None if device is None else swap_to_build(needs, device),
    }


def _peak(needs: Estimate, device: Device | None) -> int:
    return needs.run_peak(shared=device is None or device.shared)


def _mib(count: int) -> str:
    return f"{count / _MIB:,.0f}"
