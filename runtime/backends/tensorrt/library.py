"""TensorRT and TensorRT-RTX: two libraries, one Python API, chosen by the manifest's target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from divprune.runtime.backends.tensorrt.install_hint import install_command
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["TENSORRT_TARGETS", "TensorRT", "require_tensorrt", "version_numbers"]

TENSORRT_TARGETS = {
    "tensorrt": "tensorrt",
    "jetpack6": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
# The lowest version that knows the operators of a dialect (reference: NVIDIA's release notes).
_MINIMUM = {
    ("tensorrt", "onnx"): "10.15",
    ("tensorrt", "delta"): "10.3",
    ("tensorrt-rtx", "onnx"): "1.7",
    ("tensorrt-rtx", "delta"): "1.7",
}


@dataclass(frozen=True, slots=True)
class TensorRT:
    """One imported library.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: Its full version, such as ``10.3.0`` or ``1.7.1.116``.
        module: The Python module.
    """

    name: str
    version: str
    module: Any

    @property
    def title(self) -> str:
        """Name and version as messages show them."""
        return f"{_TITLES[self.name]} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which builds for a compute capability, not for a GPU."""
        return self.name == "tensorrt-rtx"


def require_tensorrt(manifest: Manifest) -> TensorRT:
    """Import the library that the directory was exported for.

    Raises:
        BackendError: if the directory is for another runtime, the library is not installed or
            does not load, or is older than its graphs need.
    """
    if manifest.target not in TENSORRT_TARGETS:
        raise BackendError(
            f"an engine directory of target {manifest.target} has nothing to do with TensorRT",
            expected="target " + ", ".join(TENSORRT_TARGETS),
            found=manifest.target,
            fix=f"{export_command(manifest, target='tensorrt')}; divprune-run needs no build for"
            " this one",
        )
    name = TENSORRT_TARGETS[manifest.target]
    try:
        module = import_module(name.replace("-", "_"))
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{_TITLES[name]} cannot be imported",
            expected=f"the Python module {name.replace('-', '_')}",
            found=error,
            fix=install_command(name),
        ) from error
    library = TensorRT(name, str(module.__version__), module)
    _require_version(library, manifest)
    return library


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, ``10.3.0.26`` as ``(10, 3, 0, 26)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _require_version(library: TensorRT, manifest: Manifest) -> None:
    minimum = manifest.requires.get(library.name) or _MINIMUM.get((library.name, manifest.dialect))
    if minimum is None:
        raise BackendError(
            f"{library.title} does not run graphs of dialect {manifest.dialect!r}",
            expected="dialect onnx or delta",
            found=f"{manifest.dialect} (target {manifest.target})",
            fix=export_command(manifest),
        )
    if version_numbers(library.version) >= version_numbers(minimum):
        return
    takes_jetpack6 = version_numbers(library.version) >= version_numbers(
        _MINIMUM["tensorrt", "delta"]
    )
    older = library.name == "tensorrt" and manifest.target != "jetpack6" and takes_jetpack6
    raise BackendError(
        f"{_TITLES[library.name]} is too old for this engine directory",
        expected=f"{_TITLES[library.name]} {minimum} or newer (dialect {manifest.dialect})",
        found=library.version,
        fix=f"{export_command(manifest, target='jetpack6')}, which TensorRT 10.3 takes" if older
        else install_command(library.name),
    )  # fmt: skip
