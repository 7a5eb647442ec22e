"""Predict a model's memory, compare it with a device's, and find the cheapest change that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import DivPruneError
from divprune.runtime.reports.plan.estimate import Estimate
from divprune.runtime.reports.plan.onnxruntime_cpu import estimate_onnxruntime
from divprune.runtime.reports.plan.tensorrt import estimate_tensorrt

if TYPE_CHECKING:
    from divprune.configs.device import Device
    from divprune.runtime.families.dimensions import ModelDimensions
    from divprune.runtime.reports.plan.settings import PlanSettings

__all__ = ["Change", "cheapest_fit", "estimate", "spare_bytes", "swap_to_build"]

_ANSWER = 128  # tokens that the smallest cache has room for, beside the baseline's prompt
_STEP = 128
_LEAST_KEEP = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """Options that make a plan fit, and what it needs then."""

    flags: tuple[str, ...]
    settings: PlanSettings
    estimate: Estimate


def estimate(model: ModelDimensions, settings: PlanSettings) -> Estimate:
    """Predict the memory that a model needs.

    Raises:
        OptionError: for settings that the model cannot have.
        CheckpointError: where a quantisation does not fit its weights.
    """
    settings.check(model)
    predict = estimate_onnxruntime if settings.on_onnxruntime else estimate_tensorrt
    return predict(model, settings)


def spare_bytes(needs: Estimate, device: Device) -> int:
    """Bytes of the device's memory that a running model leaves; negative if it does not fit."""
    return device.available_bytes - needs.run_peak(shared=device.shared)


def swap_to_build(needs: Estimate, device: Device) -> int:
    """Bytes that building the engines needs beyond the memory; 0 where it fits.

    On a card the builder's copies lie in the host's memory, which the device says nothing of.
    """
    if needs.build_peak is None or not device.shared:
        return 0
    return max(0, needs.build_peak - device.available_bytes)


def cheapest_fit(
    model: ModelDimensions, settings: PlanSettings, device: Device, *, swap: bool = False
) -> Change | None:
    """The cheapest change with which ``settings`` run and are built: as few options as possible.

    Among equally many, those that cost least: a shorter cache costs nothing until it is full,
    int4 (or its larger groups) and int8 in the tower a little accuracy, sequential residency the
    time to load again with every picture, a smaller keep what the tokens were kept for. Where
    engines are too large to be built on the board, ONNX Runtime on its CPU has none to build.

    Args:
        model: Its shape.
        settings: What does not fit.
        device: Where it is to run.
        swap: Whether building may take swap.

    Returns:
        None where no combination fits.
    """
    options = _options(model, settings)
    if not swap and not settings.on_onnxruntime and device.shared:
        options.append(("--target onnxruntime", "target", "onnxruntime"))
    for count in range(1, len(options) + 1):
        for chosen in combinations(options, count):
            if len({field for _, field, _ in chosen}) < count:
                continue  # two values of one option
            changed = replace(settings, **{field: value for _, field, value in chosen})
            try:
                needs = estimate(model, changed)
            except DivPruneError:
                continue  # such as a group size that does not divide: not a change for this model
            if spare_bytes(needs, device) >= 0 and (swap or not swap_to_build(needs, device)):
                return Change(tuple(flag for flag, _, _ in chosen), changed, needs)
    return None


def _options(model: ModelDimensions, settings: PlanSettings) -> list[tuple[str, str, Any]]:
    """Changes to try, cheapest first, as (flag, field of the settings, value)."""
    options: list[tuple[str, str, Any]] = []
    slots = model.num_image_tokens + settings.text_tokens + _ANSWER
    slots = -(-slots // _STEP) * _STEP
    if slots < settings.max_seq_len:
        options.append((f"--max-seq-len {slots}", "max_seq_len", slots))
    scheme = settings.scheme()
    if model.packed is None and (scheme is None or scheme.bits > 4):
        options.append(("--quant int4", "quant", "int4"))
    if settings.on_onnxruntime and settings.vision_quant is None:
        options.append(("--vision-quant int8", "vision_quant", "int8"))
    if model.packed is None and (scheme is None or scheme.bits > 4 or scheme.block != 128):
        # Scales are a third of what int4 takes on a CPU in groups of 32.
        is_asymmetric = scheme is not None and scheme.bits == 4 and not scheme.symmetric
        kind = "-asym" if is_asymmetric else ""
        options.append((f"--quant int4-g128{kind}", "quant", f"int4-g128{kind}"))
    if settings.on_onnxruntime and settings.residency == "concurrent":
        options.append(("--residency sequential", "residency", "sequential"))
    keep = max(_LEAST_KEEP, settings.keep / 2)
    if keep < settings.keep:
        options.append((f"--keep {keep:g}", "keep", keep))
    return options
