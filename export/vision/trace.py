"""The vision graph: tower and projector as torch traces them, the selection written behind.

| | name | dtype, shape | meaning |
|---|---|---|---|
| in | pixel_values | float32 [crops, 3, H, W] | as the model's own image processor makes them |
| in | others | int64 or float32 | what the family's runtime module makes beside the pixels |
| out | image_features | float [N, hidden] | all projected tokens, raster order |
| out | deepstack_i | float [N, hidden] | what later decoder layers add, if the family has such |
| out | selection_order | int64 [K] | kept indices in the order they were chosen |
| out | selected_features | float [K, hidden] | the kept rows, indices ascending |
| out | selection_cover | float32 [K] | how well each first k of them cover the rest, if known |

A selector inside the LLM leaves ``image_features`` and ``deepstack_i`` as the only outputs.

The module is traced on the meta device: weights are read when the model is saved.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.quantization.vision_int8 import quantize_tower
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.graphs.files import ir_version
from divprune.export.selection.selection_graph import OPSET, append_mixture, append_selection
from divprune.export.selection.sizes import KEPT, TOKENS
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

    from divprune.export.selection import Selector

__all__ = [
    "OPSET",
    "TracedInput",
    "attach_weights",
    "buffer_values",
    "trace_features",
    "trace_module",
    "trace_vision",
]

NO_SIGNALS: Mapping[str, str] = MappingProxyType({})
NO_TENSORS: Mapping[str, ir.LazyTensor] = MappingProxyType({})


@dataclass(frozen=True)
class TracedInput:
    """An input of a module to trace.

    Attributes:
        name: In the graph.
        shape: Sizes, or the names of dimensions that vary.
        dtype: As NumPy spells it; None is the export's own.
        example: Sizes of an example, one for each dimension.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str | None
    example: tuple[int, ...]


def trace_vision(
    module: torch.nn.Module,
    inputs: Sequence[TracedInput],
    weights: WeightSource,
    selector: Selector,
    num_kept: int | None,
    opset: int = OPSET,
    *,
    planes: Sequence[str] = (),
    signals: Mapping[str, str] = NO_SIGNALS,
    projector: torch.nn.Module | None = None,
    int8_prefix: str | None = None,
) -> ir.Model:
    """Trace ``module`` (on the meta device) and append the selection of ``num_kept`` tokens.

    Args:
        module: The family's ``vision_module``, with the signals that are asked for.
        inputs: Those of the module.
        weights: Where the parameters' values come from, when the model is saved.
        selector: What chooses.
        num_kept: K; None where N varies: then it is the length of the input ``kept_slots``.
        opset: Operator set of the graph.
        planes: The family's ``vision_outputs``, which come between the features and the signals.
        signals: For each signal the selector needs, the name of the one that it gets: they are
            values of the graph under these names, and no outputs.
        projector: The family's ``projector_module``, for a selector that merges before it.
        int8_prefix: Quantise the linear layers whose canonical names begin like this.
    """
    outputs = ("image_features", *planes, *signals.values())
    model = trace_module(module, inputs, outputs, weights, opset)
    graph = model.graph
    kept_outputs = 1 + len(planes)
    values = dict(zip(signals, graph.outputs[kept_outputs:], strict=True))
    del graph.outputs[kept_outputs:]
    features = graph.outputs[0]
    if num_kept is None:
        for value in (*graph.outputs, *values.values()):
            _name_rows(value)
    if projector is None:
        append_selection(graph, features, selector, num_kept, values)
    else:
        assert values["patch_features"].shape is not None
        width = int(values["patch_features"].shape[1])  # type: ignore[arg-type]
        example = (num_kept or 2, width)
        rows = TracedInput("rows", (KEPT if num_kept is None else num_kept, width), None, example)
        branch = trace_module(projector, [rows], ["features"], weights, opset)
        append_mixture(graph, features, selector, num_kept, values, branch.graph)
    attach_weights(graph, weights, int8_prefix=int8_prefix)
    return model


def _name_rows(value: ir.Value) -> None:
    """Call the number of rows what the manifest calls it: torch derives a name of its own."""
    assert value.shape is not None
    value.shape = ir.Shape([TOKENS, *list(value.shape)[1:]])


def trace_features(
    module: torch.nn.Module,
    inputs: Sequence[TracedInput],
    weights: WeightSource,
    opset: int = OPSET,
    *,
    planes: Sequence[str] = (),
    varies: bool = False,
    int8_prefix: str | None = None,
) -> ir.Model:
    """Trace ``module`` alone: its inputs to image_features and planes, nothing is selected.

    ``varies`` says that pictures have a varying number of visual tokens.
    """
    model = trace_module(module, inputs, ("image_features", *planes), weights, opset)
    if varies:
        for value in model.graph.outputs:
            _name_rows(value)
    attach_weights(model.graph, weights, int8_prefix=int8_prefix)
    return model


