"""Each spelling of a quantised linear layer gives x times the dequantised weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from divprune.export.checkpoint.quantization.dequantize_linear import dequantized_matmul
from divprune.export.checkpoint.quantization.dynamic_int8 import dynamic_int8_matmul
from divprune.export.checkpoint.quantization.matmul_nbits import matmul_nbits
from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix
from divprune.export.checkpoint.quantization.quantize import quantize
from divprune.runtime.directory.quant_scheme import INT8
from tests.export.checkpoint.quantization.layers import (
    DTYPES,
    random_matrix,
    relative_error,
    run_layer,
)

ROUNDING = {"fp32": 1e-6, "fp16": 1e-3}
X = np.random.default_rng(4).standard_normal((1, 5, 192)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("zeros", [None, 15, 16])
def test_matmul_nbits_is_exact_at_level_0_and_near_at_4(
    rows: int, dtype: str, block: int, zeros: int | None
) -> None:
    matrix = random_matrix((40, 192), block, zeros=zeros, dtype=dtype)
    expected = X[:, :rows] @ matrix.int4().dequantize().T
    for level, tolerance in ((0, ROUNDING[dtype]), (4, 2e-2)):
        found = run_layer(
            lambda op, x, level=level: matmul_nbits(op, x, matrix, DTYPES[dtype], "y", level),
            X[:, :rows],
            dtype,
        )
        assert relative_error(found, expected) < tolerance


def test_an_odd_number_of_groups_ends_in_half_a_byte_of_zero_points() -> None:
    matrix = random_matrix((7, 96), 32, zeros=15)
    x = X[..., :96]
    found = run_layer(lambda op, x: matmul_nbits(op, x, matrix, DTYPES["fp32"], "y", 0), x, "fp32")
    assert relative_error(found, x @ matrix.int4().dequantize().T) < 1e-6


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("rows", [40, 7])
@pytest.mark.parametrize("zeros", [None, 15, 16])
def test_blocked_dequantize_linear_is_exact_with_any_zero_point(
    dtype: str, rows: int, zeros: int | None
) -> None:
    """Outputs of an odd number share bytes between rows of the transposed codes."""
    matrix = random_matrix((rows, 192), 32, zeros=zeros, dtype=dtype)
    found = run_layer(lambda op, x: dequantized_matmul(op, x, matrix, DTYPES[dtype], "y"), X, dtype)
    tolerance = 2e-6 if dtype == "fp32" else 3e-3
    assert relative_error(found, X @ matrix.int4().dequantize().T) < tolerance


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_dynamic_int8_is_off_by_what_eight_bits_cost(dtype: str) -> None:
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(0))
    numbers = quantize(weight, INT8, "rtn", np.dtype(np.float32))
    matrix = QuantizedMatrix("weight", (24, 192), INT8, lambda: numbers, max_zero=0)
    found = run_layer(
        lambda op, x: dynamic_int8_matmul(op, x, matrix, DTYPES[dtype], "y"), X, dtype
    )
    assert 1e-4 < relative_error(found, X @ weight.numpy().T) < 2e-2


def test_dynamic_int8_gives_each_row_a_scale_of_its_own() -> None:
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(0))
    numbers = quantize(weight, INT8, "rtn", np.dtype(np.float32))
    matrix = QuantizedMatrix("weight", (24, 192), INT8, lambda: numbers, max_zero=0)
    sizes = np.array([1e4, 1, 1e-4, 0], np.float32)
    x = np.random.default_rng(0).standard_normal((1, 4, 192)).astype(np.float32) * sizes[:, None]
    dtype = DTYPES["fp32"]
    found = run_layer(lambda op, x: dynamic_int8_matmul(op, x, matrix, dtype, "y"), x, "fp32")
    exact = x @ weight.numpy().T
    for row in range(3):
        assert relative_error(found[:, row], exact[:, row]) < 2e-2
    assert not found[:, 3].any()
