"""The kernels against numpy: emulated on the host, and on a GPU (`-m gpu`)."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from divprune.plugins.compile_ptx import main
from divprune.plugins.nvrtc import Nvrtc
from divprune.runtime.backends.cuda.buffers import DeviceBuffer
from divprune.runtime.backends.cuda.kernels import BEST_BYTES, PTX_FILE, SOURCE_FILE, LoadedKernels
from divprune.runtime.errors import BackendError

EMULATOR = Path(__file__).parents[3] / "plugins" / "block_emulator.h"
BEST = np.dtype([("index", np.int32), ("value", np.float32)])
SCHEDULES = 5


class Emulated:
    """The kernels compiled for the host."""

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux" or (compiler := shutil.which("g++")) is None:
            pytest.skip("emulating the kernels needs Linux and g++")
        library = folder / "libkernels.so"
        source = Path(__file__).with_name("emulated_kernels.cpp")
        (folder / "kernels.cu").write_text(SOURCE_FILE.read_text())
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE"]
        headers = ["-include", EMULATOR, "-include", folder / "kernels.cu"]
        subprocess.run([compiler, *flags, *headers, source, "-o", library], check=True)
        self._library = ctypes.CDLL(str(library))

    def largest(self, values: np.ndarray) -> np.ndarray:
        best = np.zeros(SCHEDULES, BEST)
        for schedule in range(SCHEDULES):
            out = ctypes.c_void_p(best[schedule:].ctypes.data)
            data, count = ctypes.c_void_p(values.ctypes.data), len(values)
            seed = ctypes.c_uint64(schedule)
            assert self._library.emulate_largest_logit(data, count, out, 1024, seed) == 0
        assert all(best.tobytes()[:8] == one.tobytes() for one in best)
        return best[0]

    def broken(self, rows: np.ndarray) -> np.ndarray:
        out = np.full(len(rows), -1, np.int32)
        places = ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(out.ctypes.data)
        bits, shape = 8 * rows.itemsize, rows.shape
        self._library.emulate_broken_rows(
            places[0], bits, *shape, places[1], 128, ctypes.c_uint64(3)
        )
        return out


class OnGpu:
    """The shipped PTX on the first GPU."""

    def __init__(self, gpu) -> None:
        self._cuda, driver = gpu
        self._stream = self._cuda.make_stream()
        self._kernels = LoadedKernels(driver)

    def largest(self, values: np.ndarray) -> np.ndarray:
        logits, best = self._put(values), DeviceBuffer(self._cuda, BEST_BYTES)
        self._kernels.largest_logit(logits.address, len(values), best.address, int(self._stream))
        return self._get(best, np.zeros(1, BEST))[0]

    def broken(self, rows: np.ndarray) -> np.ndarray:
        data, out = self._put(rows), DeviceBuffer(self._cuda, 4 * len(rows))
        self._kernels.broken_rows(
            data.address, *rows.shape, rows.itemsize, out.address, int(self._stream)
        )
        return self._get(out, np.full(len(rows), -1, np.int32))

    def _put(self, array: np.ndarray) -> DeviceBuffer:
        buffer = DeviceBuffer(self._cuda, array.nbytes)
        self._cuda.upload(buffer.address, array.ctypes.data, array.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return buffer

    def _get(self, buffer: DeviceBuffer, out: np.ndarray) -> np.ndarray:
        self._cuda.download(out.ctypes.data, buffer.address, out.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return out


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Emulated | OnGpu:
    if request.param == "gpu":
        return OnGpu(request.getfixturevalue("gpu"))
    return request.getfixturevalue("emulated")


def check_largest(kernels: Emulated | OnGpu, values: np.ndarray) -> None:
    found, index = kernels.largest(values), int(np.argmax(values))
    assert found["index"] == index
    np.testing.assert_array_equal(found["value"], values[index])


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 480, 1023, 1024, 1025, 32064])
def test_the_largest_is_found_wherever_it_is(kernels, count):
    rng = np.random.default_rng(count)
    values = rng.standard_normal(count).astype(np.float32)
    check_largest(kernels, values)
    for place in {0, count // 2, count - 1}:
        one = values.copy()
        one[place] = 99
        check_largest(kernels, one)


@pytest.mark.parametrize("values", [[0.0, -0.0], [-0.0, 0.0], [1e-45, 0.0], [-1e-45, -0.0]])
def test_zeros_and_denormals_are_ordered_as_numpy_does(kernels, values):
    check_largest(kernels, np.array(values, np.float32))


def test_ties_go_to_the_lowest_index(kernels):
    rng = np.random.default_rng(0)
    for _ in range(10):
        check_largest(kernels, rng.integers(-3, 4, 3000).astype(np.float32))
    check_largest(kernels, np.full(2048, -7.5, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_reported(kernels, value):
    values = np.random.default_rng(1).standard_normal(2500).astype(np.float32)
    values[[1700, 2100]] = value
    check_largest(kernels, values)
    check_largest(kernels, np.full(40, value, np.float32))


def test_nan_is_larger_than_infinity(kernels):
    check_largest(kernels, np.array([1, np.inf, np.nan, 2], np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("width", [1, 64, 127, 4096])
def test_rows_with_anything_not_finite_are_marked(kernels, dtype, width):
    rows = np.random.default_rng(2).standard_normal((9, width)).astype(dtype)
    rows[1] = np.finfo(dtype).max
    rows[2, 0], rows[4, width // 2], rows[8, -1] = np.nan, np.inf, -np.inf
    expected = ~np.isfinite(rows).all(axis=1)
    np.testing.assert_array_equal(kernels.broken(rows), expected)


def test_the_shipped_ptx_is_what_the_source_compiles_to():
    try:
        Nvrtc()
    except BackendError as error:
        pytest.skip(f"{error.what}: {error.fix}")
    assert main(["--source", str(SOURCE_FILE), "--check"]) == 0


def test_the_shipped_ptx_is_of_this_source_and_what_jetpack_6_takes():
    ptx = PTX_FILE.read_text()
    digest = hashlib.sha256(SOURCE_FILE.read_bytes()).hexdigest()
    assert ptx.startswith(f"// kernels.cu, sha256 {digest}\n")
    assert ".version 8.5\n" in ptx
    assert ".target sm_80\n" in ptx
    entries = dict(re.findall(r"\.visible \.entry (\w+)\((.*?)\)", ptx, re.DOTALL))
    assert set(entries) == {"largest_logit", "broken_rows_16", "broken_rows_32"}
    for parameters in entries.values():
        assert re.findall(r"\.param \.(\w+)", parameters) == ["u64", "u32", "u64"]
    assert ".local" not in ptx
