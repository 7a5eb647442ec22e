from __future__ import annotations

import shutil
import subprocess

import pytest

from divprune.runtime.backends.cuda.cuda_device import CudaDevice, find_cuda_device

DRIVER = """
int cuInit(unsigned f) { return RESULT; }
int cuDeviceGet(int *d, int n) { *d = 5; return n; }
int cuDeviceGetName(char *t, int n, int d) { t[0] = 'O'; t[1] = 'r'; t[2] = 0; return d != 5; }
int cuDeviceTotalMem_v2(unsigned long *b, int d) { *b = 6UL << 30; return d != 5; }
int cuDeviceGetAttribute(int *v, int a, int d) {
    *v = a == 75 ? 8 : a == 76 ? 7 : a == 18 ? 1 : -1;
    return d != 5;
}
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    "result, expected",
    [(0, CudaDevice("Or", "8.7", 6 << 30, "12.6", integrated=True)), (100, None)],
)
def test_the_driver_is_asked_through_its_c_interface(tmp_path, result, expected):
    source, library = tmp_path / "driver.c", tmp_path / "libfake.so"
    source.write_text(DRIVER.replace("RESULT", str(result)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert find_cuda_device((str(library),)) == expected


def test_without_a_driver_there_is_no_device():
    assert find_cuda_device(("libnosuchdriver.so.1",)) is None


def test_a_library_that_is_no_driver_is_no_device():
    assert find_cuda_device(("libc.so.6",)) is None
