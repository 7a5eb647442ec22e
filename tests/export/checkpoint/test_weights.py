"""Checkpoint tensors on their way into a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.graphs.writer import GraphWriter
from divprune.runtime.errors import CheckpointError


class Tensors:
    """As much of a checkpoint as a WeightSource reads."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.reads = 0

    def read(self, name: str) -> torch.Tensor:
        self.reads += 1
        return self.tensors[name]

    def source(self, dtype: str, max_bytes: int | None = None) -> WeightSource:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return WeightSource(self, shapes, dtype, max_bytes=max_bytes)  # type: ignore[arg-type]


def test_matrix_is_transposed_and_read_only_when_its_bytes_are_asked_for() -> None:
    tensors = Tensors(w=torch.arange(6.0).reshape(2, 3))
    (value,) = tensors.source("fp32").matrices(GraphWriter(), "w")
    assert tensors.reads == 0
    assert list(value.shape) == [3, 2]
    np.testing.assert_array_equal(value.const_value.numpy(), [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("max_bytes", "widths"),
    [(7 * 3 * 2, [7]), (7 * 3 * 2 - 1, [3, 4]), (12, [1, 2, 2, 2]), (1, [1] * 7)],
)
def test_a_matrix_above_the_limit_is_cut_between_its_columns(
    max_bytes: int, widths: list[int]
) -> None:
    tensors = Tensors(w=torch.arange(21.0).reshape(7, 3))
    values = tensors.source("fp16", max_bytes).matrices(GraphWriter(), "w")
    arrays = [value.const_value.numpy() for value in values]
    assert [array.shape for array in arrays] == [(3, width) for width in widths]
    np.testing.assert_array_equal(np.concatenate(arrays, axis=1), tensors.tensors["w"].numpy().T)
    assert len({value.name for value in values}) == len(values)


def test_bf16_becomes_fp16_when_it_fits() -> None:
    source = Tensors(w=torch.tensor([1.5, -65504.0], dtype=torch.bfloat16) / 2).source("fp16")
    assert source.dtype == ir.DataType.FLOAT16
    assert source.read("w").dtype == np.float16


def test_bf16_that_overflows_fp16_is_refused_and_fp32_is_advised() -> None:
    source = Tensors(w=torch.tensor([1e5], dtype=torch.bfloat16)).source("fp16")
    with pytest.raises(CheckpointError, match=r"(?s)w overflows fp16.*bfloat16.*--dtype fp32"):
        source.read("w")


def test_the_same_weight_is_accepted_in_fp32() -> None:
    source = Tensors(w=torch.tensor([1e5], dtype=torch.bfloat16)).source("fp32")
    assert source.read("w")[0] == pytest.approx(1e5, rel=1e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_or_inf_is_refused(bad: float) -> None:
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        Tensors(w=torch.tensor([1.0, bad])).source("fp32").read("w")


def test_unused_lists_what_no_graph_asked_for() -> None:
    source = Tensors(a=torch.ones(2), b=torch.ones(2)).source("fp32")
    source.vector(GraphWriter(), "a")
    assert source.unused(["a", "b"]) == ["b"]
