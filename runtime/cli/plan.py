"""``divprune-plan``: whether a model will fit, before it is exported or built."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from divprune.runtime.cli.main_guard import (
    ToolParser,
    add_common_options,
    fraction,
    run_tool,
)

if TYPE_CHECKING:
    from divprune.configs.device import Device
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.reports.plan.settings import PlanSettings
    from divprune.runtime.reports.plan.source import PlannedModel

__all__ = ["main"]

_DESCRIPTION = """\
Predict the memory that a model needs, part by part, at keep 1.0 and at --keep, and say whether it
fits a device and what would make it fit. From its config alone: no weights, no network. For an
engine directory the options say what another export of the same model would need."""
_DEFAULT_KEEP = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-plan", description=_DESCRIPTION)
    add = parser.add_argument
    add("model", metavar="MODEL|ENGINE_DIR", help="preset, hub id in the local cache, checkpoint"
        " directory, or engine directory")  # fmt: skip
    add("--board", help="device to fit, such as orin-nano-8gb; an unknown name lists all"
        " (default: this machine)")  # fmt: skip
    add("--keep", type=fraction, help="fraction of visual tokens kept (default: the export's, the"
        f" preset's, or {_DEFAULT_KEEP:g})")  # fmt: skip
    add("--target", help="what it is exported for (default: what suits the board)")
    add("--dtype", help="fp16 (default) or fp32")
    add("--quant", help="weights of the language model: int4, int4-g128, int8, ...")
    add("--vision-quant", help="weights of the vision tower: int8")
    add("--prefill-quant", help="a second LLM graph for the prompt: int8")
    add("--max-seq-len", type=int, metavar="N", help="cache slots (default: those of the export)")
    add("--residency", default="concurrent", help="concurrent (default), or sequential: the"
        " vision tower leaves before the language model comes")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from divprune.configs.device import load_device
    from divprune.runtime.reports.plan.here import this_machine
    from divprune.runtime.reports.plan.report import make_memory_plan, render_plan, to_dict
    from divprune.runtime.reports.plan.source import find_model

    board = None if arguments.board is None else load_device(arguments.board)
    model = find_model(arguments.model)
    settings = _settings(arguments, model, board)
    device = board or this_machine(settings.target)
    plan = make_memory_plan(model.dimensions, settings, device)
    print(json.dumps(to_dict(plan)) if arguments.json else render_plan(plan))
    return 0


def _settings(
    arguments: argparse.Namespace, model: PlannedModel, board: Device | None
) -> PlanSettings:
    """What was asked for, then what the engine directory has, then what export would do."""
    from divprune.runtime.directory.limits import default_max_seq_len
    from divprune.runtime.reports.plan.settings import PlanSettings

    known = _exported(model.manifest)
    suits = "onnxruntime" if board is None else board.target

    shape = model.dimensions
    longest = default_max_seq_len(shape.num_image_tokens, shape.text.max_position_embeddings)

    def choose(field: str, default: Any) -> Any:
        asked = getattr(arguments, field)
        return known.get(field, default) if asked is None else asked

    return PlanSettings(
        target=choose("target", suits),
        keep=_DEFAULT_KEEP if (keep := choose("keep", model.keep)) is None else keep,
        max_seq_len=choose("max_seq_len", longest),
        dtype=choose("dtype", "fp16"),
        quant=choose("quant", None),
        vision_quant=choose("vision_quant", None),
        prefill_quant=choose("prefill_quant", None),
        residency=arguments.residency,
        inside_llm=known.get("inside_llm", False),
    )


def _exported(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    return {
        "target": manifest.target,
        "max_seq_len": manifest.max_seq_len,
        "dtype": manifest.dtype,
        "quant": None if manifest.quant is None else manifest.quant.scheme,
        "vision_quant": manifest.vision_quant,
        "prefill_quant": manifest.prefill_quant,
        "inside_llm": manifest.selector.inside_llm,
    }


if __name__ == "__main__":
    raise SystemExit(main())
