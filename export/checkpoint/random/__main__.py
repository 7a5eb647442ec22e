"""``python -m divprune.export.checkpoint.random``: write a checkpoint with random weights."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from divprune.runtime.cli.main_guard import ToolParser, add_common_options, run_tool

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    parser = ToolParser(
        prog="python -m divprune.export.checkpoint.random",
        description="Write a checkpoint with random weights and all the files of a real one.",
    )
    add = parser.add_argument
    add("--model", required=True, help="a preset (qwen2.5-vl-3b), or a shape such as llava-1.1b")
    add("--output", type=Path, required=True, help="directory to write; it must not exist")
    add("--layout", choices=["hub", "v4", "v5"], default="hub", help="default: that of the hub")
    add("--dtype", choices=["fp16", "bf16", "fp32"], default="fp16", help="default: fp16")
    add("--shard-size", type=_bytes, default="5GB", help="such as 500MB or 5GB (default)")
    add("--seed", type=int, default=0, help="of the weights (default 0)")
    add_common_options(parser)
    return run_tool(parser, _write, argv)


def _write(arguments: argparse.Namespace) -> int:
    from divprune.export.checkpoint.random.write import write_random_checkpoint
    from divprune.export.output.staging import stage_directory

    with stage_directory(arguments.output, force=False) as directory:
        write_random_checkpoint(
            directory,
            arguments.model,
            layout=arguments.layout,
            dtype=arguments.dtype,
            shard_size=arguments.shard_size,
            seed=arguments.seed,
        )
    print(arguments.output)
    return 0


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 5GB, found {text!r}")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]])


if __name__ == "__main__":
    raise SystemExit(main())
