from __future__ import annotations

import pytest

from divprune.runtime.backends.cuda.nvml import Nvml
from divprune.runtime.reports.bench.jetson import open_jetson
from divprune.runtime.reports.bench.sensors import choose_sensors
from tests.runtime.reports.bench.fake_jetson import make_jetson
from tests.runtime.reports.bench.test_device import FakeLibrary


@pytest.fixture
def jetson(tmp_path):
    return open_jetson(make_jetson(tmp_path, {"VDD_IN": (5000, 1000)}))


def test_a_gpu_of_its_own_tells_its_memory():
    sensors = choose_sensors(Nvml(FakeLibrary()), None, gpu=True)
    assert sensors.device_memory() == 5 * 2**30
    assert sensors.power is None
    assert sensors.notes == ("device memory is that of every process on the GPU",)


def test_a_jetson_tells_the_memory_of_the_system_whatever_nvml_says(jetson):
    sensors = choose_sensors(Nvml(FakeLibrary()), jetson, gpu=True)
    assert sensors.device_memory() == 5000 * 1024
    assert sensors.power() == 5
    unified, power = sensors.notes
    assert "device memory is unified" in unified
    assert power == "power is that of VDD_IN, about every 100 ms"


def test_work_on_the_cpu_of_a_jetson_has_power_but_no_device_memory(jetson):
    sensors = choose_sensors(None, jetson, gpu=False)
    assert sensors.device_memory is None
    assert sensors.power() == 5
    assert len(sensors.notes) == 1


def test_a_jetson_without_readable_sensors_says_so(tmp_path):
    sensors = choose_sensors(None, open_jetson(make_jetson(tmp_path, {})), gpu=False)
    assert sensors.power is None
    assert sensors.notes == ("power unknown: no readable INA3221 sensor",)


def test_memory_that_nobody_tells_is_said_to_be_unknown():
    sensors = choose_sensors(None, None, gpu=True)
    assert (sensors.device_memory, sensors.power) == (None, None)
    assert sensors.notes == ("device memory unknown: NVML does not tell",)


def test_a_cpu_has_nothing_beside_time():
    sensors = choose_sensors(None, None, gpu=False)
    assert (sensors.device_memory, sensors.power, sensors.notes) == (None, None, ())
