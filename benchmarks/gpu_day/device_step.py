"""runtime/backends/cuda as the TensorRT backend uses it: buffers, a recorded step, 2-D copies."""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace

import numpy as np

from benchmarks.gpu_day.report import DEVICE, save

VOCABULARY = 32064


def device() -> None:
    cuda, kernels = _open()
    stream = cuda.make_stream()
    save("device", free_memory=cuda.free_memory(), integrated=cuda._integrated)
    _recorded_step(cuda, kernels, stream)
    _cache(cuda, stream)
    _memory(cuda)
    save("device", all="right")


def _open():
    if DEVICE == "cpu":
        from divprune.runtime.backends.cuda.cuda import Cuda
        from tests.runtime.fake_cuda import FakeCuda, FakeKernels

        fake = FakeCuda()
        return Cuda(fake), FakeKernels(fake)
    from divprune.plugins.driver import Driver
    from divprune.runtime.backends.cuda.cuda import open_cuda
    from divprune.runtime.backends.cuda.kernels import LoadedKernels

    cuda = open_cuda()
    return cuda, LoadedKernels(Driver())


class _Engine:
    def is_capturable(self, profile: int, number: int = 0) -> bool:
        return True


def _recorded_step(cuda, kernels, stream) -> None:
    from divprune.runtime.backends.cuda.buffers import DeviceBuffer, HostBuffer
    from divprune.runtime.backends.cuda.kernels import BEST_BYTES
    from divprune.runtime.backends.tensorrt.step import RecordedStep

    size = VOCABULARY * 4
    staged, place = HostBuffer(cuda, size), DeviceBuffer(cuda, size)
    logits, best = DeviceBuffer(cuda, size), DeviceBuffer(cuda, BEST_BYTES)
    best_host = HostBuffer(cuda, BEST_BYTES)
    scratch = SimpleNamespace(reserve=lambda num_bytes, stream: "scratch")
    session = SimpleNamespace(cuda=cuda, stream=stream, scratch=scratch)
    step, engine, enqueued = RecordedStep(session, [0]), _Engine(), []

    def enqueue() -> None:
        enqueued.append(1)
        cuda.upload(place.address, staged.address, size, stream)
        cuda.copy(logits.address, place.address, size, stream)
        kernels.largest_logit(logits.address, VOCABULARY, best.address, int(stream))
        cuda.download(best_host.address, best.address, BEST_BYTES, stream)

    times = []
    for number in range(30):
        values = np.random.default_rng(number).standard_normal(VOCABULARY).astype(np.float32)
        staged.array((VOCABULARY,), np.float32)[:] = values
        begin = time.perf_counter()
        step.run([engine], [{"logits": logits.address}], enqueue)
        cuda.synchronize(stream)
        times.append((time.perf_counter() - begin) * 1e6)
        found = best_host.array((1,), np.int32)[0]
        assert int(found) == int(np.argmax(values)), (number, found)
    recorded = step._graph is not None
    step._forget()
    save("device", recorded_as_cuda_graph=recorded, step_us_p50=statistics.median(times[5:]))
    assert recorded, "the stream was not recorded"
    assert len(enqueued) == 2, enqueued


def _cache(cuda, stream) -> None:
    """New rows of a delta graph land in their slots; clearing leaves the others alone."""
    from divprune.runtime.backends.tensorrt.cache import DeviceCache
    from divprune.runtime.directory.manifest import KVCacheSpec

    rows, shape = 5, (8, 64, 128)  # heads, slots, head dim
    cache = DeviceCache(cuda, KVCacheSpec(4, 8, 128, "float16"), 64, "delta", stream)
    addresses = cache.addresses(rows)
    for number, name in enumerate(n for n in addresses if n.startswith("new_")):
        values = np.full((8, rows, 128), number + 1, np.float16)
        cuda.upload(addresses[name], values.ctypes.data, values.nbytes, stream)
        cuda.synchronize(stream)
    cache.commit(7, rows)
    for cleared in (0, 9):
        if cleared:
            cache.clear(cleared)
        for number, name in enumerate(n for n in addresses if n.startswith("past_")):
            out = np.empty(shape, np.float16)
            cuda.download(out.ctypes.data, addresses[name], out.nbytes, stream)
            cuda.synchronize(stream)
            first = max(7, cleared)
            assert (out[:, first:12] == number + 1).all(), name
            assert not out[:, :first].any(), name
            assert not out[:, 12:].any(), name
    save("device", cache_2d_copies="right", cache_clearing="right")


def _memory(cuda) -> None:
    from divprune.runtime.backends.cuda.buffers import BufferPool, DeviceBuffer
    from divprune.runtime.errors import BackendError

    class User:
        pass

    pool, user = BufferPool(cuda, 1 << 20), User()
    first = pool.take(user).address
    del user
    assert pool.take(User()).address == first
    before = cuda.free_memory()
    big = DeviceBuffer(cuda, 1 << 28)
    middle = cuda.free_memory()
    del big
    save("device", pool="right", freed=[before - middle, before - cuda.free_memory()])
    try:
        cuda.malloc(1 << 50)
    except BackendError as error:
        save("device", out_of_memory=error.what)
    else:
        raise AssertionError("2^50 bytes were to be had")
