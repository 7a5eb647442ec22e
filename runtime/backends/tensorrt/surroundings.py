"""The environment an engine is tied to: library, GPU, driver and system."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.backends.cuda.nvml import open_nvml
from divprune.runtime.backends.tensorrt.library import version_numbers
from divprune.runtime.errors import BackendError, OptionError

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.cuda_device import CudaDevice
    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["Surroundings", "difference", "surroundings", "target_capabilities"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The environment in which an engine was built, or is to run.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        library_version: Its full version.
        compute_capability: Of the GPU, such as ``8.7``.
        device_name: The GPU; None where an engine was built ahead of time without it.
        cuda: Newest CUDA version that the driver runs; None as for ``device_name``.
        driver: Version of the driver, where the system tells it.
        os: Such as ``Linux``.
        architecture: Such as ``aarch64``.
    """

    library: str
    library_version: str
    compute_capability: str
    device_name: str | None
    cuda: str | None
    driver: str | None
    os: str
    architecture: str

    @property
    def lane(self) -> str:
        """Name of the folder in ``engines/``, such as ``tensorrt-sm87``."""
        return f"{self.library}-sm{self.compute_capability.replace('.', '')}"


def surroundings(library: TensorRT, capability: str, device: CudaDevice | None) -> Surroundings:
    """The surroundings of an engine of this library for ``capability``.

    Args:
        library: TensorRT or TensorRT-RTX.
        capability: What the engine is for.
        device: The GPU of this machine; left out of the record where it is another one.
    """
    here = device if device and device.compute_capability == capability else None
    nvml = open_nvml() if here else None
    return Surroundings(
        library=library.name,
        library_version=library.version,
        compute_capability=capability,
        device_name=here.name if here else None,
        cuda=here.cuda if here else None,
        driver=nvml.driver() if nvml else None,
        os=platform.system(),
        architecture=platform.machine(),
    )


def target_capabilities(
    library: TensorRT, device: CudaDevice | None, asked: tuple[str, ...]
) -> tuple[str, ...]:
    """The compute capabilities to build for.

    Args:
        library: TensorRT builds for the GPU it runs on only, TensorRT-RTX for any it knows.
        device: The GPU of this machine.
        asked: From ``--target-cc``, as ``89`` or ``8.9``; empty for this machine's GPU.

    Raises:
        OptionError: for a capability that is none, or that this library cannot build for.
        BackendError: if there is no GPU and none was named.
    """
    wanted = tuple(dict.fromkeys(map(_capability, asked)))
    if not wanted:
        if device is None:
            raise _no_gpu(library)
        wanted = (device.compute_capability,)
    if library.is_rtx:
        _require_known(library, wanted)
    elif device is None:
        raise _no_gpu(library)
    elif wanted != (device.compute_capability,):
        raise OptionError(
            "TensorRT builds for the GPU that it runs on",
            expected=f"--target-cc {device.compute_capability}, or none",
            found=", ".join(wanted),
            fix="build on the device itself; --target tensorrt-rtx can be built ahead of time",
        )
    return wanted


def difference(built: Surroundings, here: Surroundings) -> tuple[str, str, str] | None:
    """The first mismatch that keeps an engine from running: (what, built with, found), or None.

    An engine built ahead of time knows no device; a driver may be newer than at build time.
    """
    same = ["library", "library_version", "compute_capability", "os", "architecture"]
    if not built.library.endswith("rtx") and built.device_name is not None:
        same.append("device_name")
    for field in same:
        expected, found = getattr(built, field), getattr(here, field)
        if expected != found:
            return field.replace("_", " "), expected, str(found)
    if built.cuda and here.cuda and version_numbers(here.cuda) < version_numbers(built.cuda):
        return "CUDA version of the driver", f"{built.cuda} or newer", here.cuda
    return None


def _capability(text: str) -> str:
    digits = text.lower().removeprefix("sm").removeprefix("_").replace(".", "")
    if not (digits.isdecimal() and 2 <= len(digits) <= 3):
        raise OptionError(
            "--target-cc is no compute capability", expected="such as 89 or 8.9", found=text
        )
    return f"{digits[:-1]}.{digits[-1]}"


def _require_known(library: TensorRT, wanted: tuple[str, ...]) -> None:
    known = {
        f"{name[2:-1]}.{name[-1]}"
        for name in dir(library.module.ComputeCapability)
        if name.startswith("SM") and name[2:].isdecimal()
    }
    unknown = [capability for capability in wanted if capability not in known]
    if unknown:
        ordered = sorted(known, key=version_numbers)
        raise OptionError(
            f"{library.title} cannot build for compute capability {', '.join(unknown)}",
            expected=", ".join(ordered),
            found=", ".join(unknown),
            fix="export with --target tensorrt for other GPUs, or with --target jetpack6 for"
            " JetPack 6",
        )


def _no_gpu(library: TensorRT) -> BackendError:
    if library.is_rtx:
        return BackendError(
            "this machine has no NVIDIA GPU to build for",
            expected="a GPU with its driver, or the compute capability of another machine's",
            found="neither",
            fix="name it: --target-cc 89 (GeForce RTX 40), 86 (RTX 30), 120 (RTX 50)",
        )
    return BackendError(
        "TensorRT builds on the GPU that the engines are for, and this machine has none",
        expected="an NVIDIA GPU with its driver",
        found="no GPU",
        fix="copy the directory to the device and run divprune-build there",
    )
