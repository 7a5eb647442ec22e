"""``divprune-run``: answer a question about pictures with an engine directory."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.cli.main_guard import ToolParser, add_common_options, run_tool
from divprune.runtime.cli.model_options import (
    add_answer_options,
    add_model_options,
    check_answer_options,
    load_pipeline,
    open_directory,
)

if TYPE_CHECKING:
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.generation.generation import Generation
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.pipeline import Pipeline

__all__ = ["main"]

_PROMPT = "Describe the image."
_DESCRIPTION = """\
Answer a question about pictures or a video with an exported engine directory.
The text goes to stdout as it is made, everything else to stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-run", description=_DESCRIPTION)
    add = parser.add_argument
    add_model_options(parser)
    add("images", nargs="*", metavar="IMAGE", help="path, http(s) URL, or - for standard input")
    add("--video", metavar="PATH", help="a video file, an animation or a folder of frames")
    add("--prompt", default=_PROMPT, help="the question (default: %(default)s)")
    add("--system", metavar="TEXT", help="what the conversation begins with")
    add(
        "--messages",
        type=Path,
        metavar="FILE",
        help="a whole conversation as JSON, in the form of OpenAI's chat API, instead of IMAGE, "
        "--video, --prompt and --system",
    )
    add_answer_options(parser)
    add("--overlay", metavar="FILE", help="draw kept patches bright (out.png, out-2.png, ...)")
    add("--overlay-numbers", action="store_true", help="number them in the order of selection")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    sampling = check_answer_options(arguments)
    _check_options(arguments)
    messages = _messages(arguments)
    directory = open_directory(arguments)
    _check_drawable(arguments, directory)
    pipeline = load_pipeline(arguments, directory)
    generation = pipeline.chat(
        messages,
        keep=arguments.keep,
        max_new_tokens=arguments.max_new_tokens,
        sampling=sampling,
        num_frames=arguments.num_frames,
    )
    if arguments.json:
        print(json.dumps(generation.result.to_dict()))
    else:
        _stream(generation)
        if not arguments.quiet:
            print(_summary(generation.result), file=sys.stderr)
    if arguments.overlay is not None:
        _write_overlays(arguments, pipeline, messages, generation.result)
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Check what belongs to this tool alone, before any file is opened.

    Raises:
        OptionError: for options that do not go together.
    """
    from divprune.runtime.cli.overlay_files import check_overlay_options
    from divprune.runtime.errors import OptionError
    from divprune.runtime.pipeline import as_pictures

    given = {
        "IMAGE": bool(arguments.images),
        "--video": arguments.video is not None,
        "--prompt": arguments.prompt != _PROMPT,
        "--system": arguments.system is not None,
    }
    if arguments.messages is not None and any(given.values()):
        raise OptionError(
            "--messages is a whole conversation",
            expected="no IMAGE, --video, --prompt or --system with it",
            found=", ".join(name for name, is_given in given.items() if is_given),
            fix="put them into the file",
        )
    if arguments.images:
        as_pictures(arguments.images)
    if arguments.messages is None and not (given["IMAGE"] or given["--video"] or given["--prompt"]):
        raise OptionError(
            "there is neither a picture nor a question",
            expected="an IMAGE, a --video, or a --prompt",
            found="none of them",
        )
    if arguments.overlay is not None and arguments.messages is not None:
        raise OptionError(
            "--overlay is for pictures of the command line",
            expected="IMAGE or --video with it",
            found="--messages",
        )
    media = [*arguments.images, *([arguments.video] if arguments.video else [])]
    check_overlay_options(arguments.overlay, media, numbers=arguments.overlay_numbers)


def _messages(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The conversation; pictures are decoded, so that a wrong name shows before gigabytes load."""
    from divprune.runtime.inputs.image_loading import load_image
    from divprune.runtime.inputs.messages import question, read_messages

    if arguments.messages is not None:
        messages = _read_messages_file(arguments.messages)
        read_messages(messages)
        return messages
    pictures = [load_image(image) for image in arguments.images]
    messages = question(arguments.prompt, pictures, arguments.system)
    if arguments.video is not None:
        messages[-1]["content"].insert(-1, {"type": "video", "video": arguments.video})
    return messages


def _read_messages_file(path: Path) -> list[dict[str, Any]]:
    from divprune.runtime.errors import PromptError

    try:
        content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(
            f"{path} cannot be read as a conversation",
            expected="JSON: a list of messages with role and content",
            found=error,
        ) from error
    return content


def _check_drawable(arguments: argparse.Namespace, directory: EngineDirectory) -> None:
    if arguments.overlay is None:
        return
    from divprune.runtime.cli.overlay_files import check_drawable
    from divprune.runtime.generation.kept_tokens import resolve_keep

    count = resolve_keep(directory.manifest, arguments.keep)
    check_drawable(directory.manifest, count, numbers=arguments.overlay_numbers)


def _stream(generation: Generation) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    for piece in generation:
        print(piece, end="", flush=True)
    print(flush=True)


def _write_overlays(
    arguments: argparse.Namespace,
    pipeline: Pipeline,
    messages: list[dict[str, Any]],
    result: GenerationResult,
) -> None:
    from divprune.runtime.cli.overlay_files import overlay_paths, write_overlay

    media = [
        part[part["type"]] for part in messages[-1]["content"] if part["type"] in ("image", "video")
    ]
    paths = overlay_paths(arguments.overlay, len(media))
    for path, medium, pruning in zip(paths, media, result.images, strict=True):
        overlay = pipeline.draw_overlay(
            medium, pruning, numbers=arguments.overlay_numbers, num_frames=arguments.num_frames
        )
        write_overlay(path, overlay)


def _summary(result: GenerationResult) -> str:
    """One line: time to first token, decode rate, kept tokens, peak memory."""
    rate = result.timings.decode_tokens_per_second
    peak = result.memory.peak_rss
    parts = [
        f"TTFT {result.timings.ttft:.0f} ms",
        "one token" if rate is None else f"{rate:.1f} tokens/s",
        result.describe_keep(),
        *(each.note for each in result.images if each.note is not None),
    ]
    if peak is not None:
        parts.append(f"peak memory {peak / 2**20:,.0f} MiB")
    return " | ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
