"""The vision graph: what torch traced, the checkpoint's weights, the selection behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from checkpoints import TINY_CHECKPOINTS
from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.checkpoint.packed_layers import PackedLayer
from divprune.export.checkpoint.weights import DTYPES, WeightSource
from divprune.export.families.llava import LlavaFamily
from divprune.export.graphs.files import save_graph
from divprune.export.graphs.progress import Progress
from divprune.export.selection import get_selector
from divprune.export.selection.selection_graph import write_selection
from divprune.export.vision.trace import TracedInput, trace_vision
from divprune.runtime.errors import UnsupportedError

CHECKPOINT = "clip-llama-v4-gqa2-full"
NUM_TOKENS = TINY_CHECKPOINTS[CHECKPOINT].num_image_tokens
NUM_KEPT = 5
HIDDEN = 64
CASES = {
    "fp32": ("fp32", NUM_KEPT),
    "fp16": ("fp16", NUM_KEPT),
    "one": ("fp32", 1),
    "all": ("fp32", NUM_TOKENS),
}


PIXELS = TracedInput("pixel_values", (1, 3, 56, 56), "float32", (1, 3, 56, 56))


class CountingCheckpoint:
    """A checkpoint that remembers what was read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.family = checkpoint.family
        self.reads: list[str] = []

    def packed(self, name: str) -> PackedLayer | None:
        return self.checkpoint.packed(name)

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.checkpoint.read(name)


@dataclass
class Written:
    """A vision graph on disk and how it came there."""

    path: Path
    model: ir.Model
    weights: WeightSource
    reads_while_tracing: list[str]
    reads_while_saving: list[str]

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        session = open_session(self.path)
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, {"pixel_values": pixel_values}), strict=True))


