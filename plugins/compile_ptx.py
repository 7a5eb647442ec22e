"""Compile kernels to PTX: ``python -m divprune.plugins.compile_ptx [--source FILE] [--check]``.

Without a source, all kernels of this folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from pathlib import Path

from divprune.plugins.nvrtc import Nvrtc
from divprune.plugins.ptx import SHIPPED, SOURCE_FILE, read_source, source_hash
from divprune.runtime.cli.main_guard import add_common_options, configure_logging, run_guarded
from divprune.runtime.errors import BackendError

__all__ = ["ARCHITECTURE", "compile_ptx", "main"]

# The oldest with warp-wide integer minima; drivers compile it for 8.0 and everything newer.
ARCHITECTURE = "compute_80"
_logger = logging.getLogger("divprune.plugins.compile_ptx")


def compile_ptx(
    source: bytes, architecture: str = ARCHITECTURE, name: str = SOURCE_FILE.name
) -> str:
    """The PTX of a kernel; its first line names the source by hash.

    Raises:
        BackendError: if NVRTC is missing, of another version, or refuses the source.
    """
    options = (f"--gpu-architecture={architecture}", "--std=c++17")
    ptx = Nvrtc().compile(source, name, options)
    return f"// {name}, sha256 {source_hash(source)}\n{ptx}"


def main(argv: list[str] | None = None) -> int:
    """Write the PTX, or with ``--check`` compare it; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m divprune.plugins.compile_ptx",
        description="Compile a kernel to PTX with NVRTC 12.6.",
    )
    parser.add_argument("--source", type=Path, help="default: every kernel of divprune/plugins")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail unless the file is up to date"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"default: beside the source; without --source that of {SOURCE_FILE.name}",
    )
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    configure_logging(verbose=arguments.verbose, quiet=arguments.quiet)
    return run_guarded(lambda: _run(arguments.source, arguments.output, check=arguments.check))


def _run(source: Path | None, output: Path | None, *, check: bool) -> int:
    if source is None and output is None:
        for each in SHIPPED:
            _compile(each.source, each.ptx, each.architecture, check=check)
        return 0
    source = source or SOURCE_FILE
    _compile(source, output or source.with_suffix(".ptx"), ARCHITECTURE, check=check)
    return 0


def _compile(source: Path, output: Path, architecture: str, *, check: bool) -> None:
    ptx = compile_ptx(read_source(source), architecture, source.name)
    if not check:
        _replace(output, ptx)
        _logger.info("wrote %s", output)
    elif not output.exists() or output.read_text(encoding="ascii") != ptx:
        shipped = (source, output) in [(each.source, each.ptx) for each in SHIPPED]
        options = [] if shipped else ["--source", str(source)]
        if not shipped and output != source.with_suffix(".ptx"):
            options += ["--output", str(output)]
        raise BackendError(
            f"{output} is not what {source.name} compiles to",
            fix=shlex.join(["python", "-m", "divprune.plugins.compile_ptx", *options]),
        )


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="ascii")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
