"""An engine on its way to the disk: written and hashed in one pass, in pieces where possible."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["EngineFile", "make_stream_writer"]


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
