"""ONNX files with their weights beside them, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from divprune.export.graphs.files import describe_graph, save_graph
from divprune.export.graphs.progress import Advance, Progress
from divprune.export.graphs.writer import GraphWriter
from divprune.runtime.directory.manifest import GraphSpec, TensorSpec

INLINE = 16 * 1024


class Recorder(Progress):
    """A progress display that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None, int]] = []

    @contextmanager
    def step(
        self, description: str, total: int | None = None, *, unit: str = "bytes"
    ) -> Iterator[Advance]:
        advances: list[int] = []
        yield advances.append
        self.steps.append((description, total, sum(advances)))


class Weights:
    """Tensors that count how often they are read, and how many are held at once."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def add(self, op: GraphWriter, name: str, size: int) -> ir.Value:
        def read() -> np.ndarray:
            self.reads.append(name)
            return np.full((1, size), 0.5, np.float32)

        return op.weight(name, ir.DataType.FLOAT, (1, size), read)


def model(weights: Weights, *sizes: int) -> ir.Model:
    """x [1, "n"] in, the sums of x and one weight a size out."""
    op = GraphWriter()
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(1, "n"))
    outputs = []
    for number, size in enumerate(sizes):
        weight = weights.add(op, f"weight_{number}", size)
        total = op("ReduceSum", weight, op.constant(np.array([1]), "axis"), keepdims=1)
        output = op("Add", x, total)
        output.name, output.dtype = f"y_{number}", ir.DataType.FLOAT
        output.shape = ir.Shape((1, "n"))
        outputs.append(output)
    graph = ir.Graph(
        [x], outputs, nodes=op.nodes, initializers=op.initializers, opset_imports={"": 20}
    )
    return ir.Model(graph, ir_version=10)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_large_tensors_lie_beside_the_graph_and_small_ones_inside(tmp_path: Path) -> None:
    weights = Weights()
    path = tmp_path / "llm" / "model.onnx"
    written = model(weights, 8, INLINE // 4 * 2)
    assert weights.reads == []
    save_graph(written, path, "writing", Progress(bars=False))

    assert names(path.parent) == ["model.onnx", "model.onnx.data"]
    assert (path.parent / "model.onnx.data").stat().st_size == 2 * INLINE
    assert path.stat().st_size < INLINE
    stored = onnx.load(path, load_external_data=False).graph.initializer
    outside = [tensor.name for tensor in stored if tensor.external_data]
    assert outside == ["weight_1"]
    assert sorted(weights.reads) == ["weight_0", "weight_1"], "each weight is read once"

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = session.run(None, {"x": np.array([[1.0, 2.0]], np.float32)})
    for size, result in zip((8, INLINE // 2), results, strict=True):
        np.testing.assert_array_equal(result, [[1 + size / 2, 2 + size / 2]])


def test_a_graph_without_large_tensors_is_one_file(tmp_path: Path) -> None:
    save_graph(model(Weights(), 8), tmp_path / "model.onnx", "writing", Progress(bars=False))
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("sizes", [(8, INLINE // 2, INLINE), (8,)])
def test_progress_ends_at_its_total(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    progress = Recorder()
    save_graph(model(Weights(), *sizes), tmp_path / "model.onnx", "writing it", progress)
    ((description, total, done),) = progress.steps
    assert description == "writing it"
    assert done == total


def test_the_description_has_names_types_and_shapes() -> None:
    written = model(Weights(), 8)
    tensor = TensorSpec("x", "float32", (1, "n"))
    assert describe_graph(written, "llm/model.onnx") == GraphSpec(
        path="llm/model.onnx",
        opset=20,
        inputs=(tensor,),
        outputs=(TensorSpec("y_0", "float32", (1, "n")),),
    )
