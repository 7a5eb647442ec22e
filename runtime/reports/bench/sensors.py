"""Device memory and power: from NVML on a graphics card, from the kernel on a Jetson.

CPU and GPU of a Jetson share one memory, so that device memory is what the whole system has in
use. Power comes from the INA3221 sensors of the module, which the mainline driver of JetPack 5
and later shows as hwmon channels: ``in1_label`` names a rail, ``in1_input`` is its voltage in
mV and ``curr1_input`` its current in mA.

Written from the kernel's documentation of these files (Documentation/hwmon/ina3221.rst) and
tested on made-up ones; not yet run on a Jetson.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.nvml import Nvml

__all__ = ["Jetson", "Rail", "Sensors", "choose_sensors", "open_jetson"]

_ROOT = Path("/")
_SENSORS = "sys/bus/i2c/drivers/ina3221"
_BOARD = re.compile(r"NVIDIA.*(Jetson|Orin|Thor|Xavier|Tegra)", re.IGNORECASE)
_TOTAL = "VDD_IN"  # what the whole module draws, on the modules that measure it
_UNCONNECTED = "NC"


@dataclass(frozen=True)
class Sensors:
    """Readers, None where there is nothing to read.

    Attributes:
        device_memory: Device memory in use in bytes.
        power: Power being drawn in watts.
        notes: What a reader of the numbers has to know about them.
    """

    device_memory: Callable[[], int | None] | None
    power: Callable[[], float | None] | None
    notes: tuple[str, ...]


def choose_sensors(nvml: Nvml | None, jetson: Jetson | None, *, gpu: bool) -> Sensors:
    """Sensors of this machine; device memory only where the ``gpu`` does the work.

    On a Jetson NVML has no memory of the device to tell, as there is none of its own.
    """
    memory = (jetson or nvml) if gpu else None
    notes = [_memory_note(jetson, memory)] if gpu else []
    if jetson is None or not jetson.rails:
        notes += ["power unknown: no readable INA3221 sensor"] if jetson else []
        return Sensors(memory.memory_in_use if memory else None, None, tuple(notes))
    notes.append(f"power is that of {jetson.power_source()}, about every 100 ms")
    return Sensors(memory.memory_in_use if memory else None, jetson.watts, tuple(notes))


@dataclass(frozen=True)
class Rail:
    """A supply rail with a sensor."""

    name: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float | None:
        """The power it delivers now; None where the sensor cannot be read."""
        volts, amperes = _number(self.millivolts), _number(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


@dataclass(frozen=True)
class Jetson:
    """A module; ``rails`` are those whose sum is its power, none where no sensor is readable."""

    rails: tuple[Rail, ...]
    meminfo: Path

    def memory_in_use(self) -> int | None:
        """Bytes that the whole system has in use: ``MemTotal - MemAvailable``."""
        text = _text(self.meminfo) or ""
        kib = dict(re.findall(r"(?m)^(MemTotal|MemAvailable):\s+(\d+) kB$", text))
        if len(kib) < 2:
            return None
        return (int(kib["MemTotal"]) - int(kib["MemAvailable"])) * 1024

    def watts(self) -> float | None:
        """Power drawn now; None unless every rail can be read: a part is not the sum."""
        readings = [rail.watts() for rail in self.rails]
        known = [watts for watts in readings if watts is not None]
        if not known or len(known) < len(readings):
            return None
        return max(0.0, sum(known))  # an idle sensor may be some milliamperes below zero

    def power_source(self) -> str:
        """The rails, for people: ``VDD_IN`` or ``VDD_GPU_SOC + VDD_CPU_CV``."""
        return " + ".join(rail.name for rail in self.rails)


def open_jetson(root: Path = _ROOT) -> Jetson | None:
    """The Jetson this runs on; None on anything else. ``root`` is that of the file system."""
    board = _text(root / "proc/device-tree/model") or ""
    if not _BOARD.search(board) and not (root / "etc/nv_tegra_release").exists():
        return None
    rails = tuple(rail for rail in _find_rails(root / _SENSORS) if rail.watts() is not None)
    total = tuple(rail for rail in rails if rail.name == _TOTAL)
    return Jetson(total[:1] or rails, root / "proc/meminfo")


def _memory_note(jetson: Jetson | None, memory: Jetson | Nvml | None) -> str:
    if memory is None or memory.memory_in_use() is None:
        return f"device memory unknown: {'the kernel' if jetson else 'NVML'} does not tell"
    if jetson:
        return "device memory is unified: what the whole system has in use, host memory included"
    return "device memory is that of every process on the GPU"


def _find_rails(sensors: Path) -> Iterator[Rail]:
    """Every connected channel; the driver's sum of shunt voltages has no current of its own."""
    for label in sorted(sensors.glob("*/hwmon/hwmon*/in*_label")):
        name = _text(label)
        number = label.name[len("in") : -len("_label")]
        current = label.with_name(f"curr{number}_input")
        if name and name != _UNCONNECTED and current.exists():
            yield Rail(name, label.with_name(f"in{number}_input"), current)


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """The text of a system file without its final newline or NUL; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None
