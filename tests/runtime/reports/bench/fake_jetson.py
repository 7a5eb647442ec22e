"""A file tree such as a Jetson has in procfs and sysfs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MEMINFO", "ORIN", "make_jetson"]

ORIN = "NVIDIA Jetson Orin Nano Developer Kit\0"
MEMINFO = "MemTotal:        8000 kB\nMemFree:          500 kB\nMemAvailable:    3000 kB\n"
_SENSORS = "sys/bus/i2c/drivers/ina3221"


def make_jetson(
    root: Path,
    rails: dict[str, tuple[int, int]],
    *,
    model: str = ORIN,
    sensor: str = "1-0040/hwmon/hwmon3",
) -> Path:
    """Write a board, its memory and one sensor: (mV, mA) of each rail.

    Beside the rails there is what the driver has as well: the sum of the shunt voltages, which
    has a label but no current.
    """
    files = {"proc/device-tree/model": model, "proc/meminfo": MEMINFO}
    folder = f"{_SENSORS}/{sensor}"
    for number, (name, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        files[f"{folder}/in{number}_label"] = f"{name}\n"
        files[f"{folder}/in{number}_input"] = f"{millivolts}\n"
        files[f"{folder}/curr{number}_input"] = f"{milliamperes}\n"
    files |= {f"{folder}/in7_label": "sum of shunt voltages\n", f"{folder}/in7_input": "9\n"}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
