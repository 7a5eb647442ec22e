"""The command that installs TensorRT on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["install_command", "is_jetson"]

_ROOT = Path("/")
_RTX = "pip install --upgrade tensorrt-rtx-cu13"
_JETSON = (
    "sudo apt install nvidia-jetpack   (TensorRT belongs to JetPack; a virtual environment sees"
    " it when made with python3 -m venv --system-site-packages)"
)
_WORKSTATION = "pip install --upgrade --extra-index-url https://pypi.nvidia.com tensorrt"


def install_command(library: str, root: Path = _ROOT) -> str:
    """One line that installs or updates ``library`` (``tensorrt`` or ``tensorrt-rtx``) here."""
    if library == "tensorrt-rtx":
        return _RTX
    return _JETSON if is_jetson(root) else _WORKSTATION


def is_jetson(root: Path = _ROOT) -> bool:
    """Whether this is a Jetson module: its software does not come from the package index."""
    if platform.machine() != "aarch64":
        return False
    if (root / "etc/nv_tegra_release").exists():
        return True
    try:
        return b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False
