"""The self-check finds what a wrong export would have wrong, and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from divprune.export import verify as verify_module
from divprune.export.checkpoint.source import resolve_model
from divprune.export.decoder.dialects import get_dialect
from divprune.export.export_model import export_model
from divprune.export.graphs.progress import Advance, Progress
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.planning.plan import ExportPlan
from divprune.export.verify import Tolerance, check_onnxruntime, verify_export
from divprune.runtime.errors import BackendError, NumericalError, UnsupportedError

CHECKPOINT = "clip-llama-hub"  # that of the fixture engine_dir
LAYER = "language_model.layers.{}."
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def _keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving memory back changes no result and takes half of the time of so small a check."""
    for module in (verify_module, verify_module.vision):
        monkeypatch.setattr(module, "release_freed_memory", lambda: None)


def make(checkpoint: Path, dtype: str) -> ExportPlan:
    options = ExportOptions(model=str(checkpoint), keep=0.1, dtype=dtype)
    return make_plan(options, resolve_model(options.model))


@pytest.fixture(scope="module")
def plan(checkpoint: Callable[[str], Path]) -> ExportPlan:
    return make(checkpoint(CHECKPOINT), "fp32")


@pytest.fixture
def copy(engine_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(engine_dir, tmp_path / "engine"))


@pytest.fixture(scope="module")
def half(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportPlan]:
    """An unchecked fp16 export, its plan beside it."""
    path = checkpoint(CHECKPOINT)
    output = tmp_path_factory.mktemp("half") / "engine"
    export_model(ExportOptions(model=str(path), keep=0.1, output=output, verify=False))
    return output, make(path, "fp16")


def verify(plan: ExportPlan, directory: Path) -> dict[str, float]:
    return verify_export(plan, directory, Progress(bars=False))


def files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


@contextmanager
def tensors_of(file: Path) -> Iterator[dict[str, onnx.TensorProto]]:
    """The initializers of an ONNX file by name; changes of their data are written back."""
    model = onnx.load(file, load_external_data=True)
    where = {
        tensor.name: tensor
        for tensor in onnx.load(file, load_external_data=False).graph.initializer
        if tensor.external_data
    }
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    yield tensors
    for name, reference in where.items():
        entries = {entry.key: entry.value for entry in reference.external_data}
        with (file.parent / entries["location"]).open("r+b") as data:
            data.seek(int(entries["offset"]))
            data.write(tensors[name].raw_data)
        tensors[name].CopyFrom(reference)
    onnx.save(model, file)


def alter(file: Path, name: str, change: Change) -> None:
    with tensors_of(file) as tensors:
        old = onnx.numpy_helper.to_array(tensors[name])
        new = np.ascontiguousarray(change(old.copy()), old.dtype)
        assert new.shape == old.shape
        assert not np.array_equal(new, old)
        tensors[name].raw_data = new.tobytes()


def zero(array: np.ndarray) -> np.ndarray:
    return np.zeros_like(array)


def flip_a_sign(array: np.ndarray) -> np.ndarray:
    array.flat[np.abs(array).argmax()] *= -1
    return array


def nan(array: np.ndarray) -> np.ndarray:
    array.flat[-1] = np.nan
    return array


def flip_order(array: np.ndarray) -> np.ndarray:
    return array[..., ::-1]


def test_a_right_export_passes_with_errors_far_below_the_tolerance(
    plan: ExportPlan, engine_dir: Path
) -> None:
    before = files(engine_dir)
    errors = verify(plan, engine_dir)
    assert errors.keys() == {"vision", "blocks", "head"}
    assert 0 < errors["vision"] < 1e-5
    assert 0 < errors["blocks"] < 1e-5
    assert 0 < errors["head"] < 1e-5
    assert files(engine_dir) == before


def test_a_right_fp16_export_passes(half: tuple[Path, ExportPlan]) -> None:
    directory, plan = half
    errors = verify(plan, directory)
    tolerance = Tolerance.of(half[1].options)
    assert 1e-5 < errors["vision"] < tolerance.vision / 3
    assert 1e-5 < errors["blocks"] < tolerance.block / 3
    assert 1e-5 < errors["head"] < tolerance.block / 3


LLM_FAULTS = [
    (LAYER.format(1) + "self_attn.q_proj.weight", zero, "decoder block 1"),
    (LAYER.format(0) + "self_attn.k_proj.weight", flip_a_sign, "decoder block 0"),
    (LAYER.format(2) + "mlp.down_proj.weight", flip_a_sign, "decoder block 2"),
    (LAYER.format(0) + "mlp.gate_proj.weight", nan, "decoder block 0"),
    (LAYER.format(0) + "input_layernorm.weight", flip_order, "decoder block 0"),
    (LAYER.format(1) + "post_attention_layernorm.weight", zero, "decoder block 1"),
    ("shared/inverse_frequencies", flip_order, "decoder block 0"),
    ("language_model.norm.weight", flip_order, "output layer"),
    ("lm_head.weight", flip_a_sign, "output layer"),
]


@pytest.mark.parametrize(
    ("tensor", "change", "part"),
    LLM_FAULTS,
    ids=[f"{tensor.removesuffix('.weight')}-{fault.__name__}" for tensor, fault, _ in LLM_FAULTS],
)
def test_a_changed_tensor_of_the_llm_graph_is_found(
    plan: ExportPlan, copy: Path, tensor: str, change: Change, part: str
) -> None:
    before = files(copy)
    alter(copy / "llm" / "model.onnx", tensor, change)
    with pytest.raises(NumericalError, match=f"exported {part} of llm differs from transformers"):
        verify(plan, copy)
    assert files(copy) == before


