from __future__ import annotations

import pytest

from divprune.plugins.driver import Driver
from divprune.runtime.backends.cuda.cuda import Cuda, open_cuda
from divprune.runtime.errors import BackendError
from tests.runtime.fake_cuda import FakeCuda


@pytest.fixture(scope="session")
def gpu() -> tuple[Cuda, Driver]:
    """A GPU; skips where there is none."""
    try:
        return open_cuda(), Driver()
    except BackendError as error:
        pytest.skip(f"no NVIDIA GPU here: {error.what}")


@pytest.fixture(params=["fake", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    """CUDA on host memory, and a GPU with `-m gpu`."""
    if request.param == "gpu":
        return request.getfixturevalue("gpu")[0]
    return Cuda(FakeCuda())
