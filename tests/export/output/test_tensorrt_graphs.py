"""The further files of TensorRT targets: what they differ in, and in nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from qwen_checkpoints import write_qwen_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.graphs.lanes import LANES, check_graph
from divprune.export.output.tensorrt_graphs import replace_selection, write_tensorrt_graphs
from divprune.export.selection import Setting, get_selector
from divprune.export.selection.divprune import choose_max_min
from divprune.export.selection.selection_graph import write_selection
from divprune.export.selection.similarity import Gram
from divprune.plugins.node import MAX_TOKENS
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import Manifest

PLUGIN_TARGETS = ("tensorrt", "jetpack6")


class GreedyMaxMin(OpRun):
    """The plugin's node by the definition: the reference, given the Gram matrix."""

    op_domain = "divprune"

    def _run(self, gram: np.ndarray, seed: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        assert (gram.dtype, seed.dtype) == (np.float32, np.int32)
        assert (gram.ndim, seed.ndim, len(seed)) == (3, 2, 1)
        assert gram.shape[1] <= attributes["max_tokens"]
        order, cover = choose_max_min(Gram(gram[0]), seed.shape[1])
        assert order[0] == seed[0, 0]
        return order[None].astype(np.int32), cover[None]


def manifest_of(directory: Path) -> Manifest:
    return Manifest.from_json((directory / "manifest.json").read_text())


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def nodes(model: onnx.ModelProto) -> dict[str, bytes]:
    return {node.name: node.SerializeToString(deterministic=True) for node in model.graph.node}


@pytest.mark.parametrize(
    ("target", "graphs"),
    [
        ("onnxruntime", set()),
        ("tensorrt", {"vision_plugin", "selection_plugin", "llm_tensorrt"}),
        ("tensorrt-rtx", {"llm_tensorrt"}),
        ("jetpack6", {"vision_plugin", "selection_plugin"}),
    ],
)
def test_a_target_has_the_graphs_that_it_needs(
    target_dir: Callable[[str], Path], target: str, graphs: set[str]
) -> None:
    manifest = manifest_of(target_dir(target))
    assert manifest.graphs.keys() == {"vision", "selection", "llm"} | graphs
    for key in graphs:
        portable = manifest.graphs[key.partition("_")[0]]
        assert manifest.graphs[key].inputs == portable.inputs
        assert manifest.graphs[key].outputs == portable.outputs
        assert manifest.graphs[key].opset == portable.opset


@pytest.mark.parametrize("target", ["tensorrt", "jetpack6"])
def test_the_versions_that_can_run_it_are_recorded(
    target_dir: Callable[[str], Path], target: str
) -> None:
    requires = {"tensorrt": ("onnx", "10.15"), "jetpack6": ("delta", "10.3")}
    manifest = manifest_of(target_dir(target))
    assert (manifest.dialect, manifest.requires["tensorrt"]) == requires[target]
    assert "onnxruntime" in manifest.requires, "which it can be checked with"


@pytest.mark.parametrize("target", PLUGIN_TARGETS)
def test_the_plugin_graph_differs_in_the_selection_only(
    target_dir: Callable[[str], Path], target: str
) -> None:
    folder = target_dir(target) / "vision"
    portable, plugin = (load(folder / f"{name}.onnx") for name in ("model", "model.plugin"))
    before, after = (
        {name: node for name, node in nodes(model).items() if not name.startswith("selection/")}
        for model in (portable, plugin)
    )
    assert before == after
    (node,) = (node for node in plugin.graph.node if node.domain == "divprune")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.op_type, attributes) == (
        "GreedyMaxMin",
        {"plugin_namespace": b"divprune", "plugin_version": b"1", "max_tokens": 50, "aot": 1},
    )
    assert not any(node.op_type == "Loop" for node in plugin.graph.node)


@pytest.mark.parametrize("target", PLUGIN_TARGETS)
def test_the_plugin_graph_selects_what_the_loop_selects(
    target_dir: Callable[[str], Path], target: str
) -> None:
    folder = target_dir(target) / "vision"
    pixels = np.random.default_rng(2).standard_normal((1, 3, 56, 56)).astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    features, order, kept, cover = session.run(None, {"pixel_values": pixels})
    evaluator = ReferenceEvaluator(onnx.load(folder / "model.plugin.onnx"), new_ops=[GreedyMaxMin])
    found = evaluator.run(None, {"pixel_values": pixels})
    np.testing.assert_allclose(found[0], features, atol=1e-4)
    np.testing.assert_array_equal(found[1], order)
    np.testing.assert_allclose(found[2], kept, atol=1e-4)
    np.testing.assert_allclose(found[3], cover, atol=1e-5)
    assert found[1].dtype == np.int64


