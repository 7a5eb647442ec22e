"""Files the user named: replaced only by a complete one, and never one that a model is made of."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from divprune.runtime.errors import OptionError

__all__ = ["check_outside_models", "check_place", "write_file"]


def check_place(path: Path, option: str) -> None:
    """Refuse, before anything runs, a file that could not be written or would destroy a model.

    Args:
        path: The file.
        option: What names it, for the message.

    Raises:
        OptionError: for a directory, a folder that is missing or cannot be written to, and any
            place inside an engine directory or a checkpoint.
    """
    check_outside_models(path, option)
    try:
        if path.is_dir():
            raise OptionError(f"{option} {path} is a directory", expected="a file name")
        if path.exists():
            path.open("r+b").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except (OSError, ValueError) as error:
        raise _unwritable(path, option, error) from error


def check_outside_models(path: Path, option: str) -> None:
    """Refuse a place inside an engine directory or a checkpoint.

    Raises:
        OptionError: naming that directory.
    """
    try:
        folders = [folder for folder in path.resolve().parents if _holds_model(folder)]
    except (OSError, ValueError) as error:
        raise _unwritable(path, option, error) from error
    if folders:
        raise OptionError(
            f"{option} {path} lies in the directory of a model",
            expected="a place of its own",
            found=folders[0],
            fix=f"choose another {option}",
        )


def write_file(path: Path, content: bytes, option: str) -> None:
    """Write a file; one that is there is replaced only by a complete one.

    Raises:
        OptionError: if it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
            path.write_bytes(content)
            return
        target = path.resolve()  # a link stays one
        mode = target.stat().st_mode & 0o777 if target.exists() else None
        partial = target.with_name(f".{target.name[:100]}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            if mode is not None:
                partial.chmod(mode)
            partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise _unwritable(path, option, error) from error


def _holds_model(folder: Path) -> bool:
    """An engine directory or a checkpoint; a config.json alone may be anything."""
    if not any((folder / name).is_file() for name in ("manifest.json", "config.json")):
        return False
    graphs = (folder / "llm").is_dir() or (folder / "vision").is_dir()
    return graphs or any(folder.glob("*.safetensors"))


def _unwritable(path: Path, option: str, error: Exception) -> OptionError:
    return OptionError(
        f"{option} {path} cannot be written",
        expected="a file in a folder that exists and can be written to",
        found=getattr(error, "strerror", None) or error,
        fix=f"choose another name for {option}",
    )
