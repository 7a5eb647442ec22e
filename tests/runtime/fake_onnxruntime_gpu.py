"""ONNX Runtime as onnxruntime-gpu on a machine with a GPU: what is to run on CUDA runs on the CPU.

The real library does the work; only names of devices and providers are not what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import pytest

__all__ = ["FakeOnnxRuntimeGpu", "install"]

_PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class _Session:
    """A session of the real library, opened on the CPU."""

    def __init__(self, session: Any, providers: Sequence[str]) -> None:
        self._session, self._providers = session, list(providers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> _Binding:
        return _Binding(self._session.io_binding())

    def run_with_iobinding(self, binding: _Binding, options: Any = None) -> None:
        self._session.run_with_iobinding(binding.real, options)


class _Binding:
    """A binding whose outputs lie on the CPU, whatever device they are asked for on."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_output(self, name: str, device: str) -> None:
        assert device in ("cpu", "cuda")
        self.real.bind_output(name, "cpu")


class _OrtValue:
    """Makes values on the CPU for any device."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def ortvalue_from_numpy(self, array: Any, device: str = "cpu", number: int = 0) -> Any:
        return self._real.ortvalue_from_numpy(array, "cpu", number)

    def ortvalue_from_shape_and_type(self, shape: Any, dtype: Any, device: str) -> Any:
        return self._real.ortvalue_from_shape_and_type(shape, dtype, "cpu")


class FakeOnnxRuntimeGpu:
    """Stands in for the module.

    Args:
        real: The library.
        starts: Whether CUDA and cuDNN are there; otherwise sessions fall back to the CPU.
    """

    def __init__(self, real: Any, *, starts: bool = True) -> None:
        self._real, self._starts = real, starts
        self.OrtValue = _OrtValue(real.OrtValue)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_available_providers(self) -> list[str]:
        return list(_PROVIDERS)

    def preload_dlls(self) -> None:
        """There is nothing to load."""

    def InferenceSession(
        self, path: str, options: Any, *, providers: Sequence[Any], **others: Mapping[str, Any]
    ) -> _Session:
        names = [each if isinstance(each, str) else each[0] for each in providers]
        session = self._real.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], **others
        )
        return _Session(session, names if self._starts else ["CPUExecutionProvider"])


def install(monkeypatch: pytest.MonkeyPatch, *, starts: bool = True) -> None:
    """Have onnxruntime-gpu installed, with or without the libraries that it needs."""
    found = import_module("onnxruntime")
    real = found._real if isinstance(found, FakeOnnxRuntimeGpu) else found
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntimeGpu(real, starts=starts))
