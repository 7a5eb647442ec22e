"""``divprune-chat`` as a person uses it: lines in, streamed answers out."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from divprune.runtime import Pipeline
from divprune.runtime.cli.chat import Chat, _converse, _parser
from divprune.runtime.errors import OptionError
from divprune.runtime.generation.media_encoder import MediaEncoder
from divprune.runtime.generation.sampling import SamplingOptions
from tests.runtime.test_pipeline import make_picture

pytest.importorskip("onnxruntime")

CHAT = [sys.executable, "-m", "divprune.runtime.cli.chat"]
PATIENCE_S = 60
RUN = [sys.executable, "-m", "divprune.runtime.cli.run"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    make_picture(0).save(path)
    return path


def talk(engine_dir: Path, *lines: str, arguments: tuple[str, ...] = ()):
    command = [*CHAT, str(engine_dir), "--max-new-tokens", "4", "--threads", "1", *arguments]
    return subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )


def test_closed_standard_input_is_refused(engine_dir):
    command = ["sh", "-c", '"$0" "$@" <&-', *CHAT, str(engine_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no messages on standard input" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_line_in_another_encoding_is_refused_and_the_next_one_answered(engine_dir, encoding):
    command = [*CHAT, str(engine_dir), "--max-new-tokens", "2", "--threads", "1"]
    done = subprocess.run(
        command,
        input=b"h\xe9\nhello\n",
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"error: ") == 1
    assert done.stdout.strip()


def test_answers_are_those_of_run_with_the_same_messages(engine_dir, picture, tmp_path):
    done = talk(engine_dir, f"/image '{picture}'", "What is this?", "And what else?")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()[:2]
    content = [
        {"type": "image", "image": str(picture)},
        {"type": "text", "text": "What is this?"},
    ]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": first or " "},
        {"role": "user", "content": "And what else?"},
    ]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(messages))
    command = [*RUN, str(engine_dir), "--messages", str(file), "--max-new-tokens", "4", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["text"] == second
    assert "from the cache" in done.stderr


def test_commands_change_the_conversation_and_errors_do_not_end_it(engine_dir, picture):
    done = talk(
        engine_dir,
        "/image nowhere.png",
        "/fly",
        "/keep 2",
        "/keep auto:0.5",
        "/keep default",
        "/reset",
        "Hello?",
        "/quit",
        "never said",
    )
    assert done.returncode == 0
    assert done.stderr.count("error:") == 3
    assert "there is no command /fly" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_pictures_and_a_system_text_of_the_command_line_come_first(engine_dir, picture):
    done = talk(engine_dir, "What is this?", arguments=(str(picture), "--system", "Be brief."))
    assert done.returncode == 0
    assert "kept" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_stops_an_answer_and_not_the_program(engine_dir):
    command = [*CHAT, str(engine_dir), "--max-new-tokens", "400", "--threads", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write("Hello?\n")
        chat.stdin.flush()
        assert chat.stdout.read(1)  # the answer has begun
        chat.send_signal(signal.SIGINT)
        time.sleep(0.5)
        chat.stdin.write("Once more?\n")
        chat.stdin.close()
        chat.stdin = None
        _, err = chat.communicate(timeout=120)
    assert chat.returncode == 0, err
    assert "Traceback" not in err


def test_a_path_may_have_spaces_and_what_is_no_path_is_refused(engine_dir, picture):
    lines = (f"/image {picture}", "What is this?", "/image", "/image it's.png", "/image -")
    done = talk(engine_dir, *lines, f"/image {picture} {picture}", "Still there?")
    assert done.returncode == 0
    assert "in 1 images" not in done.stderr
    assert done.stderr.count("kept") == 2, "the picture of the first message stays"
    for words in ("/image needs a path", "it's.png does not exist", "where the messages come from"):
        assert words in done.stderr
    assert done.stderr.count("error:") == 4
    assert len(done.stdout.splitlines()) == 2


def test_a_video_for_a_model_of_pictures_is_refused_at_once_and_stands_in_no_way(
    engine_dir, tmp_path
):
    done = talk(engine_dir, f"/video {tmp_path}", "Hello?")
    assert done.returncode == 0
    assert "this model takes no videos" in done.stderr
    assert "tokens read" in done.stderr


def test_what_cannot_be_shown_is_put_away_with_the_error(engine_dir, picture, monkeypatch, capsys):
    """The directory refuses the picture only when it is asked about it."""
    chat = make_chat(engine_dir)
    chat.take(f"/image {picture}")
    with monkeypatch.context() as patch:
        patch.setattr(MediaEncoder, "_check_size", refuse)
        chat.take("What is this?")
    assert (chat.shown, chat.messages) == ([], [])
    assert "[nothing is shown any more]" in capsys.readouterr().err
    chat.take(f"/image {picture}")
    chat.take("word " * 3000)
    assert "the prompt is too long" in capsys.readouterr().err
    assert len(chat.shown) == 1, "a shorter question may do"


def test_ctrl_c_before_the_first_word_leaves_the_conversation_as_it_was(
    engine_dir, picture, monkeypatch, capsys
):
    """Python delivers the signal when the library's call returns: as from within it."""
    chat = make_chat(engine_dir)
    forward, calls = chat.pipeline.backend.forward, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(chat.pipeline.backend, "forward", interrupted)
    lines = iter([f"/image {picture}", "What is this?", "What is this?"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or stop())
    _converse(chat, "")
    out, err = capsys.readouterr()
    assert err.count("[stopped]") == 1
    assert len(chat.messages) == 2
    fresh = Pipeline.from_dir(engine_dir, threads=1)
    expected = fresh.generate(picture, "What is this?", max_new_tokens=4).result.text
    assert out == f"{expected}\n"


def make_chat(engine_dir: Path) -> Chat:
    arguments = _parser().parse_args([str(engine_dir), "--max-new-tokens", "4"])
    return Chat(Pipeline.from_dir(engine_dir, threads=1), arguments, SamplingOptions())


def refuse(*_: object) -> None:
    raise OptionError("this picture has more crops than the engine directory allows")


def stop() -> str:
    raise EOFError


class Terminal:
    """``divprune-chat`` on a pseudo-terminal, with a home of its own for the history."""

    def __init__(self, engine_dir: Path, home: Path, *arguments: str) -> None:
        import pty

        self._master, slave = pty.openpty()
        self._shown = ""
        # Opened by the first process of a session it is what Ctrl-C is sent from.
        shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave)]
        self.process = subprocess.Popen(
            [*shell, *CHAT, str(engine_dir), "--threads", "1", *arguments],
            start_new_session=True,
            env={**os.environ, "HOME": str(home), "TERM": "xterm"},
        )
        self._slave = slave  # open until the program has it, or reading would end

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def see(self, words: str) -> str:
        """What is shown up to ``words``, which have to come."""
        while words not in self._shown:
            ready, _, _ = select.select([self._master], [], [], PATIENCE_S)
            assert ready, f"{words!r} is not in {self._shown!r}"
            self._shown += os.read(self._master, 1 << 16).decode(errors="replace")
        before, _, self._shown = self._shown.partition(words)
        return before

    def leave(self) -> int:
        self.type("\x04")
        code = self.process.wait(60)
        os.close(self._slave)
        os.close(self._master)
        return code


