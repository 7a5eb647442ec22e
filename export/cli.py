"""``divprune-export``: the command line of the exporter."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.cli.main_guard import (
    ToolParser,
    add_common_options,
    configure_logging,
    fraction,
    run_guarded,
    run_tool,
)
from divprune.runtime.memory import free_blocks_at_once

if TYPE_CHECKING:
    from divprune.export.planning.options import ExportOptions

__all__ = ["add_arguments", "main", "read_options", "run"]


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``divprune-export``."""
    parser = ToolParser(
        prog="divprune-export",
        description="Export a LLaVA-type model to an engine directory with DivPrune inside.",
    )
    add_arguments(parser)
    free_blocks_at_once()
    return run_tool(parser, _export, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the exporter's options; ``optimum-cli export divprune`` has the same."""
    from divprune.export.selection import selector_names

    add = parser.add_argument
    add("--model", required=True, help="preset (llava-1.5-7b), hub id (org/name) or directory")
    add(
        "--keep",
        type=fraction,
        help="required: fraction of visual tokens KEPT, e.g. 0.1 (vtw takes none)",
    )
    add("--output", type=Path, help="engine directory to write (default ./<model>-keep<keep>)")
    add(
        "--target",
        default="onnxruntime",
        help="onnxruntime (default), tensorrt (10.15 or later), tensorrt-rtx, jetpack6"
        " (TensorRT 10.3 to 10.14)",
    )
    add("--dtype", default="fp16", help="fp16 (default) or fp32")
    add(
        "--quant",
        help="weights of the language model: int4 (groups of 32, one zero point), int4-g128, "
        "int4-g64-asym and so on, or int8",
    )
    add(
        "--quant-method",
        help="of int4: rtn (default: round to nearest) or mse (smallest squared error; slower)",
    )
    add("--vision-quant", help="int8: weights and activations of the vision tower")
    add(
        "--prefill-quant",
        help="int8: a second copy of the language model for the prompt alone, beside --quant int4; "
        "a faster prefill for one byte more a weight",
    )
    add(
        "--selector",
        default="divprune",
        help="how tokens are chosen: " + ", ".join(selector_names()) + " (default divprune)",
    )
    add("--seed", type=int, help="of --selector random (default 0)")
    add("--layer", type=int, help="layers in front of a selection inside the LLM (default 2, of"
        " vtw 15)")  # fmt: skip
    add("--tau", type=float, help="largest cosine of two tokens that greedyprune keeps (0.9)")
    add(
        "--positions",
        help="contiguous (default: kept tokens are numbered anew) or original (for grounding;"
        " default inside the LLM)",
    )
    add(
        "--max-seq-len",
        type=int,
        help="longest prompt and answer together (default 2048, or what the largest picture needs)",
    )
    add(
        "--max-image-tokens",
        type=int,
        help="most visual tokens of a picture, where they depend on its size: a larger one is "
        "scaled down (default: the model's own limit)",
    )
    add(
        "--max-weight-mib",
        type=int,
        help="split weights larger than this (default: 256 for jetpack6, else no limit)",
    )
    add("--revision", help="branch, tag or commit of a hub model")
    add("--no-baseline", action="store_true", help="refuse --keep 1.0 at run time")
    add("--no-verify", action="store_true", help="skip the check against transformers")
    add("--force", action="store_true", help="replace an existing engine directory")
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Export as ``args`` say, which another tool has parsed; returns the exit code."""
    configure_logging(verbose=args.verbose, quiet=args.quiet)
    return run_guarded(lambda: _export(args))


def read_options(args: argparse.Namespace) -> ExportOptions:
    """What ``add_arguments`` has parsed.

    Raises:
        OptionError: for values that do not fit.
    """
    from divprune.export.planning.options import ExportOptions

    return ExportOptions(
        model=args.model,
        keep=args.keep,
        output=args.output,
        target=args.target,
        dtype=args.dtype,
        quant=args.quant,
        quant_method=args.quant_method,
        vision_quant=args.vision_quant,
        prefill_quant=args.prefill_quant,
        selector=args.selector,
        positions=args.positions,
        layer=args.layer,
        tau=args.tau,
        max_seq_len=args.max_seq_len,
        max_image_tokens=args.max_image_tokens,
        max_weight_mib=args.max_weight_mib,
        revision=args.revision,
        seed=args.seed,
        baseline=not args.no_baseline,
        verify=not args.no_verify,
        force=args.force,
    )


def _export(args: argparse.Namespace) -> int:
    options = read_options(args)
    _require_export_packages()
    from divprune.export.graphs.progress import Progress

    progress = Progress(bars=False if args.quiet else None)
    with progress.step("loading torch and transformers"), _collector_at_rest():
        importlib.import_module("transformers")  # sets the level of its log, set again below
        from divprune.export.export_model import export_model
    if not args.verbose:  # its remarks on a configuration would stand before our refusal of it
        logging.getLogger("transformers").setLevel(logging.ERROR)
    summary = export_model(options, progress)
    if not args.quiet:
        print(summary)
    return 0


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Import without Python's garbage collector, which then never looks at what was imported.

    Modules are no garbage: looking through them, again and again while they are many and new, is a
    good part of what the export of a small model takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _require_export_packages() -> None:
    """Say which command installs what is missing, instead of an ImportError halfway."""
    import importlib.util

    from divprune.runtime.errors import UnsupportedError

    needed = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "rich")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            "the packages that an export needs are not installed",
            expected=", ".join(needed),
            found="no " + ", ".join(missing),
            fix='pip install "divprune-edge[export]"',
        )
