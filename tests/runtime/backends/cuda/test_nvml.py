from __future__ import annotations

import pytest

from divprune.runtime.backends.cuda.nvml import Nvml, open_nvml
from tests.runtime.fake_nvml import FakeLibrary


def test_readings_of_the_gpu():
    gpu = Nvml(FakeLibrary())
    assert gpu.name() == "NVIDIA Something"
    assert gpu.driver() == "590.1"
    assert gpu.clocks() == "graphics 1500 MHz, memory 7000 MHz"
    assert gpu.memory_in_use() == 5 * 2**30


def test_a_reading_that_nvml_refuses_is_none():
    library = FakeLibrary()
    library.failing = frozenset({"driver", "clocks", "memory"})
    gpu = Nvml(library)
    assert (gpu.driver(), gpu.clocks(), gpu.memory_in_use()) == (None, None, None)


def test_a_library_without_a_gpu_is_refused():
    library = FakeLibrary()
    library.failing = frozenset({"handle"})
    with pytest.raises(OSError, match="no GPU"):
        Nvml(library)


def test_opening_nvml_never_fails():
    gpu = open_nvml()
    assert gpu is None or gpu.name()
