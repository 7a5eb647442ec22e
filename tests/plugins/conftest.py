"""The kernel on every device there is: emulated on the host, and a GPU with `-m gpu`."""

from __future__ import annotations

import pytest

from divprune.plugins.driver import Driver
from divprune.runtime.errors import BackendError
from tests.plugins.emulator import EmulatedDriver
from tests.plugins.kernel_runner import KernelRunner


@pytest.fixture(scope="session")
def emulated_driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDriver:
    return EmulatedDriver(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def gpu_runner() -> KernelRunner:
    try:
        return KernelRunner(Driver())
    except BackendError as error:
        pytest.skip(f"no NVIDIA GPU here: {error.found}")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def runner(request: pytest.FixtureRequest) -> KernelRunner:
    if request.param == "gpu":
        return request.getfixturevalue("gpu_runner")
    return KernelRunner(request.getfixturevalue("emulated_driver"))
