"""The export checks itself: what was written, run by ONNX Runtime, against transformers.

Part by part and streaming, so that the check needs no more memory than the export: the vision
graph, each decoder block as a graph of its own, and the output layer.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from packaging.version import Version

from divprune.export.decoder.dialects import Dialect
from divprune.export.decoder.graph import DecoderPart
from divprune.export.graphs.files import DECODER_FILES
from divprune.export.graphs.progress import Progress
from divprune.export.planning.plan import ExportPlan
from divprune.export.verify.comparison import Tolerance
from divprune.export.verify.decoder import check_block, check_head, check_last_query
from divprune.export.verify.in_llm import check_in_llm_selection
from divprune.export.verify.subgraph import GraphCutter
from divprune.export.verify.vision import check_vision
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.memory import release_freed_memory

__all__ = ["Tolerance", "check_onnxruntime", "verify_export"]


def check_onnxruntime(dialect: Dialect) -> None:
    """Check, before anything is written, that this ONNX Runtime can run what will be.

    Raises:
        UnsupportedError: if it is too old for the dialect.
    """
    installed = importlib.metadata.version("onnxruntime")
    if Version(installed) < Version(dialect.min_onnxruntime):
        raise UnsupportedError(
            "this ONNX Runtime is too old to check the export for that target",
            expected=f"onnxruntime {dialect.min_onnxruntime} or newer",
            found=installed,
            fix=f'pip install --upgrade "onnxruntime>={dialect.min_onnxruntime}", or skip the '
            "check with --no-verify",
        )


def verify_export(plan: ExportPlan, directory: Path, progress: Progress) -> dict[str, float]:
    """Check vision graph, selection, decoder blocks and output layer.

    Returns:
        The worst relative error of each: ``vision``, ``blocks``, ``head``, ``query`` where a
        graph gives one to a selection, and ``prefill`` where there is a graph for it.

    Raises:
        NumericalError: naming the part that differs, with tolerance and error.
    """
    layers = plan.spec.num_layers
    parts = layers + 2 if plan.prefill_part is None else 2 * layers + 2
    with progress.step("checking against transformers", parts, unit="parts") as done:
        vision = check_vision(plan, directory)
        release_freed_memory()
        done(1)
        errors = {"vision": vision, "blocks": 0.0}
        decoder = plan.decoder_parts()
        for part in decoder:
            cutter = GraphCutter(directory / DECODER_FILES[part.name])
            errors["blocks"] = max(errors["blocks"], _check_blocks(plan, part, cutter, done))
            if part.last_query:
                errors["query"] = check_last_query(plan, part, cutter)
            if part is decoder[-1]:
                errors["head"] = check_head(plan, part, cutter)
        if (prefill := plan.prefill_part) is not None:
            cutter = GraphCutter(directory / DECODER_FILES[prefill.name])
            blocks = _check_blocks(plan, prefill, cutter, done)
            errors["prefill"] = max(blocks, check_head(plan, prefill, cutter))
        if plan.in_llm is not None and plan.in_llm.inputs:
            check_in_llm_selection(plan, plan.in_llm, directory)
        done(1)
    return errors


def _check_blocks(
    plan: ExportPlan, part: DecoderPart, cutter: GraphCutter, done: Callable[[int], None]
) -> float:
    """Check every block of a graph; returns the worst relative error."""
    error = 0.0
    for layer in part.layers:
        error = max(error, check_block(plan, part, cutter, layer))
        release_freed_memory()
        done(1)
    return error
