"""``divprune-build``: make the TensorRT engines of an engine directory, on the device."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.cli.main_guard import (
    ToolParser,
    add_common_options,
    run_tool,
)

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.build.build_engine import EngineTask
    from divprune.runtime.backends.tensorrt.build.build_engines import Watch
    from divprune.runtime.backends.tensorrt.build.progress import OnStep

__all__ = ["main"]

_DESCRIPTION = """\
Build the TensorRT engines of a directory that divprune-export wrote for --target tensorrt,
tensorrt-rtx or jetpack6. Run it on the device; TensorRT-RTX also builds ahead of time for a
GPU of another machine. Engines that fit are left alone: a second call does nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-build", description=_DESCRIPTION)
    add = parser.add_argument
    add("engine_dir", type=Path, metavar="ENGINE_DIR", help="directory from divprune-export")
    add("--dry-run", action="store_true", help="print what would be built, and build nothing")
    add("--target-cc", nargs="+", default=[], metavar="CC", help="compute capabilities such as"
        " 86 89 120 (default: this machine's GPU; others with TensorRT-RTX only)")  # fmt: skip
    add("--workspace", type=int, metavar="MIB", help="memory that a kernel may use (default: a"
        " quarter of what the builder leaves of the GPU)")  # fmt: skip
    add("--no-plugin", action="store_true", help="select with the ONNX Loop, not the plugin")
    add("--weight-streaming", action="store_true", help="let weights stay in host memory where"
        " the GPU is too small for them")  # fmt: skip
    add("--force", action="store_true", help="build again what is valid")
    add(
        "--verify",
        choices=("cached", "full"),
        default="cached",
        help="hash files that changed since the last time (cached), or all of them (full)",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from divprune.runtime.backends.tensorrt.build.build_engines import build_engines
    from divprune.runtime.backends.tensorrt.build.build_plan import BuildRequest, make_build_plan
    from divprune.runtime.backends.tensorrt.build.dry_run import describe_plan
    from divprune.runtime.directory.engine_directory import EngineDirectory

    request = BuildRequest(
        target_cc=tuple(arguments.target_cc),
        workspace_mib=arguments.workspace,
        plugin=not arguments.no_plugin,
        weight_streaming=arguments.weight_streaming,
        force=arguments.force,
    )
    directory = EngineDirectory.open(arguments.engine_dir, verify=arguments.verify)
    plan = make_build_plan(directory, request)
    if arguments.dry_run:
        print(json.dumps(plan.to_dict()) if arguments.json else describe_plan(plan))
        return 0
    if not arguments.quiet:
        print(describe_plan(plan), file=sys.stderr)
    start = time.monotonic()
    built = build_engines(plan, _watch(quiet=arguments.quiet))
    if arguments.json:
        done = {"built": [str(path) for path in built], "seconds": time.monotonic() - start}
        print(json.dumps(plan.to_dict() | done))
    elif built:
        print(f"built {', '.join(map(str, built))} in {time.monotonic() - start:.0f} s")
    else:
        print("the engines are valid: nothing to do")
    return 0


def _watch(*, quiet: bool) -> Watch:
    @contextlib.contextmanager
    def watch(task: EngineTask) -> Iterator[OnStep]:
        from divprune.runtime.backends.tensorrt.build.progress import ProgressLine

        if quiet:
            yield lambda *_: None
            return
        line = ProgressLine(f"{task.name}, compute capability {task.compute_capability}")
        try:
            yield line
        finally:
            line.close()

    return watch


if __name__ == "__main__":
    raise SystemExit(main())
