"""Engine files: written and hashed in one pass, read in pieces where the library can."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from types import TracebackType

    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["EngineFile", "deserialize", "make_stream_writer"]

_PIECE = 64 << 20  # bytes of an engine that are in host memory at once


class EngineFile:
    """A new file with the SHA-256 and size of what was written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> EngineFile:
        self._file = self._path.open("xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of everything written so far."""
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        """Append bytes; returns how many.

        Raises:
            OSError: such as on a full disk.
        """
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)


def make_stream_writer(library: TensorRT, file: EngineFile) -> Any:
    """An ``IStreamWriter`` into ``file``: the engine is never whole in host memory.

    An error may not pass through TensorRT's C++: it ends the build, and ``reraise`` raises it.
    """

    class Writer(library.module.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.module.IStreamWriter.__init__(self)
            self._error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self._error = error
                return 0

        def reraise(self) -> None:
            if self._error is not None:
                raise self._error

    return Writer()


def deserialize(library: TensorRT, runtime: Any, path: Path) -> Any:
    """Load an engine; None where the library refuses it.

    From 10.7 on it is read in pieces. A mapped file stands in memory a second time until it is
    loaded, which on a Jetson is the memory of the engine itself.

    Raises:
        OSError: if the file cannot be read.
    """
    if hasattr(library.module, "IStreamReaderV2"):
        with path.open("rb") as file:
            reader = _make_stream_reader(library, file)
            engine = runtime.deserialize_cuda_engine(reader)
            reader.reraise()
            return engine
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return runtime.deserialize_cuda_engine(content)


def _make_stream_reader(library: TensorRT, file: BinaryIO) -> Any:
    """An ``IStreamReaderV2`` of a file; an error ends the loading, and ``reraise`` raises it."""
    position = library.module.SeekPosition
    origins = {position.SET: os.SEEK_SET, position.CUR: os.SEEK_CUR, position.END: os.SEEK_END}

    class Reader(library.module.IStreamReaderV2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.module.IStreamReaderV2.__init__(self)
            self._error: OSError | None = None

        def read(self, num_bytes: int, stream: int) -> bytes:
            del stream  # what comes back lies on the host
            try:
                return file.read(min(num_bytes, _PIECE))
            except OSError as error:
                self._error = error
                return b""

        def seek(self, offset: int, where: Any) -> bool:
            try:
                file.seek(offset, origins[where])
            except OSError as error:
                self._error = error
                return False
            return True

        def reraise(self) -> None:
            if self._error is not None:
                raise self._error

    return Reader()
