"""``divprune-chat`` as a person uses it: lines in, streamed answers out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.test_pipeline import make_picture

pytest.importorskip("onnxruntime")

CHAT = [sys.executable, "-m", "divprune.runtime.cli.chat"]
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
