"""One graph for any N and K: what it gives, what it is made of, and how much memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession

from divprune.export.graphs.lanes import LANES, check_graph
from divprune.export.selection import SELECTORS, Selector, Setting, get_selector
from divprune.export.selection.contract import Case, VariableGraph, cases, check_selector
from divprune.export.selection.selection_graph import write_selection
from divprune.export.selection.similarity import MAX_GRAM_TOKENS
from divprune.runtime.errors import UnsupportedError
from tests.export.rtx_builder import Range, build_engine
from tests.export.selection.brute_force import choose, cosines, covers

MOST = 64
ANY_SIZE = [name for name in SELECTORS if get_selector(name).any_size]
LARGE = Setting(max_tokens=9216)
DIMS: dict[str, Range] = {"tokens": (1, 2340, 2928), "kept": (1, 234, 2928)}


def varying(name: str, opset: int = 20, most: int = MOST) -> ir.Model:
    selector, case = get_selector(name, Setting(max_tokens=most)), next(cases())
    shapes = {
        signal: (signal, ("tokens", *case.signals[signal].shape[1:])) for signal in selector.needs
    }
    return write_selection(selector, None, None, 12, ir.DataType.FLOAT16, opset, shapes)


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            nodes += nodes_of(attribute.g) if attribute.HasField("g") else []
    return nodes


@cache
def graph_of(max_tokens: int, width: int) -> tuple[Selector, VariableGraph]:
    selector = get_selector("divprune", Setting(max_tokens=max_tokens))
    return selector, VariableGraph(selector, Case("", np.zeros((1, width), np.float32), {}))


@pytest.mark.parametrize("name", ANY_SIZE)
def test_what_varies_are_the_dimensions_tokens_and_kept(name: str) -> None:
    model = ir.to_proto(varying(name))
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes.pop("kept_slots") == ["kept"]
    assert shapes["selection_order"] == ["kept"]
    for value in model.graph.input:
        assert value.name == "kept_slots" or shapes[value.name][0] == "tokens"
    assert all(shapes[value.name][0] == "kept" for value in model.graph.output)
    assert ("selection_cover" in shapes) == (name == "divprune")


@pytest.mark.parametrize("name", ANY_SIZE)
def test_no_shape_depends_on_what_a_tensor_holds(name: str) -> None:
    """Every Shape is taken of an input, and no node finds out its own output's length."""
    model = ir.to_proto(varying(name))
    nodes, inputs = nodes_of(model.graph), {value.name for value in model.graph.input}
    assert not {"NonZero", "Unique", "Compress"} & {node.op_type for node in nodes}
    made = {output: node for node in nodes for output in node.output}
    for node in nodes:
        if node.op_type == "Shape":
            source = made.get(node.input[0])
            assert node.input[0] in inputs or (source is not None and source.op_type == "Cast")
    for loop in (node for node in nodes if node.op_type == "Loop"):
        states = [*loop.attribute[0].g.input[2:], *loop.attribute[0].g.output[1:]]
        assert all(len(value.type.tensor_type.shape.dim) == 2 for value in states)


def test_a_selector_that_needs_a_fixed_grid_is_refused_by_name() -> None:
    assert set(SELECTORS) - set(ANY_SIZE) == {"downsample"}
    with pytest.raises(UnsupportedError, match="--selector downsample needs pictures of one size"):
        write_selection(get_selector("downsample"), None, None, 12, ir.DataType.FLOAT)


