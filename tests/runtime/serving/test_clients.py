"""Clients that no one here wrote talk to a real server. ``make clients`` installs them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime import Pipeline
from tests.runtime.serving.client_tools import CLIENTS, node_modules, python_with, run
from tests.runtime.serving.conftest import KEYS
from tests.runtime.serving.serving_process import ServingProcess, noise_png

PICTURE = f"data:image/png;base64,{base64.b64encode(noise_png(0)).decode()}"


@pytest.fixture(scope="module")
def expected(engine_dir: Path) -> Any:
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    return pipeline.generate(noise_png(0), "What is this?", max_new_tokens=8).result


@pytest.fixture
def arguments(guarded_server: ServingProcess, expected: Any) -> list[str]:
    server = guarded_server
    return [server.url, KEYS[0], server.model, PICTURE, expected.text[2:4]]


def check_common(found: dict[str, Any], expected: Any) -> None:
    assert found["answer"] == found["streamed"] == expected.text
    assert found["finish_reason"] == expected.finish_reason
    assert found["later_prompt_tokens"] > expected.prompt_tokens
    assert found["stopped"] == expected.text[: expected.text.index(expected.text[2:4])]


def test_openai_for_python(arguments: list[str], expected: Any) -> None:
    found = json.loads(run([python_with("openai"), CLIENTS / "openai_client.py", *arguments]))
    check_common(found, expected)
    assert found["models"] == [arguments[2]]
    assert found["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert found["streamed_usage"]["completion_tokens"] == len(expected.token_ids)
    assert found["pruning"][0]["num_kept"] == expected.images[0].num_kept
    assert found["smaller_keep"] < expected.prompt_tokens
    assert found["stopped_reason"] == "stop"
    assert found["asynchronous"] == [expected.text] * 4
    assert found["errors"] == [
        ["NotFoundError", "model_not_found"],
        ["BadRequestError", "invalid_value"],
        ["BadRequestError", "unsupported_parameter"],
        ["AuthenticationError", "invalid_api_key"],
    ]


def test_langchain(arguments: list[str], expected: Any) -> None:
    python = python_with("langchain_openai")
    found = json.loads(run([python, CLIENTS / "langchain_client.py", *arguments]))
    check_common(found, expected)
    assert found["usage"]["input_tokens"] == expected.prompt_tokens
    assert found["streamed_usage"][-1]["output_tokens"] == len(expected.token_ids)
    assert found["failed"] == "unsupported_parameter"


def test_openai_for_node(arguments: list[str], expected: Any) -> None:
    modules = node_modules("openai")
    found = json.loads(run(["node", CLIENTS / "openai_client.mjs", modules, *arguments]))
    check_common(found, expected)
    assert found["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert found["streamed_usage"]["completion_tokens"] == len(expected.token_ids)
    assert found["stopped_reason"] == "stop"
    assert found["errors"] == [
        ["NotFoundError", "model_not_found"],
        ["BadRequestError", "unsupported_parameter"],
        ["AuthenticationError", "invalid_api_key"],
    ]


def test_llm(guarded_server: ServingProcess, expected: Any, tmp_path: Path) -> None:
    python = python_with("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: {guarded_server.model}\n"
        f"  api_base: {guarded_server.url}/v1\n  vision: true\n  api_key_name: here\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"here": KEYS[0]}))
    (tmp_path / "picture.png").write_bytes(noise_png(0))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}
    command = [python, "-m", "llm", "-m", "here", "-o", "max_tokens", 8]
    asked = [*command, "-a", tmp_path / "picture.png"]

    def ask(*words: Any) -> str:
        return run([*words], env=environment, stdin=subprocess.DEVNULL).removesuffix("\n")

    # It puts the text in front of the picture, which is another prompt.
    body = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]
    there = guarded_server.chat(body, key=KEYS[0], max_tokens=8).answer
    assert ask(*asked, "What is this?") == there
    assert ask(*asked, "--no-stream", "What is this?") == there
    before = guarded_server.metric("prompt_tokens_total", key=KEYS[0])
    ask(*command, "-c", "And its colour?")
    assert (
        guarded_server.metric("prompt_tokens_total", key=KEYS[0]) - before > expected.prompt_tokens
    )
    wrong = subprocess.run(
        [*map(str, [*command, "--key", "wrong", "Hello"])],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "API key" in wrong.stderr