def trace_module(
    module: torch.nn.Module,
    inputs: Sequence[TracedInput],
    outputs: Sequence[str],
    weights: WeightSource,
    opset: int = OPSET,
) -> ir.Model:
    """Trace a module; its parameters have names and no values yet.

    Args:
        module: On the meta device.
        inputs: In the order in which the module takes them.
        outputs: Names of all outputs.
        weights: Says which dtype the export has.
        opset: Operator set of the graph.
    """
    import onnxscript.optimizer
    import torch

    half = torch.float16 if weights.dtype == ir.DataType.FLOAT16 else torch.float32
    module = module.to(half)
    examples = tuple(
        torch.zeros(
            *_example_shape(each),
            device="meta",
            dtype=half if each.dtype is None else getattr(torch, each.dtype),
        )
        for each in inputs
    )
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            optimize=False,
            opset_version=opset,
            input_names=[each.name for each in inputs],
            output_names=list(outputs),
            dynamic_shapes=_dynamic_shapes(inputs),
            verbose=False,
        )
    assert program is not None
    model = program.model
    _detach_parameters(model.graph, module)
    _spell_out_casts(model.graph, weights.dtype)
    onnxscript.optimizer.fold_constants(model)
    onnxscript.optimizer.remove_unused_nodes(model)
    _drop_traces(model.graph)
    model.ir_version = ir_version(opset)
    model.producer_name, model.producer_version = "divprune-edge", None
    return model


def _example_shape(given: TracedInput) -> list[int]:
    """At least 2 of what varies: torch takes a dimension of 1 for one that is always 1."""
    pairs = zip(given.shape, given.example, strict=True)
    return [max(2, size) if isinstance(dim, str) else size for dim, size in pairs]


def _dynamic_shapes(inputs: Sequence[TracedInput]) -> tuple[dict[int, Any], ...] | None:
    """Torch's spelling of the dimensions that have names; None where none has."""
    import torch

    names = {dim for each in inputs for dim in each.shape if isinstance(dim, str)}
    if not names:
        return None
    dims = {name: torch.export.Dim(name, min=1) for name in sorted(names)}
    return tuple(
        {axis: dims[dim] for axis, dim in enumerate(each.shape) if isinstance(dim, str)}
        for each in inputs
    )


def _spell_out_casts(graph: ir.Graph, dtype: ir.DataType) -> None:
    """Replace ``CastLike``, which old TensorRTs do not know: it gives constants the tower's dtype.

    The values that it looks at come without a type; a wrong guess would not even load.
    """
    for node in [node for node in graph if node.op_type == "CastLike"]:
        value, like = node.inputs
        assert like is not None
        cast = ir.node("Cast", [value], {"to": like.dtype or dtype}, name=node.name)
        cast.outputs[0].shape = node.outputs[0].shape
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [cast], node.outputs, cast.outputs
        )


def _detach_parameters(graph: ir.Graph, module: torch.nn.Module) -> None:
    """Leave the parameters, which have no values yet, out of what folding may look at."""
    names = {name for name, _ in module.named_parameters()}
    names |= {name for name, _ in module.named_buffers()}
    for name in names & set(graph.initializers):
        graph.initializers[name].const_value = None


def attach_weights(
    graph: ir.Graph,
    weights: WeightSource,
    derived: Mapping[str, ir.LazyTensor] = NO_TENSORS,
    *,
    int8_prefix: str | None = None,
) -> None:
    """Replace the traced module's empty parameters by tensors of the checkpoint.

    ``derived`` has those, by canonical name, that are made from the checkpoint's instead.
    ``int8_prefix`` quantises the linear layers whose canonical names begin like it.
    """
    for value in list(graph.initializers.values()):
        assert value.name is not None
        assert value.shape is not None
        if value.const_value is not None:
            continue
        name = weights.canonical_name(value.name)
        if name in derived:
            value.const_value = derived[name]
        elif name in weights:
            _attach_weight(graph, value, weights, name)
        else:
            numbers = buffer_values(name, int(value.shape.numpy()[-1]))
            value.const_value = ir.tensor(numbers, name=value.name)
    if int8_prefix is not None:
        quantize_tower(graph, weights, int8_prefix)


def buffer_values(name: str, length: int) -> np.ndarray:
    """Values [1, length] of a buffer that a tower has and no checkpoint stores.

    Raises:
        UnsupportedError: for any but ``position_ids``, which count from 0.
    """
    if not name.endswith("embeddings.position_ids"):
        raise UnsupportedError(
            f"the vision tower has a buffer that no checkpoint stores: {name}",
            expected="position_ids only",
        )
    return np.arange(length)[None]


def _attach_weight(graph: ir.Graph, value: ir.Value, weights: WeightSource, name: str) -> None:
    uses = list(value.uses())
    transposes = [use.node for use in uses if _is_matrix_transpose(use.node)]
    if not transposes or len(transposes) != len(uses):
        value.const_value = weights.lazy(name)
        return
    # A linear layer's weight: store it as MatMul reads it, instead of transposing at load.
    lazy = weights.lazy(name, transpose=True)
    lazy.name = f"{name}.transposed"
    transposed = ir.Value(
        name=lazy.name, shape=lazy.shape, type=ir.TensorType(lazy.dtype), const_value=lazy
    )
    graph.register_initializer(transposed)
    for node in transposes:
        ir.convenience.replace_all_uses_with(node.outputs[0], transposed)
        graph.remove(node, safe=True)
    assert value.name is not None
    del graph.initializers[value.name]


def _is_matrix_transpose(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == (1, 0)


def _drop_traces(graph: ir.Graph) -> None:
    """Remove the exporter's notes: stack traces with paths of this machine, and its own names."""
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes about packages that this graph does not need off the screen."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
