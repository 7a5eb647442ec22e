from __future__ import annotations

import numpy as np
import pytest

from divprune.runtime.backends.cuda.cuda import Cuda
from divprune.runtime.backends.tensorrt.cache import Copy2D, DeviceCache, slot_copies
from divprune.runtime.directory.manifest import KVCacheSpec
from tests.runtime.fake_cuda import FakeCuda


def written(spec: KVCacheSpec, capacity: int, steps: list[int], cuda: Cuda) -> list[np.ndarray]:
    """Caches [heads, capacity, dim] of a delta graph that has given ``steps`` rows at a time."""
    stream, filled = cuda.make_stream(), 0
    dtype = np.dtype(spec.dtype)
    cache = DeviceCache(cuda, spec, capacity, "delta", stream)
    for rows in steps:
        addresses = cache.addresses(rows)
        for place in range(2 * spec.num_layers):
            name = f"{('key', 'value')[place % 2]}_{place // 2}"
            shape = (spec.num_kv_heads, rows, spec.head_dim)
            values = np.empty(shape, dtype)
            values[:] = np.arange(filled, filled + rows)[:, np.newaxis] + 1
            values += 20 * np.arange(spec.num_kv_heads)[:, np.newaxis, np.newaxis] + 200 * place
            cuda.upload(addresses[f"new_{name}"], values.ctypes.data, values.nbytes, stream)
            cuda.synchronize(stream)
        cache.commit(filled, rows)
        filled += rows
    out = []
    for place in range(2 * spec.num_layers):
        name = f"past_{('key', 'value')[place % 2]}_{place // 2}"
        values = np.empty((spec.num_kv_heads, capacity, spec.head_dim), dtype)
        cuda.download(values.ctypes.data, cache.addresses(1)[name], values.nbytes, stream)
        cuda.synchronize(stream)
        out.append(values)
    return out


@pytest.mark.parametrize("device", ["fake", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "spec, steps",
    [
        (KVCacheSpec(3, 2, 128, "float16"), [5, 1, 1, 4]),  # one strided copy
        (KVCacheSpec(2, 3, 24, "float32"), [5, 1, 1, 4]),  # tensors with gaps between them
        (KVCacheSpec(1, 1, 8, "float16"), [1, 10]),
    ],
)
def test_new_rows_land_in_the_next_slots_of_every_head(device, spec, steps, request):
    if device == "gpu":
        from divprune.runtime.backends.cuda.cuda import open_cuda
        from divprune.runtime.errors import BackendError

        try:
            cuda = open_cuda()
        except BackendError as error:
            pytest.skip(f"no NVIDIA GPU here: {error.what}")
    else:
        cuda = Cuda(FakeCuda())
    total = sum(steps)
    for place, cache in enumerate(written(spec, 16, steps, cuda)):
        for head in range(spec.num_kv_heads):
            expected = np.arange(1, total + 1) + 20 * head + 200 * place
            np.testing.assert_array_equal(cache[head, :total, 0], expected)
            np.testing.assert_array_equal(cache[head, :total, -1], expected)
        assert not cache[:, total:].any()


def test_without_gaps_one_copy_writes_all_layers():
    # LLaVA-1.5-7B: 32 layers, 32 heads, rows of 128 float16
    assert slot_copies(64, 32, 2048, 256, filled=90, rows=1) == [
        Copy2D(90 * 256, 2048 * 256, 0, 256, 256, 64 * 32)
    ]


def test_in_place_graphs_get_one_address_for_past_and_present():
    cuda = Cuda(FakeCuda())
    stream = cuda.make_stream()
    cache = DeviceCache(cuda, KVCacheSpec(2, 1, 8, "float32"), 16, "onnx", stream)
    addresses = cache.addresses(1)
    assert len(addresses) == 8
    for name in ("key_0", "value_0", "key_1", "value_1"):
        assert addresses[f"past_{name}"] == addresses[f"present_{name}"]
        assert addresses[f"past_{name}"] % 256 == 0
    assert len(set(addresses.values())) == 4


@pytest.mark.parametrize("dialect", ["onnx", "delta"])
def test_slots_are_zero_from_the_start_and_after_clearing(dialect):
    """Fresh memory of the fake is NaN."""
    cuda = Cuda(FakeCuda())
    stream = cuda.make_stream()
    cache = DeviceCache(cuda, KVCacheSpec(1, 1, 8, "float32"), 16, dialect, stream)
    slots = np.full((16, 8), np.nan, np.float32)
    address = cache.addresses(1)["past_value_0"]

    def read() -> np.ndarray:
        found = np.ones_like(slots)
        cuda.download(found.ctypes.data, address, found.nbytes, stream)
        cuda.synchronize(stream)
        return found

    assert not read().any()
    cuda.upload(address, slots.ctypes.data, slots.nbytes, stream)
    assert np.isnan(read()).all()
    cache.clear(16)
    assert not read().any()


@pytest.mark.parametrize(
    "spec, pieces",
    [
        (KVCacheSpec(3, 2, 128, "float16"), 1),  # no gaps between tensors
        (KVCacheSpec(2, 3, 24, "float32"), 4),
    ],
)
def test_only_the_slots_that_were_filled_are_cleared(spec, pieces):
    fake = FakeCuda()
    cuda = Cuda(fake)
    stream = cuda.make_stream()
    cache = DeviceCache(cuda, spec, 15, "onnx", stream)
    dtype = np.dtype(spec.dtype)
    full = np.ones((spec.num_kv_heads, 15, spec.head_dim), dtype)
    addresses = [cache.addresses(1)[f"past_{part}_0"] for part in ("key", "value")]
    for address in addresses:
        cuda.upload(address, full.ctypes.data, full.nbytes, stream)
    cache.clear(4)
    for address in addresses:
        found = np.empty_like(full)
        cuda.download(found.ctypes.data, address, found.nbytes, stream)
        cuda.synchronize(stream)
        assert not found[:, :4].any()
        assert found[:, 4:].all()
    cleared = [call for call in fake.calls if call.startswith("Memset2D")]
    rows = 2 * spec.num_layers * spec.num_kv_heads * 4
    assert len(cleared) == pieces
    assert sum(int(call.split()[1]) for call in cleared) == rows * spec.head_dim * dtype.itemsize
