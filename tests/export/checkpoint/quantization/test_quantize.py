"""Matrices in chunks, and nibbles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from divprune.export.checkpoint.quantization import quantize as quantize_module
from divprune.export.checkpoint.quantization.matrix import Int4Numbers, Int8Numbers
from divprune.export.checkpoint.quantization.packing import pack_nibbles, unpack_nibbles
from divprune.export.checkpoint.quantization.quantize import quantize
from divprune.runtime.directory.quant_scheme import INT8, QuantScheme


@pytest.mark.parametrize("shape", [(6,), (3, 8), (2, 3, 4)])
def test_packed_nibbles_come_back(shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8)
    np.testing.assert_array_equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_the_first_code_is_the_low_half_and_an_odd_last_one_has_a_zero_beside_it() -> None:
    assert pack_nibbles(np.array([1, 2, 3], np.uint8)).tolist() == [0x21, 0x03]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_chunks_change_nothing(
    symmetric: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(37, 128, generator=torch.Generator().manual_seed(0))
    scheme = QuantScheme(4, 64, symmetric)
    whole = quantize(weight, scheme, method, np.dtype(np.float16))
    monkeypatch.setattr(quantize_module, "CHUNK_VALUES", 5 * 128)
    parts = quantize(weight, scheme, method, np.dtype(np.float16))
    assert isinstance(whole, Int4Numbers)
    assert isinstance(parts, Int4Numbers)
    np.testing.assert_array_equal(whole.packed, parts.packed)
    np.testing.assert_array_equal(whole.scales, parts.scales)
    if whole.zeros is not None:
        np.testing.assert_array_equal(whole.zeros, parts.zeros)
    error = np.linalg.norm(whole.dequantize() - weight.numpy()) / np.linalg.norm(weight.numpy())
    assert 0.05 < error < 0.15


def test_bytes_have_one_scale_a_row_and_reach_127() -> None:
    weight = torch.randn(9, 33, generator=torch.Generator().manual_seed(1))
    weight[4] = 0
    numbers = quantize(weight.bfloat16(), INT8, "rtn", np.dtype(np.float16))
    assert isinstance(numbers, Int8Numbers)
    assert (np.abs(numbers.values).max(-1)[np.arange(9) != 4] == 127).all()
    error = np.abs(numbers.dequantize() - weight.bfloat16().float().numpy())
    assert (error <= 0.5001 * numbers.scales[:, None]).all()
    assert (numbers.dequantize()[4] == 0).all()
