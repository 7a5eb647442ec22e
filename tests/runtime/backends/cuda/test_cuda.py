from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from divprune.runtime.backends.cuda import cuda as cuda_module
from divprune.runtime.backends.cuda.buffers import BufferPool, DeviceBuffer, HostBuffer, align
from divprune.runtime.backends.cuda.cuda import Cuda, open_cuda
from divprune.runtime.errors import BackendError
from tests.runtime.fake_cuda import FakeCuda


class User:
    """Somebody who needs a buffer."""


def test_what_is_uploaded_comes_back(cuda):
    stream = cuda.make_stream()
    host, device = HostBuffer(cuda, 4096), DeviceBuffer(cuda, 8192)
    values = host.array((1024,), np.float32)
    values[:] = np.arange(1024)
    cuda.upload(device.address, host.address, 4096, stream)
    cuda.copy(device.address + 4096, device.address, 4096, stream)
    out = np.zeros(1024, np.float32)
    cuda.download(out.ctypes.data, device.address + 4096, 4096, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(out, np.arange(1024))
    cuda.zero(device.address, 8192, stream)
    cuda.download(out.ctypes.data, device.address, 4096, stream)
    cuda.synchronize(stream)
    assert not out.any()


def test_a_strided_copy_moves_a_rectangle(cuda):
    stream = cuda.make_stream()
    source = np.arange(12, dtype=np.int64).reshape(3, 4)
    target = np.zeros((3, 10), np.int64)
    buffers = [DeviceBuffer(cuda, array.nbytes) for array in (source, target)]
    for buffer, array in zip(buffers, (source, target), strict=True):
        cuda.upload(buffer.address, array.ctypes.data, array.nbytes, stream)
    cuda.copy_2d(buffers[1].address + 16, 80, buffers[0].address, 32, 32, 3, stream)
    cuda.download(target.ctypes.data, buffers[1].address, target.nbytes, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target[:, 2:6], source)
    assert not target[:, :2].any()
    assert not target[:, 6:].any()


def test_a_recording_runs_again_on_what_is_there_then(cuda):
    stream = cuda.make_stream()
    host, device = HostBuffer(cuda, 8), DeviceBuffer(cuda, 8)
    back = HostBuffer(cuda, 8)
    value, result = host.array((1,), np.int64), back.array((1,), np.int64)
    cuda.begin_capture(stream)
    cuda.upload(device.address, host.address, 8, stream)
    cuda.download(back.address, device.address, 8, stream)
    graph = cuda.end_capture(stream)
    for number in (3, 4):
        value[0] = number
        cuda.launch_graph(graph, stream)
        cuda.synchronize(stream)
        assert result[0] == number
    cuda.destroy_graph(graph)


def test_a_recording_that_cannot_be_made_launchable_is_given_back():
    fake = FakeCuda()
    cuda, fake.instantiate_fails = Cuda(fake), True
    stream = cuda.make_stream()
    cuda.begin_capture(stream)
    with pytest.raises(BackendError):
        cuda.end_capture(stream)
    assert fake.graphs == 0


@pytest.mark.parametrize("fails", [False, True])
def test_an_abandoned_recording_leaves_nothing_and_the_stream_works(fails):
    fake = FakeCuda()
    cuda, fake.capture_fails = Cuda(fake), fails
    stream = cuda.make_stream()
    cuda.begin_capture(stream)
    cuda.abandon_capture(stream)
    assert fake.graphs == 0
    cuda.synchronize(stream)


@pytest.mark.parametrize(
    "integrated, text, expected",
    [
        (True, "MemTotal: 9000 kB\nMemFree: 5 kB\nMemAvailable:    4000 kB\n", 4000 * 1024),
        (True, "MemTotal: 9000 kB\n", 12345),
        (False, "MemAvailable: 4000 kB\n", 12345),
    ],
)
def test_memory_that_the_host_shares_counts_with_its_file_cache(
    tmp_path, monkeypatch, integrated, text, expected
):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(text)
    monkeypatch.setattr(cuda_module, "_MEMINFO", meminfo)
    cuda = Cuda(FakeCuda(memory_bytes=12345), integrated=integrated)
    assert cuda.free_memory() == expected


@pytest.mark.parametrize("integrated", [0, 1])
def test_cuda_says_whether_it_shares_the_hosts_memory(monkeypatch, integrated):
    fake = FakeCuda()
    fake.integrated = integrated
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    assert open_cuda()._integrated == bool(integrated)


def test_memory_is_aligned_and_counted(cuda):
    before = cuda.free_memory()
    buffer = DeviceBuffer(cuda, 64 << 20)
    assert buffer.address % 256 == 0
    assert cuda.free_memory() < before
    buffer.free()
    assert cuda.free_memory() >= before - (1 << 20)


def test_a_pool_hands_a_buffer_on_when_its_user_is_gone(cuda):
    pool, one, other = BufferPool(cuda, 100), User(), User()
    first, second = pool.take(one).address, pool.take(other).address
    assert first != second
    del one
    gc.collect()
    assert pool.take(User()).address == first


def test_views_of_a_host_buffer_stay_within_it():
    buffer = HostBuffer(Cuda(FakeCuda()), 16)
    assert buffer.array((2,), np.float32, 8).shape == (2,)
    with pytest.raises(ValueError, match="20 bytes of a buffer of 16"):
        buffer.array((3,), np.float32, 8)


@pytest.mark.parametrize("size, aligned", [(0, 0), (1, 256), (256, 256), (257, 512)])
def test_sizes_are_rounded_up(size, aligned):
    assert align(size) == aligned


def test_errors_are_said_in_cudas_words():
    cuda = Cuda(FakeCuda(memory_bytes=100))
    with pytest.raises(BackendError, match=r"(?s)the GPU is out of memory.*--max-seq-len"):
        cuda.malloc(101)
    with pytest.raises(BackendError, match=r"(?s)cudaFree failed.*invalid argument \(1\)"):
        cuda.free(5)


def test_missing_cuda_python_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match="cuda-python"):
        open_cuda()


def test_cuda_python_that_finds_no_driver_is_named(monkeypatch):
    """What cuda-python 12.6.2 raises on a machine without libcuda."""

    def no_driver(device: int) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so")

    fake = FakeCuda()
    monkeypatch.setattr(fake, "cudaSetDevice", no_driver)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    with pytest.raises(BackendError, match=r"(?s)no NVIDIA driver.*libcuda"):
        open_cuda()