@pytest.mark.parametrize("setting", [Setting(max_tokens=MOST), LARGE], ids=["matrix", "on demand"])
def test_divprune_is_its_definition_for_many_sizes(setting: Setting) -> None:
    assert setting.max_tokens is not None
    selector, graph = graph_of(setting.max_tokens, 8)
    rng = np.random.default_rng(1)
    for num_tokens in (1, 2, 3, 17, 64):
        features = rng.standard_normal((num_tokens, 8)).astype(np.float32)
        gram = cosines(features)
        expected = choose(gram, num_tokens).order
        for num_kept in {1, min(2, num_tokens), (num_tokens + 1) // 2, num_tokens}:
            run = graph.run(selector, features, num_kept, {})
            order, cover = selector.select_covered(features, num_kept)
            assert run.order.tolist() == order.tolist() == expected[:num_kept]
            by_definition = covers(gram, expected[:num_kept])
            for found in (run.cover, cover):
                assert found is not None
                np.testing.assert_allclose(found, by_definition, atol=1e-6)
                assert (np.diff(found) >= 0).all()


def test_rows_on_demand_keep_the_contract() -> None:
    check_selector(get_selector("divprune", LARGE))


@pytest.mark.parametrize("num_tokens", [511, 512, 513, 1030])
def test_rows_on_demand_find_the_first_token_across_blocks(num_tokens: int) -> None:
    features = np.random.default_rng(num_tokens).standard_normal((num_tokens, 16))
    selector, graph = graph_of(9216, 16)
    found = graph.run(selector, features.astype(np.float32), 20, {})
    order, cover = get_selector("divprune").select_covered(features, 20)
    assert found.order.tolist() == order.tolist()
    assert selector.select(features, 20).tolist() == order.tolist()
    np.testing.assert_allclose(found.cover, cover, atol=1e-6)


def test_the_manifest_says_where_rows_are_computed_on_demand() -> None:
    by_size = {
        most: get_selector("divprune", Setting(max_tokens=most)).parameters
        for most in (None, MAX_GRAM_TOKENS, MAX_GRAM_TOKENS + 1)
    }
    assert by_size == {None: {}, 8192: {}, 8193: {"similarities": "rows on demand"}}


_SELECT_9216 = """
import sys
import numpy as np, onnxruntime
from divprune.runtime.memory import peak_rss
options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(sys.argv[1], options)
features = np.random.default_rng(0).standard_normal((9216, 64)).astype(np.float16)
before = peak_rss()
feeds = {"image_features": features, "kept_slots": np.zeros(40, np.int32)}
order = session.run(["selection_order"], feeds)[0]
after = peak_rss()
print(len(set(order.tolist())), (after - before) // 2**20)
"""


def test_9216_tokens_are_selected_in_a_fraction_of_their_matrix(tmp_path: Path) -> None:
    model = write_selection(get_selector("divprune", LARGE), None, None, 64, ir.DataType.FLOAT16)
    ir.save(model, tmp_path / "selection.onnx")
    command = [sys.executable, "-c", _SELECT_9216, str(tmp_path / "selection.onnx")]
    # Freed blocks go back at once: what glibc holds differs from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, mebibytes = map(int, done.stdout.split())
    assert kept == 40
    assert 0 < mebibytes < 324 / 3, "a third of the matrix"


def test_random_leaves_out_of_the_largest_permutation_what_a_picture_has_not() -> None:
    fixed, any_size = get_selector("random"), get_selector("random", Setting(max_tokens=40))
    permutation = np.random.Generator(np.random.PCG64(0)).permutation(40)
    features = np.ones((40, 2), np.float32)
    assert fixed.select(features, 40).tolist() == permutation.tolist()
    assert any_size.select(features, 40).tolist() == permutation.tolist()
    fewer = [token for token in permutation.tolist() if token < 13]
    assert any_size.select(features[:13], 5).tolist() == fewer[:5]
    assert any_size.parameters == {"seed": 0, "max_tokens": 40}


def test_uniform_takes_the_middles_of_equal_parts_of_the_row() -> None:
    uniform = get_selector("uniform", Setting(max_tokens=40))
    assert uniform.select(np.ones((12, 2), np.float32), 3).tolist() == [2, 6, 10]
    assert uniform.parameters == {"layout": "one row"}


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "jetpack6"])
@pytest.mark.parametrize("name", ANY_SIZE)
def test_every_target_knows_the_operators(name: str, target: str) -> None:
    lane = LANES[target]
    assert lane.limits is not None
    check_graph(varying(name, lane.vision_opset), lane.limits, max_kept=3839)
    with pytest.raises(UnsupportedError, match="TopK of 3840 or more"):
        check_graph(varying(name, lane.vision_opset), lane.limits, max_kept=3840)


