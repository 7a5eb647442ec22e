"""Devices that a plan can be made for: ``configs/devices/*.yaml``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.errors import OptionError

__all__ = ["Device", "device_from_dict", "list_devices", "load_device"]

_DEVICES = Path(__file__).parent / "devices"
_MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """Memory and bandwidth of a board, a graphics card or a computer.

    Attributes:
        name: What ``--board`` takes.
        title: What people call it.
        memory_mib: Memory of the module, or of the card.
        shared: Whether host and GPU share it. A computer without a GPU has nothing to share.
        bandwidth_gb_s: Of that memory, in 10^9 bytes a second; None where nobody has said.
        system_mib: What firmware, operating system and driver take of it.
        target: The ``--target`` that suits it.
    """

    name: str
    title: str
    memory_mib: int
    shared: bool
    bandwidth_gb_s: float | None
    system_mib: int
    target: str

    def __post_init__(self) -> None:
        title: Any = self.title
        self._check("title", isinstance(title, str) and title != "", "text")
        self._check("shared", type(self.shared) is bool, "true or false")
        self._check("target", self.target in TARGETS, "one of " + ", ".join(TARGETS))
        for field in ("memory_mib", "system_mib"):
            value = getattr(self, field)
            self._check(field, type(value) is int and value > 0, "MiB above 0")
        speed: Any = self.bandwidth_gb_s
        is_number = speed is None or (type(speed) in (int, float) and speed > 0)
        self._check("bandwidth_gb_s", is_number, "GB/s above 0")
        self._check("system_mib", self.system_mib < self.memory_mib, "less than memory_mib")

    @property
    def available_bytes(self) -> int:
        """Bytes that the system leaves for a model."""
        return (self.memory_mib - self.system_mib) * _MIB

    def _check(self, field: str, is_right: bool, expected: str) -> None:
        if not is_right:
            raise OptionError(
                f"device {self.name}: {field} is wrong",
                expected=expected,
                found=getattr(self, field),
            )


def list_devices() -> tuple[str, ...]:
    """Names of all devices, sorted."""
    return tuple(sorted(file.stem for file in _DEVICES.glob("*.yaml")))


def load_device(name: str) -> Device:
    """Read and validate one device.

    Raises:
        OptionError: for an unknown name (it lists the known ones), and for a file with a
            wrong, missing or unknown field.
    """
    if name not in list_devices():
        guess = difflib.get_close_matches(name.lower(), list_devices(), n=1, cutoff=0.6)
        raise OptionError(
            f"there is no board {name}",
            expected="one of " + ", ".join(list_devices()),
            found=name,
            fix=f"--board {guess[0]} if that was meant" if guess else None,
        )
    return device_from_dict(name, yaml.safe_load((_DEVICES / f"{name}.yaml").read_text("utf-8")))


def device_from_dict(name: str, content: object) -> Device:
    """A device from the content of its file.

    Raises:
        OptionError: naming the field that is wrong, missing or unknown.
    """
    known = {field.name for field in fields(Device)} - {"name"}
    if not isinstance(content, dict) or content.keys() != known:
        found = sorted(map(str, content)) if isinstance(content, dict) else [type(content).__name__]
        raise OptionError(
            f"device {name} cannot be read",
            expected=", ".join(sorted(known)),
            found=", ".join(found) or "nothing",
        )
    arguments: dict[str, Any] = dict(content)
    return Device(name=name, **arguments)
