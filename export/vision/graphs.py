"""Which vision graphs an engine directory gets, for each kind of selector.

| selector | vision/model.onnx | vision/selection.onnx | vision/full.onnx |
|---|---|---|---|
| keeps tokens | image_features, order, kept rows, cover | order, kept rows, cover | - |
| merges tokens | image_features, order, projected mixtures | order, mixtures | - |
| shows the tower a smaller picture | order, its tokens | order, the picture | image_features |
| works inside the LLM | image_features | - | - |
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from divprune.export.graphs.files import describe_graph, save_graph, share_data
from divprune.export.graphs.lanes import check_graph
from divprune.export.graphs.progress import Progress
from divprune.export.planning.plan import ExportPlan
from divprune.export.selection import Selector
from divprune.export.selection.selection_graph import write_selection
from divprune.export.vision.attention import fuse_attention
from divprune.export.vision.downsampled import small_size, trace_downsampled, write_resize_alone
from divprune.export.vision.fusions import fuse_norms, fuse_rotary
from divprune.export.vision.trace import TracedInput, trace_features, trace_vision
from divprune.runtime.directory.manifest import GraphSpec

__all__ = ["write_vision_graphs"]


def write_vision_graphs(
    plan: ExportPlan, directory: Path, progress: Progress
) -> dict[str, GraphSpec]:
    """Write tower, projector and selection, and the selection alone; the manifest's records."""
    selector = plan.pre_llm
    if selector is None:
        with progress.step("tracing the vision tower"):
            vision = _features(plan)
        step = "writing the vision graph"
        return {"vision": _save(plan, vision, directory, "model", step, progress)}
    own_pass = selector.pass_size(plan.num_kept) is not None
    with progress.step("tracing the vision tower"):
        vision = _small_vision(plan, selector) if own_pass else _vision(plan, selector)
    selection = _resize(plan, selector) if own_pass else _selection(plan, selector)
    graphs = {
        "vision": _save(plan, vision, directory, "model", "writing the vision graph", progress),
        "selection": _save(
            plan, selection, directory, "selection", "writing the selection", progress
        ),
    }
    if own_pass and plan.options.baseline:
        module = plan.family.vision_module()
        full = trace_features(module, _inputs(plan), plan.weights, plan.lane.vision_opset)
        share_data(full, directory / "vision" / "model.onnx")
        graphs["full"] = _save(
            plan, full, directory, "full", "writing the full vision graph", progress
        )
    return graphs


def _inputs(plan: ExportPlan) -> list[TracedInput]:
    """The vision module's inputs, with the sizes that they have for a made-up picture."""
    example = plan.example_inputs()
    return [
        TracedInput(each.name, each.shape, each.dtype, example[each.name].shape)
        for each in plan.family.vision_inputs()
    ]


def _int8_prefix(plan: ExportPlan) -> str | None:
    return plan.family.tower_prefix if plan.options.vision_quant == "int8" else None


def _features(plan: ExportPlan) -> ir.Model:
    return trace_features(
        plan.family.vision_module(),
        _inputs(plan),
        plan.weights,
        plan.lane.vision_opset,
        planes=plan.family.vision_outputs(),
        varies=plan.varies,
        int8_prefix=_int8_prefix(plan),
    )


def _vision(plan: ExportPlan, selector: Selector) -> ir.Model:
    names = {needed: signal.name for needed, signal in plan.signals.items()}
    return trace_vision(
        plan.family.vision_module(tuple(names.values())),
        _inputs(plan),
        plan.weights,
        selector,
        None if plan.varies else plan.num_kept,
        plan.lane.vision_opset,
        planes=plan.family.vision_outputs(),
        signals=names,
        projector=plan.family.projector_module() if selector.merges else None,
        int8_prefix=_int8_prefix(plan),
    )


def _selection(plan: ExportPlan, selector: Selector) -> ir.Model:
    return write_selection(
        selector,
        None if plan.varies else plan.num_image_tokens,
        None if plan.varies else plan.num_kept,
        plan.spec.hidden_size,
        plan.weights.dtype,
        plan.lane.vision_opset,
        {needed: (signal.name, signal.shape) for needed, signal in plan.signals.items()},
    )


def _small_vision(plan: ExportPlan, selector: Selector) -> ir.Model:
    size = small_size(selector, plan.num_kept)
    return trace_downsampled(
        plan.family.resized_vision_module(size),
        plan.image_size,
        plan.weights,
        selector,
        plan.num_image_tokens,
        plan.num_kept,
        plan.lane.vision_opset,
        int8_prefix=_int8_prefix(plan),
    )


def _resize(plan: ExportPlan, selector: Selector) -> ir.Model:
    return write_resize_alone(
        selector,
        plan.image_size,
        plan.num_image_tokens,
        plan.num_kept,
        plan.lane.vision_opset,
    )


def _save(
    plan: ExportPlan,
    model: ir.Model,
    directory: Path,
    stem: str,
    description: str,
    progress: Progress,
) -> GraphSpec:
    path = f"vision/{stem}.onnx"
    if plan.lane.limits is not None:
        check_graph(model, plan.lane.limits)
    if plan.lane.dialect == "ort":
        fuse_attention(model.graph)
        fuse_rotary(model)
        fuse_norms(model)
    save_graph(model, directory / path, description, progress)
    return describe_graph(model, path)
