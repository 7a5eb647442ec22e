"""Where the answers of a conversation begin in its prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.inputs.messages import read_messages
from divprune.runtime.inputs.prompt_writer import PromptWriter
from divprune.runtime.inputs.tokenization import TextTokenizer
from tests.runtime.engine_copies import copy_engine

pytest.importorskip("onnxruntime")

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "And that?"},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": "Which is older?"},
]
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ':' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# The last message is marked, so that no prompt is the beginning of the next one.
MARKED = "{{ messages|length }}" + PLAIN
# Refuses what does not end with the last question of all.
STRICT = "{% if messages|length < 5 %}{{ raise_exception('too short') }}{% endif %}" + PLAIN


@pytest.fixture
def writer(engine_dir: Path, tmp_path: Path) -> Callable[[str], PromptWriter]:
    def make(template: str) -> PromptWriter:
        copy = copy_engine(engine_dir, tmp_path / "engine")
        directory = EngineDirectory.open(copy)
        (copy / "chat_template.jinja").write_text(template)
        return PromptWriter(directory, {"image": "<image>"}, TextTokenizer.from_dir(copy))

    return make


def test_answers_begin_where_the_prompt_that_they_answered_ends(
    writer: Callable[[str], PromptWriter],
) -> None:
    prompts = writer(PLAIN)
    whole = read_messages(MESSAGES)
    lengths = [len(prompts.write(read_messages(MESSAGES[:n]), []).ids) for n in (1, 3)]
    assert prompts.turn_ends(whole, [], prompts.write(whole, [])) == lengths


@pytest.mark.parametrize("template", [MARKED, STRICT])
def test_prompts_that_no_other_one_begins_with_give_no_place(
    template: str, writer: Callable[[str], PromptWriter]
) -> None:
    prompts = writer(template)
    whole = read_messages(MESSAGES)
    assert prompts.turn_ends(whole, [], prompts.write(whole, [])) == []
