"""NVIDIA's run-time compiler, from the wheel ``nvidia-cuda-nvrtc-cu12``, called with ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from divprune.runtime.errors import BackendError

__all__ = ["NVRTC_VERSION", "Nvrtc"]

# The compiler decides the PTX version, and JetPack 6's driver takes nothing above 8.5.
NVRTC_VERSION = (12, 6)
_INSTALL = "pip install nvidia-cuda-nvrtc-cu12==12.6.85"


class Nvrtc:
    """The compiler, loaded.

    Raises:
        BackendError: if the wheel is missing or of another version.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(_find_library()))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        if self.version != NVRTC_VERSION:
            raise BackendError(
                "This NVRTC writes another PTX version than the one that is shipped",
                expected="{}.{}".format(*NVRTC_VERSION),
                found="{}.{}".format(*self.version),
                fix=_INSTALL,
            )

    def compile(self, source: bytes, name: str, options: Sequence[str]) -> str:
        """The PTX of a CUDA source.

        Raises:
            BackendError: with the compiler's log, if it does not compile.
        """
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source, name.encode(), 0, None, None
        )
        try:
            encoded = [option.encode() for option in options]
            array = (ctypes.c_char_p * len(encoded))(*encoded)
            code = self._library.nvrtcCompileProgram(program, len(encoded), array)
            if code:
                log = self._text("nvrtcGetProgramLog", program)
                raise BackendError(f"{name} does not compile", found=log.strip() or self._say(code))
            return self._text("nvrtcGetPTX", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, function: str, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(function, program, buffer)
        return buffer.value.decode()

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise BackendError(f"{function} failed", found=self._say(code))

    def _say(self, code: int) -> str:
        text: bytes = self._library.nvrtcGetErrorString(code)
        return text.decode()


def _find_library() -> Path:
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("lib/libnvrtc.so.*")):
            return path
    raise BackendError("NVRTC is not installed", expected="NVRTC 12.6 for Linux", fix=_INSTALL)
