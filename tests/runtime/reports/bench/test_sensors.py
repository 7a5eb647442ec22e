from __future__ import annotations

import pytest

from divprune.runtime.backends.cuda.nvml import Nvml
from divprune.runtime.reports.bench.sensors import choose_sensors, open_jetson
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


NANO = {"VDD_IN": (5000, 1500), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 300)}
AGX = {"VDD_GPU_SOC": (20000, 100), "VDD_CPU_CV": (20000, 50), "VIN_SYS_5V0": (5000, 200)}


def test_the_rail_of_the_whole_module_is_its_power(tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, NANO))
    assert jetson.watts() == pytest.approx(7.5)
    assert jetson.power_source() == "VDD_IN"


def test_without_such_a_rail_all_of_every_sensor_are_added(tmp_path):
    make_jetson(tmp_path, AGX)
    memory = {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 100)}
    jetson = open_jetson(make_jetson(tmp_path, memory, sensor="1-0041/hwmon/hwmon4"))
    assert jetson.watts() == pytest.approx(2 + 1 + 1 + 0.5)
    assert jetson.power_source() == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO"


def test_every_reading_is_a_new_one(tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, NANO))
    make_jetson(tmp_path, NANO | {"VDD_IN": (5000, 3000)})
    assert jetson.watts() == pytest.approx(15)


def test_a_rail_that_cannot_be_read_at_the_start_does_not_count(tmp_path):
    make_jetson(tmp_path, AGX)
    (next(tmp_path.rglob("curr2_input"))).write_text("not a number\n")
    jetson = open_jetson(tmp_path)
    assert jetson.power_source() == "VDD_GPU_SOC + VIN_SYS_5V0"
    assert jetson.watts() == pytest.approx(3)


def test_one_that_cannot_be_read_later_leaves_no_sum(tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, AGX))
    next(tmp_path.rglob("in2_input")).unlink()
    assert jetson.watts() is None


def test_the_offset_of_an_idle_sensor_makes_no_negative_power(tmp_path):
    assert open_jetson(make_jetson(tmp_path, {"VDD_IN": (5000, -8)})).watts() == 0


def test_a_board_without_sensors_has_no_power(tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, {}))
    assert jetson.rails == ()
    assert jetson.watts() is None


def test_memory_is_what_the_system_has_in_use(tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, NANO))
    assert jetson.memory_in_use() == 5000 * 1024
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000 kB\n")
    assert jetson.memory_in_use() is None


@pytest.mark.parametrize(
    "model, found",
    [
        ("NVIDIA Jetson AGX Thor Developer Kit", True),
        ("NVIDIA Orin NX Developer Kit", True),
        ("Raspberry Pi 5 Model B Rev 1.0", False),
        ("NVIDIA DGX Spark", False),
    ],
)
def test_a_jetson_is_known_by_its_model(tmp_path, model, found):
    assert (open_jetson(make_jetson(tmp_path, NANO, model=model)) is not None) == found


def test_or_by_its_release_file(tmp_path):
    assert open_jetson(tmp_path) is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release)\n")
    jetson = open_jetson(tmp_path)
    assert (jetson.memory_in_use(), jetson.watts()) == (None, None)