@pytest.mark.parametrize("capability", [89, 120])
@pytest.mark.parametrize("target", ["tensorrt-rtx", "jetpack6"])
@pytest.mark.parametrize("name", ANY_SIZE)
def test_tensorrt_rtx_builds_the_subgraph(
    name: str, target: str, capability: int, tmp_path: Path
) -> None:
    model = varying(name, LANES[target].vision_opset, 2928)
    ir.save(model, tmp_path / "selection.onnx")
    assert build_engine(tmp_path / "selection.onnx", capability, [DIMS])


def packed_features(setting: Setting, opset: int) -> ir.Model:
    """A vision-like graph: patches of crops to rows, gathered by an index, then selected."""
    from divprune.export.graphs.writer import GraphWriter
    from divprune.export.selection.selection_graph import append_selection, register

    patches = ir.val("pixel_values", ir.DataType.FLOAT16, ["crops", 36, 24])
    rows = ir.val("token_rows", ir.DataType.INT64, ["tokens"])
    graph = ir.Graph([patches, rows], [], nodes=[], opset_imports={"": opset}, name="vision")
    op = GraphWriter(graph)
    weight = np.random.default_rng(3).standard_normal((24, 32)).astype(np.float16)
    projected = op("MatMul", patches, op.constant(weight, "weight"))
    flat = op("Reshape", projected, op.constant(np.array([-1, 32], np.int64), "flat"))
    features = op("Gather", flat, rows, axis=0)
    features.name, features.dtype = "image_features", ir.DataType.FLOAT16
    features.shape = ir.Shape(["tokens", 32])
    register(graph, op)
    graph.outputs.append(features)
    append_selection(graph, features, get_selector("divprune", setting), None)
    return ir.Model(graph, ir_version=10 if opset > 18 else 8)


@pytest.mark.parametrize("capability", [89, 120])
@pytest.mark.parametrize("target", ["tensorrt-rtx", "jetpack6"])
@pytest.mark.parametrize("setting", [Setting(max_tokens=180), LARGE], ids=["matrix", "on demand"])
def test_tensorrt_rtx_builds_a_vision_graph_with_crops_tokens_and_kept_varying(
    setting: Setting, target: str, capability: int, tmp_path: Path
) -> None:
    model = packed_features(setting, LANES[target].vision_opset)
    ir.save(model, tmp_path / "vision.onnx")
    dims: dict[str, Range] = {"crops": (1, 4, 5), "tokens": (1, 150, 180), "kept": (1, 15, 180)}
    assert build_engine(tmp_path / "vision.onnx", capability, [dims])


def test_a_vision_graph_selects_what_the_reference_selects_of_its_features(tmp_path: Path) -> None:
    setting = Setting(max_tokens=180)
    ir.save(packed_features(setting, 20), tmp_path / "vision.onnx")
    session = InferenceSession(tmp_path / "vision.onnx")
    assert [value.name for value in session.get_inputs()][-1] == "kept_slots"
    rng, selector = np.random.default_rng(5), get_selector("divprune", setting)
    for crops, num_tokens, num_kept in ((1, 36, 4), (5, 180, 180), (3, 77, 8), (1, 1, 1)):
        feeds = {
            "pixel_values": rng.standard_normal((crops, 36, 24)).astype(np.float16),
            "token_rows": rng.permutation(crops * 36)[:num_tokens],
            "kept_slots": np.zeros(num_kept, np.int32),
        }
        features, order, kept, cover = session.run(None, feeds)
        expected = selector.select_covered(features.astype(np.float32), num_kept)
        assert order.tolist() == expected[0].tolist()
        np.testing.assert_allclose(cover, expected[1], atol=1e-5)
        np.testing.assert_array_equal(kept, features[np.sort(order)])
