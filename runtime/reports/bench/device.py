"""Facts about the machine that every reported time needs beside it.

Every reader takes the root of the file system, so that a test can make up a machine.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.reports.bench.report import DeviceFacts

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.nvml import Nvml

__all__ = ["core_count", "cpu_clocks", "cpu_name", "device_facts", "power_mode", "tool_versions"]

_ROOT = Path("/")
_PACKAGES = ("divprune-edge", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "pillow")
_NVPMODEL_SECONDS = 10


def device_facts(threads: int | None, nvml: Nvml | None, root: Path = _ROOT) -> DeviceFacts:
    """Facts about this machine, now; ``nvml`` where the GPU does the work."""
    cpu = cpu_name(root)
    gpu = nvml.name() if nvml else None
    board = _text(root / "proc/device-tree/model")
    clocks = [cpu_clocks(root), nvml.clocks() if nvml else None]
    return DeviceFacts(
        name=board or (f"{gpu}, {cpu}" if gpu else cpu),
        cpu=cpu,
        cores=core_count(),
        threads=threads,
        gpu=gpu,
        driver=nvml.driver() if nvml else None,
        power_mode=power_mode(),
        clocks="; ".join(clock for clock in clocks if clock) or None,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=_os_name(root),
        load_average=_load_average(),
    )


def tool_versions() -> dict[str, str]:
    """Versions of Python and of what takes part in a run, where they are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_name(root: Path = _ROOT) -> str:
    """Model of the CPU; ARM kernels say less, so there the architecture has to do."""
    info = _text(root / "proc/cpuinfo") or ""
    names = re.findall(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


def cpu_clocks(root: Path = _ROOT) -> str | None:
    """Governor and current clock of the first core, as far as the kernel tells them."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    governor = _text(folder / "scaling_governor")
    khz = _text(folder / "scaling_cur_freq")
    found = [f"governor {governor}"] if governor else []
    if khz and khz.isdecimal():
        found.append(f"CPU {int(khz) // 1000} MHz")
    elif mhz := re.search(r"(?m)^cpu MHz\s*:\s*([\d.]+)$", _text(root / "proc/cpuinfo") or ""):
        found.append(f"CPU {float(mhz[1]):.0f} MHz")
    return ", ".join(found) or None


def power_mode(tool: str = "nvpmodel") -> str | None:
    """Power mode of a Jetson, such as ``15W``; None on what has no nvpmodel."""
    path = shutil.which(tool)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "-q"], capture_output=True, text=True, check=False, timeout=_NVPMODEL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    mode = re.search(r"NV Power Mode:\s*(\S.*)", done.stdout)
    return mode[1].strip() if mode else None


def _text(path: Path) -> str | None:
    """The text of a system file without its final newline or NUL; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _os_name(root: Path) -> str:
    release = _text(root / "etc/os-release") or ""
    pretty = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', release, re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()} ({platform.machine()})"
    return f"{pretty[1]}, {kernel}" if pretty else kernel


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
