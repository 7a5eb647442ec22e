from __future__ import annotations

import ctypes

import pytest

from divprune.plugins import driver as driver_module
from divprune.plugins.driver import Driver, GreedyMaxMinKernel
from divprune.plugins.node import Launch
from divprune.runtime.errors import BackendError, OptionError
from tests.plugins.emulator import EmulatedDriver


def test_machine_without_a_driver_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(BackendError, match=r"(?s)no NVIDIA driver.*libcuda\.so\.1"):
            Driver()
    else:
        pytest.skip("this machine has an NVIDIA driver")


def test_error_of_the_driver_is_said_in_its_words(
    emulated_driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "plan_launch", lambda n, k: Launch("no_such_entry", 32))
    kernel = GreedyMaxMinKernel(emulated_driver)
    with pytest.raises(BackendError, match=r"(?s)cuModuleGetFunction.*symbol not found \(500\)"):
        kernel.launch(0, 0, 0, 0, num_tokens=1, num_kept=1)


def test_ptx_that_the_driver_does_not_know_is_refused(
    emulated_driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "read_ptx", lambda: ".version 9.9\n")
    with pytest.raises(BackendError, match="cuModuleLoadData failed"):
        GreedyMaxMinKernel(emulated_driver)


def test_counts_are_checked_before_anything_is_launched(emulated_driver: EmulatedDriver) -> None:
    with pytest.raises(OptionError, match="cannot be kept"):
        GreedyMaxMinKernel(emulated_driver).launch(0, 0, 0, 0, num_tokens=5, num_kept=6)


def test_context_that_is_current_has_a_handle(emulated_driver: EmulatedDriver) -> None:
    assert emulated_driver.current_context()
