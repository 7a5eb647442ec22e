"""``divprune-chat``: a conversation about pictures and videos in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
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
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.pipeline import Pipeline

__all__ = ["Chat", "main"]

_DESCRIPTION = """\
Talk about pictures and videos with an exported engine directory. What was said and seen before
stays in the KV cache: a follow-up question costs its own words."""
_HELP = """\
/image PATH   show a picture with the next message (several are fine)
/video PATH   show a video with the next message
/keep K       keep another fraction of visual tokens from now on: 0.1, auto:0.8, or default
              (what the program was started with)
/reset        forget the conversation
/help         this list
/quit         leave (Ctrl-D does, too); Ctrl-C stops an answer"""
_HISTORY = "~/.divprune_history"
_HISTORY_LINES = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="divprune-chat",
        description=_DESCRIPTION,
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="shown with the first message")
    parser.add_argument("--system", metavar="TEXT", help="what the conversation begins with")
    add_answer_options(parser)
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    sampling = check_answer_options(arguments)
    if sys.stdin is None:
        from divprune.runtime.errors import PromptError

        raise PromptError(
            "there are no messages on standard input",
            expected="a terminal, or lines of text piped in",
            found="a closed stream",
        )
    pipeline = load_pipeline(arguments, open_directory(arguments))
    chat = Chat(pipeline, arguments, sampling)
    for image in arguments.images:
        chat.obey(f"/image {shlex.quote(image)}")
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("/help lists the commands", file=sys.stderr)
    with _line_editing() if is_terminal else contextlib.nullcontext():
        _converse(chat, "> " if is_terminal else "")
    return 0


def _converse(chat: Chat, prompt: str) -> None:
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:  # the shell's own prompt would stand behind this one
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:  # an empty line, not the end of the program
            print(file=sys.stderr)
            continue
        if line in ("/quit", "/exit"):
            return
        if line:
            try:
                chat.take(line)
            except KeyboardInterrupt:  # before the first word of an answer, or in a long video
                print("\n[stopped]", file=sys.stderr)


@contextlib.contextmanager
def _line_editing() -> Any:
    """Editing keys and a history that outlives the program, where the terminal has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    from divprune.runtime.directory.path_text import expand_user

    history = expand_user(_HISTORY)
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(history)


class Chat:
    """One conversation: its messages, and what the next one shows.

    What a message showed that the directory cannot take is put away with the error: it would
    stand in the way of every message that follows.

    Args:
        pipeline: A loaded engine directory.
        arguments: Options of the command line.
        sampling: How tokens are chosen.
    """

    def __init__(
        self, pipeline: Pipeline, arguments: argparse.Namespace, sampling: SamplingOptions
    ) -> None:
        self.pipeline, self._arguments, self._sampling = pipeline, arguments, sampling
        self._exported_keep = arguments.keep
        self.messages: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self._begin()

    def take(self, line: str) -> None:
        """A command, or a message to answer; errors are said and the conversation goes on."""
        from divprune.runtime.errors import DivPruneError, PromptError

        is_command = line.startswith("/")
        try:
            if is_command:
                self.obey(line)
            else:
                self.answer(line)
        except DivPruneError as error:
            print(f"error: {error}", file=sys.stderr)
            if self.shown and not is_command and not isinstance(error, PromptError):
                self.shown = []
                print("[nothing is shown any more]", file=sys.stderr)

    def obey(self, line: str) -> None:
        """Carry out a command.

        Raises:
            OptionError: for an unknown one.
            ImageError: for a picture or video that cannot be read.
            UnsupportedError: for a video where the family takes none.
        """
        from divprune.runtime.errors import OptionError

        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self._show_image,
            "/video": self._show_video,
            "/keep": self._set_keep,
            "/reset": lambda _: self._begin(),
            "/help": lambda _: print(_HELP, file=sys.stderr),
        }
        if name not in commands:
            raise OptionError(f"there is no command {name}", expected=", ".join(commands))
        commands[name](rest.strip())

    def answer(self, text: str) -> None:
        """Stream the answer to a message; Ctrl-C keeps what was said until then.

        Raises:
            DivPruneError: if it cannot be answered; the conversation is as before.
            KeyboardInterrupt: for Ctrl-C before the first word; the same.
        """
        from divprune.runtime.errors import printable

        content = [*self.shown, {"type": "text", "text": text}]
        messages = [*self.messages, {"role": "user", "content": content}]
        options = self._arguments
        generation = self.pipeline.chat(
            messages,
            keep=options.keep,
            max_new_tokens=options.max_new_tokens,
            sampling=self._sampling,
            stop=self._arguments.stop,
            num_frames=options.num_frames,
            fps=options.fps,
        )
        said, stopped = [], False
        on_terminal = sys.stdout.isatty()  # which would obey the escape codes of an answer
        try:
            for piece in generation:
                said.append(piece)
                print(printable(piece) if on_terminal else piece, end="", flush=True)
        except KeyboardInterrupt:
            stopped = True
        print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": "".join(said) or " "}]
        self.shown = []
        if not options.quiet:
            note = "stopped" if stopped else _summary(generation.result)
            print(f"[{note}]", file=sys.stderr)

    def _begin(self) -> None:
        system = self._arguments.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.shown = []

    def _show_image(self, path: str) -> None:
        from divprune.runtime.inputs.image_loading import load_image

        self.shown.append({"type": "image", "image": load_image(_one_path("/image", path))})

    def _show_video(self, path: str) -> None:
        video = self.pipeline.open_video(_one_path("/video", path))
        self.shown.append({"type": "video", "video": video})

    def _set_keep(self, value: str) -> None:
        from divprune.runtime.directory.keep import parse_keep
        from divprune.runtime.generation.kept_tokens import KeepRule

        keep = self._exported_keep if value in ("", "default") else parse_keep(value)
        KeepRule.of(self.pipeline.manifest, keep)
        self._arguments.keep = keep


def _one_path(command: str, rest: str) -> str:
    """The path behind a command: quoted as in a shell, or as it stands, with its spaces.

    Raises:
        OptionError: if there is none.
    """
    from divprune.runtime.errors import OptionError

    if not rest:
        raise OptionError(f"{command} needs a path", expected=f"{command} PATH", found="nothing")
    if rest == "-":
        raise OptionError(
            "standard input is where the messages come from", expected="a path or URL", found="-"
        )
    try:
        words = shlex.split(rest)
    except ValueError:  # a quotation mark in the name itself
        return rest
    return words[0] if len(words) == 1 else rest


def _summary(result: GenerationResult) -> str:
    """Time to first token, rows computed and reused, kept tokens."""
    computed = result.prompt_tokens - result.cached_tokens
    parts = [
        f"TTFT {result.timings.ttft:.0f} ms",
        f"{computed} tokens read, {result.cached_tokens} from the cache",
    ]
    if result.images:
        parts.append(result.describe_keep())
    return " | ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
