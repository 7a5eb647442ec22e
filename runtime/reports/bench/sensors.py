"""What of this machine can be read beside time: device memory and power."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.nvml import Nvml
    from divprune.runtime.reports.bench.jetson import Jetson

__all__ = ["Sensors", "choose_sensors"]


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


def _memory_note(jetson: Jetson | None, memory: Jetson | Nvml | None) -> str:
    if memory is None or memory.memory_in_use() is None:
        return f"device memory unknown: {'the kernel' if jetson else 'NVML'} does not tell"
    if jetson:
        return "device memory is unified: what the whole system has in use, host memory included"
    return "device memory is that of every process on the GPU"
