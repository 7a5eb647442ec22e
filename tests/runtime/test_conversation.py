"""Conversations: answers are those of a fresh run, and what is known is not computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.errors import PromptError
from tests.runtime.test_pipeline import make_picture

pytest.importorskip("onnxruntime")

Messages = list[dict[str, Any]]


def user(*parts: object) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return make_picture(0)


def answer(pipeline: Pipeline, messages: Messages, **options: Any):
    return pipeline.chat(messages, max_new_tokens=6, **options).result


def grow(pipeline: Pipeline, picture: Image.Image) -> list[Messages]:
    """The prompts of a conversation of four turns, with the answers that this pipeline gives."""
    turns: Messages = []
    prompts = []
    for said in (
        user("Say something about pictures."),
        user(picture, "What is this?"),
        user("And what else?"),
        user(make_picture(1), make_picture(2, (40, 70)), "What differs?"),
    ):
        turns = [*turns, said]
        prompts.append(turns)
        turns = [*turns, assistant(answer(pipeline, turns).text or "nothing")]
    return prompts


@pytest.fixture(
    scope="module",
    params=[
        ("onnxruntime", {}),
        ("onnxruntime", {"positions": "original"}),
        ("tensorrt", {}),
        ("tensorrt-rtx", {"quant": "int4"}),
        ("jetpack6", {}),
        ("jetpack6", {"quant": "int4"}),
    ],
    ids=lambda param: "-".join([param[0], *map(str, param[1].values())]),
)
def directory(request: pytest.FixtureRequest, target_dir: Any) -> Path:
    target, options = request.param
    return target_dir(target, **options)


def test_every_turn_gives_the_token_ids_of_a_fresh_run(directory, picture):
    growing = Pipeline.from_dir(directory, backend="onnxruntime", threads=1)
    fresh = Pipeline.from_dir(directory, backend="onnxruntime", threads=1)
    reused = []
    for messages in grow(growing, picture):
        expected = answer(fresh, messages, reuse=False)
        # Once more: this time the whole prompt but its last row is known, or, where rows are
        # computed together, all that was asked before.
        again = answer(growing, messages)
        assert again.token_ids == expected.token_ids
        assert again.images == expected.images
        assert expected.cached_tokens == 0
        reused.append(again.cached_tokens / again.prompt_tokens)
    quantised = growing.manifest.quant is not None
    assert min(reused[1:] if quantised else reused) > 0.5


@pytest.mark.parametrize(
    "options", [{"quant": "int4"}, {"quant": "int4", "prefill_quant": "int8"}, {"quant": "int8"}]
)
@pytest.mark.parametrize("rows_at_once", [16, 128])
def test_quantised_weights_take_whole_pieces_from_the_cache_and_compute_as_a_fresh_run(
    rows_at_once, options, target_dir, picture, monkeypatch
):
    """Activations of 8 bits turn the last digit of a sum into a visible difference."""
    monkeypatch.setattr("divprune.runtime.backends.onnxruntime.loading.ROWS_ON_CPU", rows_at_once)
    directory = target_dir("onnxruntime", **options)
    growing, fresh = (Pipeline.from_dir(directory, threads=1) for _ in range(2))
    seen = {id(each): record_logits(each, monkeypatch) for each in (growing, fresh)}
    turns: Messages = []
    asked = 0
    for number in range(4):
        parts = (picture,) if number == 1 else ()
        turns = [*turns, user(*parts, f"What is {'very ' * 12}strange, {number}?")]
        expected = answer(fresh, turns, reuse=False)
        found = answer(growing, turns)
        assert found.token_ids == expected.token_ids
        np.testing.assert_array_equal(seen[id(growing)][-1], seen[id(fresh)][-1])
        assert found.cached_tokens == asked  # all that was asked before, and no row of an answer
        asked = found.prompt_tokens
        turns = [*turns, assistant(found.text or "nothing")]


def record_logits(pipeline, monkeypatch):
    """Every logits of a pipeline from now on."""
    seen, forward = [], pipeline.backend.forward

    def record(*arguments):
        logits = forward(*arguments)
        seen.append(np.array(logits))
        return logits

    monkeypatch.setattr(pipeline.backend, "forward", record)
    return seen


def test_a_follow_up_question_costs_its_own_words(engine_dir, picture):
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    first = [user(picture, "What is this?")]
    said = answer(pipeline, first)
    second = [*first, assistant(said.text or "x"), user("And what else?")]
    followed = answer(pipeline, second)
    # All but the answer, whose text may be tokenised otherwise, and the new words.
    assert followed.cached_tokens >= said.prompt_tokens - 1
    assert followed.timings.vision < said.timings.vision / 2


def test_another_question_about_a_picture_reads_the_picture_from_the_cache(engine_dir, picture):
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    answer(pipeline, [user(picture, "What is this?")])
    other = answer(pipeline, [user(picture.copy(), "How many are there?")])
    fresh = answer(pipeline, [user(picture, "How many are there?")], reuse=False)
    assert other.token_ids == fresh.token_ids
    kept = other.images[0].num_kept
    assert other.cached_tokens >= kept


def test_another_picture_or_another_keep_is_computed_anew(engine_dir, picture):
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    question = "What is this?"
    before = answer(pipeline, [user(picture, question)])
    pixels = np.asarray(picture).copy()
    pixels[0, 0, 0] ^= 1
    for messages, options in (
        ([user(Image.fromarray(pixels), question)], {}),
        ([user(picture, question)], {"keep": 0.05}),
        ([user(picture, question)], {"keep": 1.0}),
    ):
        found = answer(pipeline, messages, **options)
        fresh = answer(Pipeline.from_dir(engine_dir, threads=1), messages, **options)
        assert found.token_ids == fresh.token_ids
        assert found.images == fresh.images
        assert found.cached_tokens < before.prompt_tokens - before.images[0].num_kept
        answer(pipeline, [user(picture, question)])


def test_nothing_is_shared_between_scopes(engine_dir, picture):
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    messages = [user(picture, "What is this?")]
    first = answer(pipeline, messages, scope="a")
    other = answer(pipeline, messages, scope="b")
    assert other.cached_tokens == 0
    assert other.token_ids == first.token_ids
    assert answer(pipeline, messages, scope="b").cached_tokens > 0


def test_an_answer_that_was_broken_off_leaves_a_cache_that_can_be_used(engine_dir, picture):
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    first = [user(picture, "What is this?")]
    generation = pipeline.chat(first, max_new_tokens=20)
    said = next(generation)
    second = [*first, assistant(said), user("Go on.")]
    found = answer(pipeline, second)
    assert found.cached_tokens > 0
    assert found.token_ids == answer(pipeline, second, reuse=False).token_ids


def test_text_alone_is_a_conversation(engine_dir):
    result = answer(Pipeline.from_dir(engine_dir, threads=1), [user("Hello?")])
    assert result.images == ()
    assert result.describe_keep() == "no picture"
    fields = result.to_dict()
    assert (fields["num_image_tokens"], fields["kept_indices"]) == (0, [])


def test_the_picture_cache_is_bounded(engine_dir):
    from divprune.runtime.backends import load_backend
    from divprune.runtime.directory.engine_directory import EngineDirectory

    directory = EngineDirectory.open(engine_dir)
    backend = load_backend(None, directory, device="cpu", threads=1)
    model, selector = directory.manifest.model, directory.manifest.selector
    one = (selector.num_image_tokens + selector.num_kept) * model.hidden_size * 4
    pipeline = Pipeline(directory, backend, picture_cache_bytes=2 * one)
    for seed in range(5):
        answer(pipeline, [user(make_picture(seed), "What is this?")])
        assert pipeline._encoder.cache.num_bytes <= 2 * one
    assert len(pipeline._encoder.cache) == 2


@pytest.mark.parametrize(
    "messages, place",
    [
        ("hello", "messages"),
        ([], "messages"),
        (["hello"], r"messages\[0\]"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\].role"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([user("a"), {"role": "user", "content": []}], r"messages\[1\].content"),
        ([{"role": "user", "content": [{"type": "sound"}]}], r"messages\[0\].content\[0\].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\].content\[0\].text"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\].content\[0\]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}],
            r"messages\[0\].content\[0\].image_url",
        ),
        ([user("a"), assistant("b")], r"messages\[1\].role"),
        ([user(" ")], "the last message is empty"),
    ],
)
def test_messages_of_another_form_are_refused_with_the_place(messages, place):
    from divprune.runtime.inputs.messages import read_messages

    with pytest.raises(PromptError, match=place):
        read_messages(messages)


def test_pictures_may_come_as_openai_clients_send_them(engine_dir, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    expected = answer(pipeline, [user(picture, "What is this?")]).token_ids
    for part in (
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image_url", "image_url": str(path)},
        {"type": "image", "path": path},
        {"type": "image", "url": str(path)},
        {"type": "image", "image": path.read_bytes()},
    ):
        content = [part, {"type": "text", "text": "What is this?"}]
        assert answer(pipeline, [{"role": "user", "content": content}]).token_ids == expected