needs_terminal = pytest.mark.skipif(os.name != "posix", reason="needs pseudo-terminals")
BACKSPACE, LEFT, UP, CTRL_C = "\x7f", "\x1b[D", "\x1b[A", "\x03"


@needs_terminal
def test_a_terminal_edits_lines_and_remembers_them_beyond_the_program(engine_dir, tmp_path):
    chat = Terminal(engine_dir, tmp_path, "--max-new-tokens", "4")
    assert "/help lists the commands" in chat.see("> ")
    chat.type(f"Whot is thiss{BACKSPACE}?{LEFT * 10}{BACKSPACE}a\r")
    chat.see("tokens read")
    chat.see("> ")
    chat.type("never sent")
    chat.see("never sent")
    time.sleep(0.5)  # a Ctrl-C before input() waits for keys again shows with the next key only
    chat.type(CTRL_C)
    chat.see("> ")
    assert chat.leave() == 0
    assert (tmp_path / ".divprune_history").read_text() == "What is this?\n"
    again = Terminal(engine_dir, tmp_path, "--max-new-tokens", "4")
    again.see("> ")
    again.type(f"{UP}\r")
    assert "What is this?" in again.see("tokens read")
    again.see("> ")
    assert again.leave() == 0


@needs_terminal
def test_ctrl_c_in_a_terminal_stops_the_answer_and_the_next_one_comes(engine_dir, tmp_path):
    chat = Terminal(engine_dir, tmp_path, "--max-new-tokens", "400")
    chat.see("> ")
    chat.type("Hello?\r")
    chat.see("Hello?\r\n")
    chat.see(" ")  # within the answer
    chat.type(CTRL_C)
    chat.see("[stopped]")
    chat.see("> ")
    chat.type("/keep auto:1.5\r")
    chat.see("0 < C <= 1")
    chat.see("> ")
    chat.type("/reset\r")
    chat.see("> ")
    assert chat.leave() == 0