def open_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def written(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Written]:
    """A function from a key of CASES to its graph, traced once."""
    done: dict[str, Written] = {}

    def write(case: str) -> Written:
        dtype, num_kept = CASES[case]
        source = Checkpoint.open(checkpoint(CHECKPOINT))
        counting: Any = CountingCheckpoint(source)
        family = LlavaFamily(source.config)
        weights = WeightSource(counting, expected_tensors(source.config), dtype)
        selector = get_selector("divprune")
        model = trace_vision(family.vision_module(), [PIXELS], weights, selector, num_kept)
        while_tracing = list(counting.reads)
        path = tmp_path_factory.mktemp("vision") / "model.onnx"
        save_graph(model, path, "writing", Progress(bars=False))
        return Written(path, model, weights, while_tracing, counting.reads[len(while_tracing) :])

    def get(case: str) -> Written:
        if case not in done:
            done[case] = write(case)
        return done[case]

    return get


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path], pixels: np.ndarray) -> np.ndarray:
    """The image features of transformers, [N, hidden]."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint(CHECKPOINT))
    with torch.no_grad():
        features = model.get_image_features(torch.from_numpy(pixels)).pooler_output[0]
    return features.numpy()


@pytest.mark.parametrize("case", CASES)
def test_inputs_and_outputs_are_those_of_the_contract(
    written: Callable[[str], Written], case: str
) -> None:
    dtype, num_kept = CASES[case]
    feature = {"fp32": "tensor(float)", "fp16": "tensor(float16)"}[dtype]
    session = open_session(written(case).path)
    assert [(v.name, v.type, v.shape) for v in session.get_inputs()] == [
        ("pixel_values", "tensor(float)", [1, 3, 56, 56])
    ]
    assert [(v.name, v.type, v.shape) for v in session.get_outputs()] == [
        ("image_features", feature, [NUM_TOKENS, HIDDEN]),
        ("selection_order", "tensor(int64)", [num_kept]),
        ("selected_features", feature, [num_kept, HIDDEN]),
        ("selection_cover", "tensor(float)", [num_kept]),
    ]


@pytest.mark.parametrize("case", CASES)
def test_kept_rows_are_those_of_the_order_in_raster_order(
    written: Callable[[str], Written], pixels: np.ndarray, case: str
) -> None:
    outputs = written(case).run(pixels)
    order, features = outputs["selection_order"], outputs["image_features"]
    assert len(set(order.tolist())) == CASES[case][1]
    np.testing.assert_array_equal(outputs["selected_features"], features[np.sort(order)])
    expected = get_selector("divprune").select(features, CASES[case][1])
    np.testing.assert_array_equal(order, expected)


def test_a_smaller_count_is_a_prefix_of_a_larger_one(
    written: Callable[[str], Written], pixels: np.ndarray
) -> None:
    everything = written("all").run(pixels)["selection_order"]
    for case in ("one", "fp32"):
        order = written(case).run(pixels)["selection_order"]
        np.testing.assert_array_equal(order, everything[: len(order)])


@pytest.mark.parametrize(("case", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_features_are_those_of_transformers(
    written: Callable[[str], Written],
    pixels: np.ndarray,
    reference: np.ndarray,
    case: str,
    tolerance: float,
) -> None:
    features = written(case).run(pixels)["image_features"].astype(np.float32)
    error = np.linalg.norm(features - reference, axis=1) / np.linalg.norm(reference, axis=1)
    assert error.max() < tolerance


def test_tracing_reads_no_weight_and_saving_reads_each_one_once(
    written: Callable[[str], Written],
) -> None:
    graph = written("fp32")
    assert graph.reads_while_tracing == []
    assert sorted(graph.reads_while_saving) == sorted(set(graph.reads_while_saving))
    # Layer 2 of 4 is the feature layer: the last block and the norm behind it are not used.
    tower = [name for name in graph.weights._shapes if name.startswith("vision_tower.")]
    unused = [n for n in tower if "encoder.layers.3." in n or "post_layernorm" in n]
    projector = [n for n in graph.weights._shapes if n.startswith("multi_modal_projector.")]
    assert set(graph.reads_while_saving) == {*tower, *projector} - set(unused)


@pytest.mark.parametrize("case", ["fp32", "fp16"])
def test_the_file_says_nothing_about_the_machine_that_wrote_it(
    written: Callable[[str], Written], case: str
) -> None:
    content = written(case).path.read_bytes()
    here = {str(Path.cwd()), str(Path.home()), str(Path(torch.__file__).parent.parent)}
    for text in (*here, "site-packages", ".py", "Traceback", "pkg.torch", "stack_trace"):
        assert text.encode() not in content, text
    model = onnx.load(written(case).path, load_external_data=False)
    assert model.producer_name == "divprune-edge"
    assert torch.__version__ not in model.producer_version


def test_linear_weights_are_stored_as_matmul_reads_them(
    written: Callable[[str], Written],
) -> None:
    graph = written("fp32").model.graph
    transposed = [
        node.inputs[0]
        for node in graph
        if node.op_type == "Transpose" and not str(node.name).startswith("selection/")
    ]
    assert transposed, "attention transposes its heads"
    for value in transposed:
        assert value is not None
        assert value.const_value is None, f"{value.name} is transposed whenever it is loaded"


def test_the_selection_alone_is_the_one_behind_the_tower(
    written: Callable[[str], Written], pixels: np.ndarray, tmp_path: Path
) -> None:
    for case in ("fp32", "fp16"):
        outputs = written(case).run(pixels)
        selection = write_selection(
            get_selector("divprune"), NUM_TOKENS, NUM_KEPT, HIDDEN, DTYPES[CASES[case][0]]
        )
        save_graph(selection, tmp_path / "selection.onnx", "writing", Progress(bars=False))
        session = open_session(tmp_path / "selection.onnx")
        order, kept, cover = session.run(None, {"image_features": outputs["image_features"]})
        np.testing.assert_array_equal(order, outputs["selection_order"])
        np.testing.assert_array_equal(kept, outputs["selected_features"])
        np.testing.assert_allclose(cover, outputs["selection_cover"], atol=1e-6)
        assert kept.dtype == outputs["image_features"].dtype


@pytest.mark.parametrize("name", TINY_CHECKPOINTS)
def test_image_tokens_are_counted_from_the_config(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    family = LlavaFamily(Checkpoint.open(checkpoint(name)).config)
    (pixels,) = family.vision_inputs()
    features = family.vision_module()(torch.zeros(pixels.shape, device="meta"))
    expected = TINY_CHECKPOINTS[name].num_image_tokens
    assert tuple(features.shape) == (expected, HIDDEN)
    assert family.facts()["num_tokens"] == expected


class WithBuffer(torch.nn.Module):
    """A tower that computes something when it is built, instead of storing it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.ones(48, device="meta"), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.reshape(4, 48) * self.frequencies


def test_a_buffer_that_no_checkpoint_stores_is_refused_by_name(
    checkpoint: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    weights = WeightSource(Checkpoint.open(checkpoint(CHECKPOINT)), {}, "fp32")
    with pytest.raises(UnsupportedError, match="frequencies"):
        pixels = TracedInput("pixel_values", (1, 3, 8, 8), "float32", (1, 3, 8, 8))
        trace_vision(WithBuffer(), [pixels], weights, get_selector("divprune"), 2)
    assert capfd.readouterr() == ("", ""), "torch's exporter talks"