def test_the_selection_alone_has_the_plugin_too_and_is_the_same_work(
    target_dir: Callable[[str], Path],
) -> None:
    folder = target_dir("tensorrt") / "vision"
    alone, whole = (load(folder / f"{name}.plugin.onnx") for name in ("selection", "model"))
    inside = {name: n for name, n in nodes(whole).items() if name.startswith("selection/")}
    assert nodes(alone).keys() == inside.keys()
    assert [node.op_type for node in alone.graph.node if node.domain] == ["GreedyMaxMin"]
    (tensor,) = alone.graph.input
    shape = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
    features = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    feeds = {tensor.name: features}
    expected = onnxruntime.InferenceSession(folder / "selection.onnx").run(None, feeds)
    found = ReferenceEvaluator(alone, new_ops=[GreedyMaxMin]).run(None, feeds)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-6)


def test_the_plugin_graph_keeps_what_later_decoder_layers_add(tmp_path: Path) -> None:
    source = write_qwen_checkpoint(tmp_path / "checkpoint", "qwen3-v5")
    options = {"keep": 0.3, "verify": False, "target": "tensorrt"}
    export_model(ExportOptions(model=str(source), output=tmp_path / "engine", **options))
    graphs = EngineDirectory.open(tmp_path / "engine").manifest.graphs
    found = [tensor.name for tensor in graphs["vision_plugin"].outputs]
    assert found == [tensor.name for tensor in graphs["vision"].outputs]
    assert "deepstack_1" in found


def test_one_plugin_graph_selects_from_pictures_of_any_size() -> None:
    selector = get_selector("divprune", Setting(max_tokens=60))
    model = write_selection(selector, None, None, 12, ir.DataType.FLOAT)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    before = [(value.name, value.shape, value.dtype) for value in model.graph.outputs]
    replace_selection(model, selector, None)
    assert [value.name for value in model.graph.inputs] == ["image_features", "kept_slots"]
    assert [(value.name, value.shape, value.dtype) for value in model.graph.outputs] == before
    for lane in ("tensorrt", "jetpack6"):
        limits = LANES[lane].limits
        assert limits is not None
        check_graph(model, limits, max_kept=60)
    proto = ir.to_proto(model)
    (node,) = (node for node in proto.graph.node if node.domain)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["max_tokens"] == 60
    evaluator = ReferenceEvaluator(proto, new_ops=[GreedyMaxMin])
    rng = np.random.default_rng(6)
    for num_tokens, num_kept in ((1, 1), (2, 2), (60, 1), (37, 9), (60, 60)):
        feeds = {
            "image_features": rng.standard_normal((num_tokens, 12)).astype(np.float32),
            "kept_slots": rng.integers(-(2**31), 2**31, num_kept).astype(np.int32),
        }
        expected, found = session.run(None, feeds), evaluator.run(None, feeds)
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(found[2], expected[2], atol=1e-6)


@pytest.mark.parametrize(
    ("target", "graph", "data"),
    [
        ("tensorrt", "vision/model.plugin.onnx", "model.onnx.data"),
        ("tensorrt", "llm/model.tensorrt.onnx", "model.onnx.data"),
    ],
)
def test_weights_are_shared_and_not_written_again(
    target_dir: Callable[[str], Path], target: str, graph: str, data: str
) -> None:
    path = target_dir(target) / graph
    places = {
        entry.value
        for tensor in load(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {data}
    assert {file.name for file in path.parent.glob("*.data")} == {data}


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_marked_llm_graph_differs_in_the_mark_only(
    target_dir: Callable[[str], Path], target: str
) -> None:
    folder = target_dir(target) / "llm"
    portable, marked = (load(folder / f"{name}.onnx") for name in ("model", "model.tensorrt"))
    attentions = [node for node in marked.graph.node if node.op_type == "Attention"]
    assert len(attentions) == 3
    for node in attentions:
        (mark,) = (a for a in node.attribute if a.name == "TRT_decomposable")
        assert mark.i == 1
        node.attribute.remove(mark)
    assert nodes(marked) == nodes(portable)


@pytest.mark.parametrize("too_many", [False, True])
def test_more_tokens_than_the_plugin_holds_leave_its_graph_out_by_name(
    target_dir: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    too_many: bool,
) -> None:
    folder = tmp_path / "vision"
    shutil.copytree(target_dir("jetpack6") / "vision", folder)
    (folder / "model.plugin.onnx").unlink()
    num_tokens = MAX_TOKENS + too_many
    with caplog.at_level("WARNING", "divprune"):
        graphs = write_tensorrt_graphs(
            LANES["jetpack6"], tmp_path, get_selector("divprune"), num_tokens, 5
        )
    assert graphs.keys() == (set() if too_many else {"vision_plugin", "selection_plugin"})
    assert (folder / "model.plugin.onnx").exists() != too_many
    message = "vision/model.plugin.onnx is left out: 10241 visual tokens are more than"
    assert (message in caplog.text) == too_many
