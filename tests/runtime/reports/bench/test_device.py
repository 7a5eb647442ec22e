from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from divprune.runtime.backends.cuda.nvml import Nvml
from divprune.runtime.reports.bench.device import (
    cpu_clocks,
    cpu_name,
    device_facts,
    power_mode,
    tool_versions,
)
from tests.runtime.fake_nvml import FakeLibrary

X86 = "processor\t: 0\nmodel name\t: Some CPU 9000\ncpu MHz\t\t: 2596.128\n"
PI = "processor\t: 0\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_facts_about_this_machine_are_plausible():
    facts = device_facts(2, None)
    assert facts.name
    assert facts.cores >= 1
    assert facts.threads == 2
    assert facts.memory_bytes > 2**28
    assert platform.system() in facts.os
    assert (facts.gpu, facts.driver) == (None, None)


def test_a_board_is_named_by_its_device_tree(tmp_path):
    model = "NVIDIA Jetson Orin Nano Developer Kit\0"
    root = write(tmp_path, {"proc/device-tree/model": model, "proc/cpuinfo": "CPU part : 0xd42"})
    facts = device_facts(None, None, root)
    assert facts.name == "NVIDIA Jetson Orin Nano Developer Kit"
    assert facts.cpu


def test_a_gpu_names_the_machine_together_with_its_cpu(tmp_path):
    root = write(tmp_path, {"proc/cpuinfo": X86, "etc/os-release": 'PRETTY_NAME="Some Linux 1"\n'})
    facts = device_facts(None, Nvml(FakeLibrary()), root)
    assert facts.name == "NVIDIA Something, Some CPU 9000"
    assert (facts.gpu, facts.driver) == ("NVIDIA Something", "590.1")
    assert facts.clocks == "CPU 2596 MHz; graphics 1500 MHz, memory 7000 MHz"
    assert facts.os.startswith("Some Linux 1, ")


@pytest.mark.parametrize(
    "text, name", [(X86, "Some CPU 9000"), (PI, "Raspberry Pi 4 Model B Rev 1.4")]
)
def test_the_cpu_is_named_as_the_kernel_names_it(tmp_path, text, name):
    assert cpu_name(write(tmp_path, {"proc/cpuinfo": text})) == name


def test_a_cpu_without_a_name_is_its_architecture(tmp_path):
    assert cpu_name(tmp_path) in (platform.processor(), platform.machine())


def test_clocks_come_from_the_governor_first(tmp_path):
    folder = "sys/devices/system/cpu/cpu0/cpufreq"
    files = {f"{folder}/scaling_governor": "schedutil\n", f"{folder}/scaling_cur_freq": "1510400\n"}
    assert cpu_clocks(write(tmp_path, files)) == "governor schedutil, CPU 1510 MHz"
    assert cpu_clocks(write(tmp_path / "x", {"proc/cpuinfo": X86})) == "CPU 2596 MHz"
    assert cpu_clocks(tmp_path / "nothing") is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize(
    "body, mode",
    [
        ('echo "NVPM WARN: fan mode is not set!"\necho "NV Power Mode: 15W"\necho 0', "15W"),
        ('echo "NV Power Mode: MAXN_SUPER"', "MAXN_SUPER"),
        ("echo something else", None),
        ("exit 1", None),
    ],
)
def test_the_power_mode_is_what_nvpmodel_says(tmp_path, monkeypatch, body, mode):
    tool = tmp_path / "nvpmodel"
    tool.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 3\n{body}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power_mode() == mode


def test_without_nvpmodel_there_is_no_power_mode():
    assert power_mode("no-such-nvpmodel") is None


def test_versions_of_what_takes_part_are_listed():
    versions = tool_versions()
    assert versions["python"] == platform.python_version()
    assert {"divprune-edge", "numpy", "tokenizers"} <= versions.keys()
