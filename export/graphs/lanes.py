"""The targets: dialect and oldest supported runtime of each.

| target | runtime | dialect |
|---|---|---|
| onnxruntime | ONNX Runtime | ort |
| tensorrt | TensorRT 10.15 or later | onnx |
| tensorrt-rtx | TensorRT-RTX | onnx |
| jetpack6 | TensorRT 10.3 (JetPack 6) to 10.14; later ones run it too | delta |

The operators are those of the parser's own list for that version (onnx-tensorrt,
``docs/operators.md``). No parser is needed to tell that a graph has outgrown one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from divprune.plugins.node import NAMESPACE
from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.errors import UnsupportedError

__all__ = ["LANES", "Lane", "ParserLimits", "check_graph"]

_TYPES = frozenset({"FLOAT", "FLOAT16", "INT64", "INT32", "BOOL"})
# Those after query, key, value and mask are refused or, worse, ignored.
_ATTENTION_INPUTS = 4


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """Capabilities of the ONNX parser of a TensorRT version.

    Attributes:
        version: Of TensorRT, for messages.
        max_opset: The newest operator set that a graph may import.
        operators: Names of the operators, in the default domain.
        types: Element types that weights and constants may have.
        plugins: Whether a node of our own domain can become a plugin.
        max_topk: ``TopK`` has to ask for fewer.
    """

    version: str
    max_opset: int
    operators: frozenset[str]
    types: frozenset[str] = _TYPES
    plugins: bool = False
    max_topk: int = 3840


@dataclass(frozen=True, slots=True)
class Lane:
    """One target.

    Attributes:
        dialect: How the decoder is spelled.
        requires: Lowest versions, by package; any one of them can run the directory.
        vision_opset: The operator set that the vision tower is traced for.
        limits: None where the export runs the graphs itself.
        marks_attention: Whether a copy of the LLM graph lets TensorRT take Attention apart.
        max_weight_mib: Largest weight unless ``--max-weight-mib`` says otherwise.
    """

    dialect: str
    requires: Mapping[str, str]
    vision_opset: int = 20
    limits: ParserLimits | None = None
    marks_attention: bool = False
    max_weight_mib: int | None = None


_ELEMENTWISE = """
    Abs Add And Cast Ceil Clip Cos Div Equal Erf Exp Floor Greater GreaterOrEqual Identity Less
    LessOrEqual Log Max Min Mul Neg Not Or Pow Reciprocal Relu Sigmoid Sign Sin Sqrt Sub Tanh
    Where Xor
"""
_ARRANGING = """
    Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Pad Range
    Reshape ScatterElements ScatterND Shape Slice Split Squeeze Tile TopK Transpose Trilu
    Unsqueeze ArgMax ArgMin CumSum
"""
_REDUCING = "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Softmax LayerNormalization"
_COMPUTING = "Conv Gemm MatMul Loop AveragePool DequantizeLinear"
_PLAIN = frozenset(" ".join((_ELEMENTWISE, _ARRANGING, _REDUCING, _COMPUTING)).split())
_SINCE_10_15 = frozenset({"Attention", "Gelu", "RMSNormalization", "RotaryEmbedding"})
_OPSET_24 = _PLAIN | _SINCE_10_15 | {"TensorScatter"}

# The parser's list ends at opset 20. All that opset 21 is used for is DequantizeLinear with
# blocks, which these versions read since 10.0 brought INT4.
_TENSORRT_10_3 = ParserLimits(
    "TensorRT 10.3", max_opset=21, operators=_PLAIN, types=_TYPES | {"INT4"}, plugins=True
)
_TENSORRT_10_15 = ParserLimits(
    "TensorRT 10.15", max_opset=24, operators=_OPSET_24, types=_TYPES | {"INT4"}, plugins=True
)
_TENSORRT_RTX = ParserLimits(
    "TensorRT-RTX 1.7", max_opset=24, operators=_OPSET_24, types=_TYPES | {"INT4"}
)

LANES: Mapping[str, Lane] = MappingProxyType(
    {
        "onnxruntime": Lane("ort", {}),
        "tensorrt": Lane(
            "onnx", {"tensorrt": "10.15"}, limits=_TENSORRT_10_15, marks_attention=True
        ),
        "tensorrt-rtx": Lane(
            "onnx", {"tensorrt-rtx": "1.7"}, limits=_TENSORRT_RTX, marks_attention=True
        ),
        # At opset 18 Gelu is written in plain operators. Orin Nano boards cannot hand out
        # a contiguous GiB, and a build may hold a weight twice.
        "jetpack6": Lane(
            "delta",
            {"tensorrt": "10.3"},
            vision_opset=18,
            limits=_TENSORRT_10_3,
            max_weight_mib=256,
        ),
    }
)
assert tuple(LANES) == TARGETS


def check_graph(model: ir.Model, limits: ParserLimits, max_kept: int | None = None) -> None:
    """Check that the parser of ``limits`` knows everything in ``model``.

    Args:
        model: Of any of an engine directory's graphs.
        limits: Of a TensorRT version.
        max_kept: The largest K where it varies: what a ``TopK`` may be asked for.

    Raises:
        UnsupportedError: listing what it does not know.
    """
    graph = model.graph
    problems: list[str] = []
    opset = graph.opset_imports[""]
    if opset > limits.max_opset:
        problems.append(f"opset {opset}")
    for value in graph.initializers.values():
        if value.dtype is not None and value.dtype.name not in limits.types:
            problems += [f"{value.name} of type {value.dtype.name}"]
    for node in graph.all_nodes():
        problems += (f"{node.name} ({problem})" for problem in _problems(node, limits, max_kept))
    if problems:
        raise UnsupportedError(
            f"the graph {graph.name} has what {limits.version} does not know",
            expected=f"operators that it reads, of opset {limits.max_opset} at most",
            found=", ".join(problems[:5]) + (" ..." if len(problems) > 5 else ""),
            fix="choose another --target or --selector",
        )


def _problems(node: ir.Node, limits: ParserLimits, max_kept: int | None) -> Iterator[str]:
    if node.domain == NAMESPACE and limits.plugins:
        return
    if node.domain or node.op_type not in limits.operators:
        yield f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if node.op_type == "Attention" and len(node.inputs) > _ATTENTION_INPUTS:
        yield "Attention with a cache of its own"
    if node.op_type == "TopK":
        count = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] else None
        asked = max_kept or 0 if count is None else int(count.numpy().item())
        if asked >= limits.max_topk:
            yield f"TopK of {limits.max_topk} or more"
