"""``divprune-run``: answer a question about pictures with an engine directory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.cli.each_picture import answer_each
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
_MAX_PROMPT_BYTES = 1 << 20
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
    add("images", nargs="*", metavar="IMAGE", help="path, URL (http, https, file, data), or - for"
        " standard input")  # fmt: skip
    add("--video", metavar="PATH", help="a video file, an animation or a folder of frames")
    add("--prompt", default=_PROMPT, help="the question, or - to read it from standard input"
        " (default: %(default)s)")  # fmt: skip
    add("--each", action="store_true", help="an answer for each IMAGE, not one about all")
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
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    form.add_argument("--jsonl", action="store_true", help="--each, with a line of JSON for every"
        " answer, or what is wrong with the picture")  # fmt: skip
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    sampling = check_answer_options(arguments)
    arguments.each = arguments.each or arguments.jsonl
    _check_options(arguments)
    if arguments.prompt == "-":
        arguments.prompt = _read_prompt()
    messages = [] if arguments.each else _messages(arguments)
    directory = open_directory(arguments)
    _check_drawable(arguments, directory)
    pipeline = load_pipeline(arguments, directory)
    if arguments.each:
        return answer_each(arguments, pipeline, sampling)
    generation = pipeline.chat(
        messages,
        keep=arguments.keep,
        max_new_tokens=arguments.max_new_tokens,
        sampling=sampling,
        stop=arguments.stop,
        num_frames=arguments.num_frames,
        fps=arguments.fps,
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
    from divprune.runtime.inputs.messages import as_pictures

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
    unfit = {
        "no IMAGE": not arguments.images,
        "--video": given["--video"],
        "--messages": arguments.messages is not None,
        "--overlay": arguments.overlay is not None,
        "--json": arguments.json,
    }
    if arguments.each and any(unfit.values()):
        raise OptionError(
            "--each (and --jsonl) answer about one picture after the other",
            expected="one IMAGE or several, and no --video, --messages, --overlay or --json",
            found=", ".join(name for name, is_given in unfit.items() if is_given),
        )
    if arguments.images:
        as_pictures([*arguments.images, *(["-"] if arguments.prompt == "-" else [])])
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
    _check_frames(arguments)
    media = [*arguments.images, *([arguments.video] if arguments.video else [])]
    check_overlay_options(arguments.overlay, media, numbers=arguments.overlay_numbers)


def _check_frames(arguments: argparse.Namespace) -> None:
    """Refuse options of a video where there is none; a conversation may have one."""
    from divprune.runtime.errors import OptionError

    given = {"--num-frames": arguments.num_frames, "--fps": arguments.fps}
    names = " and ".join(name for name, value in given.items() if value is not None)
    if names and arguments.video is None and arguments.messages is None:
        raise OptionError(
            f"{names} would have no effect without a video",
            expected="a --video, or --messages with one",
            found="pictures only" if arguments.images else "neither",
            fix=f"add --video PATH, or leave {names} out",
        )


def _read_prompt() -> str:
    """A question from standard input, less the line's end.

    Raises:
        PromptError: if it is closed, a terminal, too long, or not UTF-8.
    """
    from divprune.runtime.errors import PromptError

    found: object
    if sys.stdin is None or sys.stdin.isatty():
        found = "a closed stream" if sys.stdin is None else "a terminal"
    else:
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        try:
            if len(data) <= _MAX_PROMPT_BYTES:
                return data.decode("utf-8-sig").rstrip("\r\n")
            found = f"more than {_MAX_PROMPT_BYTES} bytes"
        except UnicodeDecodeError as error:
            found = error
    raise PromptError(
        "there is no question on standard input",
        expected="UTF-8 text piped in",
        found=found,
        fix="echo 'What is it?' | divprune-run ENGINE_DIR picture.jpg --prompt -",
    )


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
    from divprune.runtime.directory.bounded_json import read_json
    from divprune.runtime.errors import PromptError

    content: list[dict[str, Any]] = read_json(path, error=PromptError)
    return content


def _check_drawable(arguments: argparse.Namespace, directory: EngineDirectory) -> None:
    if arguments.overlay is None:
        return
    from divprune.runtime.cli.overlay_files import check_drawable
    from divprune.runtime.generation.kept_tokens import resolve_keep

    count = resolve_keep(directory.manifest, arguments.keep)
    check_drawable(directory.manifest, count, numbers=arguments.overlay_numbers)


def _stream(generation: Generation) -> None:
    from divprune.runtime.errors import printable

    on_terminal = sys.stdout.isatty()  # which would obey the escape codes of an answer
    for piece in generation:
        print(printable(piece) if on_terminal else piece, end="", flush=True)
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
            medium,
            pruning,
            numbers=arguments.overlay_numbers,
            num_frames=arguments.num_frames,
            fps=arguments.fps,
        )
        write_overlay(path, overlay)


def _summary(result: GenerationResult) -> str:
    """One line: time to first token, decode rate, kept tokens, peak memory."""
    rate = result.timings.decode_tokens_per_second
    peak = result.memory.peak_rss
    parts = [
        f"TTFT {result.timings.ttft:.0f} ms",
        "one token" if rate is None else f"{rate:.1f} tokens/s",
        *([] if result.text else ["an empty answer"]),
        result.describe_keep(),
        *(each.note for each in result.images if each.note is not None),
    ]
    if peak is not None:
        parts.append(f"peak memory {peak / 2**20:,.0f} MiB")
    return " | ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
