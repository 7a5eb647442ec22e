"""Every graph, built by the real TensorRT-RTX compiler for GPUs that are not here.

This stands in for TensorRT's own builder, which the package index does not have: the parser is
the same. What is built is not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from divprune.export.checkpoint.quantization.dequantize_linear import dequantized_matmul
from divprune.export.selection import SELECTORS, get_selector
from divprune.export.selection.contract import cases, selection_model
from tests.export.checkpoint.quantization.layers import DTYPES, layer_model, random_matrix
from tests.export.rtx_builder import BuildFailed, Profile, build_engine

# decode, prefill; the cache of the test's model has 512 slots. (This compiler fails on one of
# fewer than 40, which no picture fits into.)
PROFILES: list[Profile] = [(1, 1, 1), (1, 37, 511)]
CAPABILITIES = (86, 89, 120)
LLM_GRAPHS = [("tensorrt-rtx", "llm/model.tensorrt.onnx"), ("jetpack6", "llm/model.onnx")]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("quant", [None, "int4", "int4-asym"])
@pytest.mark.parametrize(("target", "graph"), LLM_GRAPHS)
def test_the_llm_graph_builds_for_prefill_and_decode(
    target_dir: Callable[..., Path], target: str, graph: str, quant: str | None, capability: int
) -> None:
    assert build_engine(target_dir(target, "fp16", quant) / graph, capability, PROFILES)


@pytest.mark.parametrize("zeros", [None, 15])
def test_int4_weights_stay_four_bits_wide_in_the_engine(tmp_path: Path, zeros: int | None) -> None:
    """A builder may dequantise constants while it builds: then int4 would save no memory."""
    width = 2048
    matrix = random_matrix((width, width), 32, zeros=zeros, dtype="fp16")
    model = layer_model(
        lambda op, x: dequantized_matmul(op, x, matrix, DTYPES["fp16"], "y"), width, "fp16"
    )
    onnx.save(model, tmp_path / "layer.onnx")
    engine = build_engine(tmp_path / "layer.onnx", 89, PROFILES)
    # Codes, scales, corrections and code; in float16 the weights alone are 8 MiB.
    assert width * width // 2 < len(engine) < width * width


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("target", ["tensorrt-rtx", "jetpack6"])
def test_the_vision_graph_with_its_selection_builds(
    target_dir: Callable[..., Path], target: str, capability: int
) -> None:
    assert build_engine(target_dir(target, "fp16") / "vision" / "model.onnx", capability)


@pytest.mark.parametrize(("target", "graph"), LLM_GRAPHS)
def test_the_llm_graph_builds_in_float32(
    target_dir: Callable[..., Path], target: str, graph: str
) -> None:
    assert build_engine(target_dir(target, "fp32") / graph, 86, PROFILES)


def test_without_the_mark_float32_attention_does_not_build(
    target_dir: Callable[..., Path],
) -> None:
    """The reason for llm/model.tensorrt.onnx: if this ever builds, it has become needless."""
    with pytest.raises(BuildFailed, match="not supported by a dedicated kernel"):
        build_engine(target_dir("tensorrt-rtx", "fp32") / "llm" / "model.onnx", 86, PROFILES)


def test_the_plugin_graph_needs_a_plugin_and_nothing_else(
    target_dir: Callable[..., Path],
) -> None:
    with pytest.raises(BuildFailed) as caught:
        build_engine(target_dir("tensorrt", "fp16") / "vision" / "model.plugin.onnx", 86)
    reasons = str(caught.value).splitlines()[1:]
    assert reasons
    assert all("GreedyMaxMin" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("op_type", "change", "message"),
    [
        ("MatMul", {"op_type": "MatrixProduct"}, "MatrixProduct"),
        ("TensorScatter", {"axis": 1}, "TensorScatter"),
        ("Attention", {"without": 2}, "Attention"),
    ],
)
def test_a_broken_graph_does_not_build_and_its_node_is_named(
    target_dir: Callable[..., Path],
    tmp_path: Path,
    op_type: str,
    change: dict[str, str | int],
    message: str,
) -> None:
    model = onnx.load(target_dir("tensorrt-rtx", "fp16") / "llm" / "model.tensorrt.onnx")
    node = next(node for node in model.graph.node if node.op_type == op_type)
    if "op_type" in change:
        node.op_type = change["op_type"]
    elif "axis" in change:
        next(a for a in node.attribute if a.name == "axis").i = change["axis"]
    else:
        del node.input[change["without"] :]
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(BuildFailed, match=message):
        build_engine(tmp_path / "broken.onnx", 86, PROFILES)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_subgraph_of_every_selector_builds(name: str, tmp_path: Path) -> None:
    selector, case = get_selector(name), next(cases())
    signals = {signal: case.signals[signal] for signal in selector.needs}
    model = selection_model(selector, case.features, 9, signals)
    ir.save(model, tmp_path / "selection.onnx")
    assert build_engine(tmp_path / "selection.onnx", 86)
