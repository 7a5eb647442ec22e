"""``divprune-run``: answer a question about pictures with an engine directory."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.backends import BACKENDS, DEVICES
from divprune.runtime.cli.main_guard import (
    ToolParser,
    add_common_options,
    add_memory_options,
    run_tool,
)

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.generation.generation import Generation
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.pipeline import Pipeline

__all__ = ["main"]

_DESCRIPTION = """\
Answer a question about one or several pictures with an exported engine directory.
The text goes to stdout as it is made, everything else to stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-run", description=_DESCRIPTION)
    add = parser.add_argument
    add("engine_dir", type=Path, metavar="ENGINE_DIR", help="directory from divprune-export")
    add("images", nargs="+", metavar="IMAGE", help="path, http(s) URL, or - for standard input")
    add("--prompt", default="Describe the image.", help="the question (default: %(default)s)")
    add("--keep", type=float, help="fraction of visual tokens kept (default: as exported)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-p", type=float, default=1.0, help="nucleus of the draw (default: all tokens)")
    add("--seed", type=int, help="make draws repeatable")
    add("--backend", help=f"{', '.join(BACKENDS)} (default: what the export was made for)")
    add("--device", choices=DEVICES, help="default: cuda with TensorRT, otherwise cpu")
    add("--threads", type=int, metavar="N", help="threads inside one operator")
    add_memory_options(parser)
    add(
        "--verify",
        choices=("cached", "full"),
        default="cached",
        help="hash files that changed since the last time (cached), or all of them (full)",
    )
    add("--overlay", metavar="FILE", help="draw kept patches bright (out.png, out-2.png, ...)")
    add("--overlay-numbers", action="store_true", help="number them in the order of selection")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    sampling = _check_options(arguments)
    directory, images = _check_inputs(arguments)

    from divprune.runtime.backends import load_backend
    from divprune.runtime.pipeline import Pipeline

    backend = load_backend(
        arguments.backend,
        directory,
        device=arguments.device,
        threads=arguments.threads,
        residency=arguments.residency,
    )
    pipeline = Pipeline(directory, backend)
    generation = pipeline.generate(
        images,
        arguments.prompt,
        keep=arguments.keep,
        max_new_tokens=arguments.max_new_tokens,
        sampling=sampling,
    )
    if arguments.json:
        print(json.dumps(generation.result.to_dict()))
    else:
        _stream(generation)
        if not arguments.quiet:
            print(_summary(generation.result), file=sys.stderr)
    if arguments.overlay is not None:
        _write_overlays(arguments, pipeline, images, generation.result)
    return 0


def _check_options(arguments: argparse.Namespace) -> SamplingOptions:
    """Check what can be checked before any file is opened."""
    from divprune.runtime.backends import check_choice
    from divprune.runtime.cli.overlay_files import check_overlay_options
    from divprune.runtime.directory.keep import validate_keep
    from divprune.runtime.directory.limits import validate_max_new_tokens
    from divprune.runtime.errors import OptionError
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.pipeline import as_pictures

    if arguments.keep is not None:
        validate_keep(arguments.keep)
    validate_max_new_tokens(arguments.max_new_tokens)
    check_choice(arguments.backend, arguments.device, arguments.threads)
    as_pictures(arguments.images)
    check_overlay_options(arguments.overlay, arguments.images, numbers=arguments.overlay_numbers)
    sampling = SamplingOptions(arguments.temperature, arguments.top_p, arguments.seed)
    if arguments.temperature == 0 and (arguments.top_p != 1.0 or arguments.seed is not None):
        raise OptionError(
            "--top-p and --seed have no effect on a greedy answer",
            expected="a --temperature above 0 with them",
            found="--temperature 0 (greedy, the default)",
            fix="add --temperature 0.7, or leave --top-p and --seed out",
        )
    return sampling


def _check_inputs(arguments: argparse.Namespace) -> tuple[EngineDirectory, list[Image.Image]]:
    """Open what is cheap, so that a wrong name shows before gigabytes are loaded."""
    from divprune.runtime.cli.overlay_files import check_drawable
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.generation.kept_tokens import resolve_keep
    from divprune.runtime.inputs.image_loading import load_image

    images = [load_image(image) for image in arguments.images]
    directory = EngineDirectory.open(
        arguments.engine_dir, verify=arguments.verify, max_seq_len=arguments.max_seq_len
    )
    count = resolve_keep(directory.manifest, arguments.keep)
    if arguments.overlay is not None:
        check_drawable(directory.manifest, count, numbers=arguments.overlay_numbers)
    return directory, images


def _stream(generation: Generation) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for piece in generation:
        print(piece, end="", flush=True)
    print(flush=True)


def _write_overlays(
    arguments: argparse.Namespace,
    pipeline: Pipeline,
    images: Sequence[Image.Image],
    result: GenerationResult,
) -> None:
    from divprune.runtime.cli.overlay_files import overlay_paths, write_overlay

    paths = overlay_paths(arguments.overlay, len(images))
    for path, image, pruning in zip(paths, images, result.images, strict=True):
        overlay = pipeline.draw_overlay(image, pruning, numbers=arguments.overlay_numbers)
        write_overlay(path, overlay)


def _summary(result: GenerationResult) -> str:
    """One line: time to first token, decode rate, kept tokens, peak memory."""
    rate = result.timings.decode_tokens_per_second
    peak = result.memory.peak_rss
    parts = [
        f"TTFT {result.timings.ttft:.0f} ms",
        "one token" if rate is None else f"{rate:.1f} tokens/s",
        result.describe_keep(),
    ]
    if peak is not None:
        parts.append(f"peak memory {peak / 2**20:,.0f} MiB")
    return " | ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
