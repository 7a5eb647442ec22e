"""A server's answer is the one of ``divprune-run --messages`` about the same conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.cli.run import main
from tests.runtime.serving.serving_process import ServingProcess, noise_png, picture_part

pytest.importorskip("onnxruntime")


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a picture": [{"role": "user", "content": [picture_part(noise_png(1)), text("What is this?")]}],
    "text alone": [{"role": "user", "content": "Hello"}],
    "several pictures and turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("First:"), picture_part(noise_png(2)), text("What?")]},
        {"role": "assistant", "content": "A thing."},
        {"role": "user", "content": [picture_part(noise_png(3)), text("And this?")]},
    ],
}
OPTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    (
        {"temperature": 1.3, "top_p": 0.9, "seed": 5},
        ["--temperature", "1.3", "--top-p", "0.9", "--seed", "5"],
    ),
    ({"temperature": 0.8, "seed": 2**40}, ["--temperature", "0.8", "--seed", str(2**40)]),
    ({"keep": 0.05}, ["--keep", "0.05"]),
    ({"keep": 1.0}, ["--keep", "1.0"]),
    ({"keep": "auto:0.3"}, ["--keep", "auto:0.3"]),
    ({"stop": ["e", "a"]}, ["--stop", "e", "--stop", "a"]),
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_answers_are_those_of_the_command_line(
    conversation: str,
    server: ServingProcess,
    engine_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages = CONVERSATIONS[conversation]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(messages))
    command = [str(engine_dir), "--messages", str(file), "--json", "--quiet", "--threads", "1"]
    seen = set()
    for fields, flags in OPTIONS:
        code = main([*command, "--max-new-tokens", "12", *flags])
        out, err = capsys.readouterr()
        assert code == 0, err
        expected = json.loads(out)
        found = server.chat(messages, max_tokens=12, **fields).json
        assert found["choices"][0]["message"]["content"] == expected["text"], flags
        assert found["choices"][0]["finish_reason"] == expected["finish_reason"]
        assert found["usage"]["completion_tokens"] == len(expected["token_ids"])
        assert found["usage"]["prompt_tokens"] == expected["prompt_tokens"]
        kept = [image["num_kept"] for image in found["divprune"]["images"]]
        assert kept == [image["num_kept"] for image in expected["images"]]
        seen.add(expected["text"])
    assert len(seen) > 2
