"""The kernel on every device there is: emulated on the host, and a GPU with `-m gpu`."""

from __future__ import annotations

import pytest

from divprune.plugins.driver import Driver
from divprune.runtime.errors import BackendError
from tests.plugins.emulator import EmulatedDriver, EmulatedManyDriver
from tests.plugins.kernel_runner import KernelRunner
from tests.plugins.lapses import LAPSES
from tests.plugins.many_runner import ManyRunner


@pytest.fixture(scope="session")
def emulated_driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDriver:
    return EmulatedDriver(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def gpu_runner() -> KernelRunner:
    try:
        return KernelRunner(Driver())
    except BackendError as error:
        pytest.skip(f"no NVIDIA GPU here: {error.found}")


@pytest.fixture(scope="session")
def many_driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedManyDriver:
    return EmulatedManyDriver(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="session")
def lapsing_driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedManyDriver:
    return EmulatedManyDriver(tmp_path_factory.mktemp("lapsing"), list(LAPSES.values()))


@pytest.fixture
def lapsing(lapsing_driver: EmulatedManyDriver) -> EmulatedManyDriver:
    """The kernels for many tokens, to be told which part they lack."""
    lapsing_driver.set_schedule(0)
    return lapsing_driver


@pytest.fixture(scope="session")
def many_gpu_runner() -> ManyRunner:
    try:
        return ManyRunner(Driver())
    except BackendError as error:
        pytest.skip(f"no NVIDIA GPU here: {error.found}")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def many_runner(request: pytest.FixtureRequest) -> ManyRunner:
    if request.param == "gpu":
        return request.getfixturevalue("many_gpu_runner")
    driver = request.getfixturevalue("many_driver")
    driver.set_schedule(0)
    return ManyRunner(driver)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def runner(request: pytest.FixtureRequest) -> KernelRunner:
    if request.param == "gpu":
        return request.getfixturevalue("gpu_runner")
    return KernelRunner(request.getfixturevalue("emulated_driver"))
