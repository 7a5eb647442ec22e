"""The vision graph and its selection against transformers and the selector's reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from divprune.export.planning.plan import ExportPlan
from divprune.export.selection import Selector
from divprune.export.selection.downsample import resize
from divprune.export.selection.selection_graph import KEPT_SLOTS
from divprune.export.verify.activations import check_half, watch_activations
from divprune.export.verify.comparison import (
    Tolerance,
    check_cover,
    check_distinct,
    check_regret,
    compare,
)
from divprune.export.verify.reference import lend_weights, load_weights
from divprune.export.verify.subgraph import make_session, more_outputs, run_session
from divprune.runtime.errors import NumericalError
from divprune.runtime.memory import release_freed_memory

__all__ = ["check_vision"]


def check_vision(plan: ExportPlan, directory: Path) -> float:
    """Compare what a random picture becomes; returns the worst relative error.

    Raises:
        NumericalError: if features, signals of the tower, or the selection differ.
    """
    inputs = plan.example_inputs()
    if plan.pre_llm is not None and plan.pre_llm.pass_size(plan.num_kept) is not None:
        return _check_small_picture(plan, plan.pre_llm, directory, inputs["pixel_values"])
    names = [signal.name for signal in plan.signals.values()]
    reference = _reference_outputs(plan, inputs, names)
    feeds = dict(inputs)
    if plan.varies and plan.pre_llm is not None:
        feeds[KEPT_SLOTS] = np.zeros(plan.count_kept(len(reference[0])), np.int32)
    release_freed_memory()
    with more_outputs(directory / "vision" / "model.onnx", names) as path:
        outputs = run_session(make_session(path), feeds)
    tolerance = Tolerance.of(plan.options).vision
    compared = ["image_features", *plan.family.vision_outputs(), *names]
    errors = [
        compare(
            "vision graph" if name == "image_features" else name,
            _rows(outputs[name]),
            _rows(expected),
            tolerance,
        )
        for name, expected in zip(compared, reference, strict=True)
    ]
    if plan.pre_llm is not None:
        _check_selection(plan, plan.pre_llm, outputs)
    return max(errors)


def _rows(array: np.ndarray) -> np.ndarray:
    """As float32 rows; numbers per token, such as attention, are one row together."""
    return np.atleast_2d(array.astype(np.float32))


def _reference_outputs(
    plan: ExportPlan, inputs: Mapping[str, np.ndarray], signals: list[str]
) -> list[np.ndarray]:
    """Features, planes, then signals, as transformers' modules give them in float32.

    Raises:
        NumericalError: if the export is in fp16 and an activation is beyond it.
    """
    import torch

    module = plan.family.vision_module(signals)
    arguments = [torch.from_numpy(inputs[each.name]) for each in plan.family.vision_inputs()]
    lent, watched = lend_weights(module, plan.weights), watch_activations(module)
    with torch.no_grad(), lent, watched as largest:
        outputs = module(*arguments)
    if plan.options.dtype == "fp16":
        check_half(largest)
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs])]


def _check_selection(plan: ExportPlan, selector: Selector, outputs: dict[str, np.ndarray]) -> None:
    """The kept rows are those of the order, and every choice in it was the best one."""
    order, features = outputs["selection_order"], outputs["image_features"]
    check_distinct(order, len(features))
    signals = {needed: outputs[signal.name] for needed, signal in plan.signals.items()}
    if selector.merges:
        _check_mixture(plan, selector, order, signals, outputs["selected_features"])
    elif not np.array_equal(outputs["selected_features"], features[np.sort(order)]):
        raise NumericalError("the kept rows are not those of selection_order in raster order")
    regret = selector.regret(features.astype(np.float32), order, signals)
    tolerance = Tolerance.of(plan.options).selection
    check_regret(selector.name, regret, tolerance)
    if selector.covers:
        expected = selector.select_covered(features.astype(np.float32), len(order), signals)
        if np.array_equal(order, expected[0]):
            check_cover(selector.name, outputs["selection_cover"], expected[1], tolerance)


def _check_mixture(
    plan: ExportPlan,
    selector: Selector,
    order: np.ndarray,
    signals: dict[str, np.ndarray],
    found: np.ndarray,
) -> None:
    """The merged rows are the projector's answer to the reference's mixtures."""
    import torch

    projector = plan.family.projector_module()
    load_weights(projector, plan.weights)
    mixed = selector.mix(order, signals)
    with torch.no_grad():
        expected = projector(torch.from_numpy(mixed)).numpy()
    tolerance = Tolerance.of(plan.options).vision
    compare(f"mixtures of {selector.name}", found.astype(np.float32), expected, tolerance)


def _check_small_picture(
    plan: ExportPlan, selector: Selector, directory: Path, pixels: np.ndarray
) -> float:
    """Compare the small picture's tokens, and the full picture's where they were written."""
    import torch

    module: Any = plan.family.vision_module()
    load_weights(module, plan.weights)
    size = selector.pass_size(plan.num_kept)
    assert size is not None
    with torch.no_grad():
        small = torch.from_numpy(resize(pixels, size))
        expected = module(small, interpolate_pos_encoding=True).numpy()[-plan.num_kept :]
        full = module(torch.from_numpy(pixels)).numpy()
    feeds = {"pixel_values": pixels}
    outputs = run_session(make_session(directory / "vision" / "model.onnx"), feeds)
    order = outputs["selection_order"]
    check_distinct(order, plan.num_image_tokens)
    if selector.regret(full, order) > 0:
        raise NumericalError(f"the order in the graph is not that of {selector.name}")
    tolerance = Tolerance.of(plan.options).vision
    selected = outputs["selected_features"].astype(np.float32)
    error = compare("small picture's vision graph", selected, expected, tolerance)
    if not plan.options.baseline:
        return error
    outputs = run_session(make_session(directory / "vision" / "full.onnx"), feeds)
    features = outputs["image_features"].astype(np.float32)
    return max(error, compare("full picture's vision graph", features, full, tolerance))