VISION_FAULTS = [
    ("model.vision_tower.embeddings.patch_embedding.weight", zero),
    ("vision_tower.encoder.layers.1.mlp.fc2.weight.transposed", flip_order),
    ("multi_modal_projector.linear_2.weight.transposed", flip_a_sign),
    ("multi_modal_projector.linear_2.weight.transposed", nan),
]


@pytest.mark.parametrize(("tensor", "change"), VISION_FAULTS)
def test_a_changed_tensor_of_the_vision_graph_is_found(
    plan: ExportPlan, copy: Path, tensor: str, change: Change
) -> None:
    alter(copy / "vision" / "model.onnx", tensor, change)
    with pytest.raises(NumericalError, match="the exported vision graph differs"):
        verify(plan, copy)


def test_two_layers_in_each_others_place_are_found(plan: ExportPlan, copy: Path) -> None:
    names = [LAYER.format(layer) + "mlp.up_proj.weight" for layer in (1, 2)]
    with tensors_of(copy / "llm" / "model.onnx") as tensors:
        one, other = (tensors[name] for name in names)
        one.raw_data, other.raw_data = other.raw_data, one.raw_data
    with pytest.raises(NumericalError, match="decoder block 1"):
        verify(plan, copy)


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        # Indices counted from the other end: distinct, but not the tokens that were meant.
        ("selection/divprune/greedy/ids", flip_order, "differs from the reference of divprune"),
        ("selection/divprune/greedy/last_id", zero, "not a choice of distinct tokens"),
        ("selection/divprune/greedy/all_covered", flip_a_sign, "the cover in the graph differs"),
    ],
)
def test_a_wrong_selection_is_found(
    plan: ExportPlan, copy: Path, tensor: str, change: Change, message: str
) -> None:
    alter(copy / "vision" / "model.onnx", tensor, change)
    with pytest.raises(NumericalError, match=message):
        verify(plan, copy)


def test_kept_rows_in_another_order_are_found(plan: ExportPlan, copy: Path) -> None:
    file = copy / "vision" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    (sort,) = (node for node in model.graph.node if node.op_type == "TopK")
    for attribute in sort.attribute:
        attribute.i = 1 if attribute.name == "largest" else attribute.i  # descending
    onnx.save(model, file)
    with pytest.raises(NumericalError, match="kept rows are not those of selection_order"):
        verify(plan, copy)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (LAYER.format(0) + "self_attn.o_proj.weight", "decoder block 0"),
        ("lm_head.weight", "output layer"),
    ],
)
def test_faults_show_above_the_rounding_of_fp16(
    half: tuple[Path, ExportPlan], tmp_path: Path, tensor: str, part: str
) -> None:
    directory, plan = half
    copy = Path(shutil.copytree(directory, tmp_path / "engine"))
    alter(copy / "llm" / "model.onnx", tensor, flip_order)
    with pytest.raises(NumericalError, match=part):
        verify(plan, copy)


@pytest.mark.parametrize("graph", ["vision", "llm"])
def test_a_graph_that_cannot_be_loaded_is_told(plan: ExportPlan, copy: Path, graph: str) -> None:
    before = files(copy)
    (copy / graph / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(BackendError, match="a graph that was just exported"):
        verify(plan, copy)
    assert files(copy) == before


def test_every_part_is_a_step_of_the_progress(plan: ExportPlan, engine_dir: Path) -> None:
    steps: list[tuple[str, int | None, int]] = []

    class Recorder(Progress):
        @contextmanager
        def step(
            self, description: str, total: int | None = None, *, unit: str = "bytes"
        ) -> Iterator[Advance]:
            advances: list[int] = []
            yield advances.append
            steps.append((unit, total, sum(advances)))

    verify_export(plan, engine_dir, Recorder())
    assert steps == [("parts", plan.spec.num_layers + 2, plan.spec.num_layers + 2)]


@pytest.mark.parametrize("target", ["tensorrt", "jetpack6"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_right_export_for_tensorrt_passes_on_onnx_runtime(
    target_dir: Callable[..., Path], checkpoint: Callable[[str], Path], target: str, dtype: str
) -> None:
    model = str(checkpoint("clip-llama-v4-gqa2-full"))
    options = ExportOptions(model=model, keep=0.1, target=target, dtype=dtype)
    errors = verify(make_plan(options, resolve_model(model)), target_dir(target, dtype))
    tolerance = Tolerance.of(options)
    assert 0 < errors["blocks"] < tolerance.block / 3
    assert 0 < errors["vision"] < tolerance.vision / 3


@pytest.mark.parametrize("target", ["tensorrt", "jetpack6"])
def test_a_changed_tensor_of_a_graph_for_tensorrt_is_found(
    target_dir: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    target: str,
) -> None:
    model = str(checkpoint("clip-llama-v4-gqa2-full"))
    options = ExportOptions(model=model, keep=0.1, dtype="fp32", target=target)
    plan = make_plan(options, resolve_model(model))
    copy = Path(shutil.copytree(target_dir(target), tmp_path / "engine"))
    alter(copy / "llm" / "model.onnx", LAYER.format(1) + "self_attn.k_proj.weight", flip_a_sign)
    with pytest.raises(NumericalError, match="decoder block 1"):
        verify(plan, copy)


def test_an_onnx_runtime_too_old_for_the_dialect_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.24.1")
    check_onnxruntime(get_dialect("delta"))
    with pytest.raises(UnsupportedError, match=r"(?s)1\.25 or newer.*1\.24\.1.*--no-verify"):
        check_onnxruntime(get_dialect("onnx"))
