from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save

import divprune.runtime
from divprune.runtime import Generation, Pipeline, SamplingOptions
from divprune.runtime.backends import Backend
from divprune.runtime.backends.image_features import ImageFeatures
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import (
    EngineDirectoryError,
    ImageError,
    NumericalError,
    OptionError,
    PromptError,
)
from divprune.runtime.generation.generation import InterruptedAnswerError
from divprune.runtime.inputs.messages import as_pictures
from divprune.runtime.inputs.tokenization import TextTokenizer
from tests.runtime.engine_copies import copy_engine, read_manifest

pytest.importorskip("onnxruntime")

QUESTION = "What is in the picture?"


class Recorder:
    """The real backend, and a record of what went through it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self.rows_at_once = backend.rows_at_once
        self.features: list[ImageFeatures] = []
        self.embeds: list[np.ndarray] = []
        self.positions: list[list[int]] = []
        self.logits: list[np.ndarray] = []

    def encode_image(self, inputs: Mapping[str, np.ndarray]) -> ImageFeatures:
        self.features.append(self.backend.encode_image(inputs))
        return self.features[-1]

    def reset(self, rows: int = 0) -> int:
        self.embeds, self.positions, self.logits = [], [], []
        return self.backend.reset(rows)

    def forward(
        self, inputs_embeds: np.ndarray, position_ids: np.ndarray, planes: Any = ()
    ) -> np.ndarray:
        self.embeds.append(inputs_embeds)
        self.positions.append(position_ids[0].tolist())
        self.logits.append(self.backend.forward(inputs_embeds, position_ids, planes))
        return self.logits[-1]


class Fresh(Pipeline):
    """A pipeline that computes every answer anew, so that its backend sees all of it."""

    def generate(self, images: Any, prompt: str, **options: Any) -> Generation:
        return super().generate(images, prompt, **{"reuse": False, **options})


def make_picture(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return make_picture(0)


@pytest.fixture(scope="module")
def loaded(engine_dir: Path) -> Pipeline:
    return Pipeline.from_dir(engine_dir, threads=1)


@pytest.fixture
def pipeline(engine_dir: Path, loaded: Pipeline) -> Pipeline:
    return Fresh(EngineDirectory.open(engine_dir), Recorder(loaded.backend))


def changed(engine_dir: Path, copy: Path, loaded: Pipeline, **changes: Any) -> Pipeline:
    """A pipeline over a changed directory that shares the graphs already loaded."""
    directory = EngineDirectory.open(copy_engine(engine_dir, copy, **changes))
    return Fresh(directory, Recorder(loaded.backend))


def with_eos(engine_dir: Path, copy: Path, loaded: Pipeline, eos: object) -> Pipeline:
    config = json.dumps({"eos_token_id": eos}).encode()
    return changed(engine_dir, copy, loaded, files={"generation_config.json": config})


def text_ids(pipeline: Pipeline, num_images: int) -> list[int]:
    """Ids of a prompt whose pictures have one visual token each."""
    return pipeline.prompt_ids(QUESTION, num_images)


def test_the_pieces_are_the_text_of_the_token_ids(pipeline, engine_dir, picture):
    generation = pipeline.generate(picture, QUESTION, max_new_tokens=12)
    pieces = list(generation)
    result = generation.result

    assert len(result.token_ids) == 12
    assert all(pieces)
    assert "".join(pieces) == result.text
    assert TextTokenizer.from_dir(engine_dir).decode(result.token_ids).startswith(result.text)
    assert result.finish_reason == "length"


def test_each_token_is_the_most_likely_after_the_ones_before(pipeline, picture):
    """The same rows in one prefill, without the cache, lead to the same tokens."""
    result = pipeline.generate(picture, QUESTION, max_new_tokens=6).result
    recorder = pipeline.backend
    rows = np.concatenate(recorder.embeds, axis=1)
    start = result.prompt_tokens

    np.testing.assert_array_equal(rows[0, start:], pipeline._table.rows(result.token_ids[:-1]))
    for count, token in enumerate(result.token_ids):
        length = start + count
        recorder.reset()
        logits = recorder.forward(rows[:, :length], np.arange(length)[np.newaxis])
        assert np.argmax(logits) == token


def test_prefill_holds_the_kept_features_where_the_placeholders_stood(pipeline, picture):
    result = pipeline.generate(picture, QUESTION, max_new_tokens=1).result
    (features,), (embeds,) = pipeline.backend.features, pipeline.backend.embeds
    ids = text_ids(pipeline, 1)
    place = ids.index(pipeline.manifest.model.image_token_id)
    (image,) = result.images

    assert list(image.kept_indices) == sorted(features.selection_order.tolist())
    assert image.num_image_tokens == pipeline.manifest.selector.num_image_tokens
    assert image.num_kept == pipeline.manifest.selector.num_kept
    assert result.prompt_tokens == len(ids) - 1 + image.num_kept
    np.testing.assert_array_equal(
        embeds[0],
        np.concatenate(
            [
                pipeline._table.rows(ids[:place]),
                features.image_features[list(image.kept_indices)],
                pipeline._table.rows(ids[place + 1 :]),
            ]
        ),
    )


def test_a_smaller_keep_takes_the_nested_prefix(pipeline, picture):
    number = pipeline.manifest.selector.num_image_tokens
    result = pipeline.generate(picture, QUESTION, keep=2 / number, max_new_tokens=1).result
    order = pipeline.backend.features[0].selection_order
    assert list(result.images[0].kept_indices) == sorted(order[:2].tolist())


def test_keep_1_shows_every_token(pipeline, picture):
    result = pipeline.generate(picture, QUESTION, keep=1.0, max_new_tokens=1).result
    number = pipeline.manifest.selector.num_image_tokens
    assert result.images[0].kept_indices == tuple(range(number))
    assert result.prompt_tokens == len(text_ids(pipeline, 1)) - 1 + number


def test_each_picture_is_pruned_on_its_own(pipeline, picture):
    other = make_picture(1, (40, 70))
    alone = [pipeline.generate(one, QUESTION, max_new_tokens=1).result for one in (picture, other)]
    together = pipeline.generate([picture, other], QUESTION, max_new_tokens=4).result

    assert together.images == tuple(replace(one.images[0], num_media=2) for one in alone)
    assert alone[0].images != alone[1].images
    kept = pipeline.manifest.selector.num_kept
    assert together.prompt_tokens == len(text_ids(pipeline, 2)) - 2 + 2 * kept
    assert together.describe_keep().endswith("removed in 2 images")


def test_the_order_of_pictures_matters(pipeline, picture):
    other = make_picture(1)
    pipeline.generate([picture, other], QUESTION)
    (first,) = pipeline.backend.embeds
    pipeline.generate([other, picture], QUESTION)
    assert np.abs(first - pipeline.backend.embeds[0]).max() > 1e-3


def test_a_second_generation_starts_from_an_empty_cache(pipeline, picture):
    first = pipeline.generate(picture, QUESTION, max_new_tokens=8).result
    pipeline.generate(make_picture(3), "Something else", max_new_tokens=8).result  # noqa: B018
    assert (
        pipeline.generate(picture, QUESTION, max_new_tokens=8).result.token_ids == first.token_ids
    )


def test_a_picture_may_be_a_path_bytes_or_an_image(pipeline, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    answers = {
        pipeline.generate(source, QUESTION, max_new_tokens=5).result.token_ids
        for source in (picture, path, str(path), buffer.getvalue(), [path])
    }
    assert len(answers) == 1


def test_contiguous_positions_go_on_in_decoding(pipeline, picture):
    result = pipeline.generate(picture, QUESTION, max_new_tokens=4).result
    length = result.prompt_tokens
    assert pipeline.backend.positions == [
        list(range(length)), [length], [length + 1], [length + 2]
    ]  # fmt: skip


def test_original_positions_go_on_from_the_unpruned_length(engine_dir, loaded, tmp_path, picture):
    pipeline = changed(engine_dir, tmp_path / "e", loaded, selector__positions="original")
    result = pipeline.generate(picture, QUESTION, max_new_tokens=3).result
    prefill, *decode = pipeline.backend.positions
    ids = text_ids(pipeline, 1)
    place = ids.index(pipeline.manifest.model.image_token_id)
    number = pipeline.manifest.selector.num_image_tokens

    assert prefill[:place] == list(range(place))
    kept = result.images[0].num_kept
    assert prefill[place : place + kept] == [place + i for i in result.images[0].kept_indices]
    full = len(ids) - 1 + number
    assert prefill[place + kept :] == list(range(place + number, full))
    assert decode == [[full], [full + 1]]


def test_original_and_contiguous_positions_agree_where_nothing_is_pruned(
    engine_dir, loaded, tmp_path, picture, pipeline
):
    original = changed(engine_dir, tmp_path / "e", loaded, selector__positions="original")
    answers = {
        one.generate(picture, QUESTION, keep=1.0, max_new_tokens=8).result.token_ids
        for one in (original, pipeline)
    }
    assert len(answers) == 1


@pytest.mark.parametrize("as_list", [False, True])
def test_an_end_token_ends_the_answer_and_is_part_of_it(
    engine_dir, loaded, tmp_path, picture, pipeline, as_list
):
    sampling = SamplingOptions(temperature=5.0, seed=2)
    free = pipeline.generate(picture, QUESTION, max_new_tokens=9, sampling=sampling).result
    eos = free.token_ids[4]
    stopping = with_eos(engine_dir, tmp_path / "e", loaded, [0, eos] if as_list else eos)

    result = stopping.generate(picture, QUESTION, max_new_tokens=9, sampling=sampling).result

    end = free.token_ids.index(eos) + 1
    assert result.token_ids == free.token_ids[:end]
    assert result.finish_reason == "stop"
    assert len(result.timings.decode) == end - 1


def test_an_end_token_at_the_limit_is_a_stop(engine_dir, loaded, tmp_path, picture, pipeline):
    first = pipeline.generate(picture, QUESTION, max_new_tokens=1).result
    assert first.finish_reason == "length"
    stopping = with_eos(engine_dir, tmp_path / "e", loaded, first.token_ids[0])
    result = stopping.generate(picture, QUESTION, max_new_tokens=1).result
    assert result.finish_reason == "stop"
    assert result.token_ids == first.token_ids


def test_one_token_has_no_decode_rate(pipeline, picture):
    result = pipeline.generate(picture, QUESTION, max_new_tokens=1).result
    assert result.timings.decode_per_token is None
    assert result.timings.decode_tokens_per_second is None
    assert result.to_dict()["timings_ms"]["decode_per_token"] is None


def test_a_seed_makes_draws_repeatable(pipeline, picture):
    def draw(seed: int) -> tuple[int, ...]:
        options = SamplingOptions(temperature=2.0, seed=seed)
        return pipeline.generate(
            picture, QUESTION, max_new_tokens=16, sampling=options
        ).result.token_ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_timings_add_up_and_fit_into_the_wall_time(pipeline, picture):
    start = perf_counter()
    generation = pipeline.generate(picture, QUESTION, max_new_tokens=7)
    until_first = (perf_counter() - start) * 1000
    timings = generation.result.timings
    until_last = (perf_counter() - start) * 1000

    parts = (timings.preprocess, timings.vision, timings.merge, timings.prefill)
    assert all(part > 0 for part in (*parts, timings.first_sample))
    assert timings.ttft == pytest.approx(sum(parts) + timings.first_sample)
    assert timings.ttft <= until_first
    assert len(timings.decode) == 6
    assert timings.decode_per_token == pytest.approx(sum(timings.decode) / 6)
    assert timings.ttft + sum(timings.decode) <= until_last


def test_the_first_token_is_chosen_before_generate_returns_and_no_other(pipeline, picture):
    generation = pipeline.generate(picture, QUESTION, max_new_tokens=5)
    assert len(pipeline.backend.logits) == 1
    assert generation.result.token_ids[0] == np.argmax(pipeline.backend.logits[0])
    assert len(pipeline.backend.logits) == 5


def test_memory_counts_the_cache_that_was_allocated(pipeline, loaded, picture):
    memory = pipeline.generate(picture, QUESTION, max_new_tokens=1).result.memory
    buffers = loaded.backend._residents.decoder().parts[0].cache.values.values()
    assert memory.kv_cache == sum(buffer.numpy().nbytes for buffer in buffers)
    assert memory.peak_rss > memory.kv_cache
    assert memory.peak_device is None


def test_the_result_finishes_what_was_not_iterated(pipeline, picture):
    generation = pipeline.generate(picture, QUESTION, max_new_tokens=8)
    first = next(generation)
    result = generation.result
    assert result.text.startswith(first)
    assert len(result.token_ids) == 8
    assert generation.result is result
    with pytest.raises(StopIteration):
        next(generation)


def test_the_next_generation_ends_the_one_before(pipeline, picture):
    first = pipeline.generate(picture, QUESTION, max_new_tokens=50)
    second = pipeline.generate(picture, QUESTION, max_new_tokens=5)
    with pytest.raises(RuntimeError, match="another generation"):
        list(first)
    with pytest.raises(RuntimeError, match="no result"):
        first.result  # noqa: B018
    assert len(second.result.token_ids) == 5


@pytest.mark.parametrize("tokens", [1, 4])
def test_an_interrupted_answer_computes_no_further_token(pipeline, picture, tokens):
    backend = pipeline.backend
    generation = pipeline.generate(
        picture, QUESTION, max_new_tokens=50, interrupted=lambda: len(backend.logits) == tokens
    )
    with pytest.raises(InterruptedAnswerError):
        list(generation)
    assert len(backend.logits) == tokens
    assert len(pipeline.generate(picture, QUESTION, max_new_tokens=5).result.token_ids) == 5


def test_an_interrupted_prompt_is_encoded_to_the_picture_in_hand_and_not_prefilled(
    pipeline, picture
):
    backend = pipeline.backend
    for encoded in (0, 1, 2):
        backend.features.clear()
        with pytest.raises(InterruptedAnswerError):
            pipeline.generate(
                [picture, make_picture(1)],
                QUESTION,
                interrupted=lambda most=encoded: len(backend.features) == most,
            )
        assert len(backend.features) == encoded
        assert backend.logits == []


def test_a_refused_generation_leaves_the_one_before_alone(pipeline, picture):
    first = pipeline.generate(picture, QUESTION, max_new_tokens=5)
    with pytest.raises(OptionError):
        pipeline.generate(picture, QUESTION, keep=0)
    assert len(first.result.token_ids) == 5


def test_the_answer_stops_with_a_warning_where_the_room_ends(pipeline, engine_dir, picture, caplog):
    needed = pipeline.generate(picture, QUESTION, max_new_tokens=1).result.prompt_tokens
    short = Pipeline.from_dir(engine_dir, max_seq_len=needed + 3)
    with caplog.at_level(logging.WARNING):
        result = short.generate(picture, QUESTION, max_new_tokens=10).result
    assert len(result.token_ids) == 3
    assert result.finish_reason == "length"
    assert "3 of 10 tokens" in caplog.text


def test_the_cache_takes_an_answer_up_to_the_last_slot(pipeline, picture):
    room = pipeline.manifest.max_seq_len - len(text_ids(pipeline, 1))
    result = pipeline.generate(picture, QUESTION, max_new_tokens=room).result
    assert result.prompt_tokens + len(result.token_ids) <= pipeline.manifest.max_seq_len


def test_a_prompt_too_long_is_refused_before_the_vision_graph_runs(pipeline, picture):
    words = "word " * pipeline.manifest.max_prefill_len
    with pytest.raises(PromptError, match="the prompt is too long") as caught:
        pipeline.generate(picture, words)
    kept = pipeline.manifest.selector.num_kept
    assert str(caught.value.found).endswith(f"{kept} of them image tokens")
    assert not pipeline.backend.features


def test_a_keep_above_the_exported_is_refused_before_the_vision_graph_runs(pipeline, picture):
    with pytest.raises(OptionError, match="larger than what this engine directory was exported"):
        pipeline.generate(picture, QUESTION, keep=0.5)
    assert not pipeline.backend.features


def test_keep_1_without_the_baseline_is_refused(engine_dir, loaded, tmp_path, picture):
    pipeline = changed(engine_dir, tmp_path / "e", loaded, baseline=False)
    with pytest.raises(OptionError, match="without the baseline"):
        pipeline.generate(picture, QUESTION, keep=1.0)


def test_no_new_token_is_refused(pipeline, picture):
    with pytest.raises(OptionError, match="--max-new-tokens must be at least 1"):
        pipeline.generate(picture, QUESTION, max_new_tokens=0)


def test_a_file_that_is_no_picture_is_refused(pipeline, tmp_path):
    (tmp_path / "no.png").write_text("not a picture")
    with pytest.raises(ImageError):
        pipeline.generate(tmp_path / "no.png", QUESTION)


def test_no_picture_is_refused(pipeline):
    with pytest.raises(OptionError, match="no picture"):
        pipeline.generate([], QUESTION)


def test_standard_input_gives_one_picture_only():
    assert as_pictures(("-", "a.png")) == ["-", "a.png"]
    with pytest.raises(OptionError, match="standard input"):
        as_pictures(["-", Path("a.png"), "-"])


def test_a_picture_encoded_once_gives_the_same_answers_without_the_vision_graph(pipeline, picture):
    encoded = pipeline.encode_image(picture)
    for keep in (None, 1.0, 0.05):
        expected = pipeline.generate(picture, QUESTION, keep=keep, max_new_tokens=6).result
        seen = len(pipeline.backend.features)
        found = pipeline.generate(encoded, QUESTION, keep=keep, max_new_tokens=6).result
        assert len(pipeline.backend.features) == seen
        assert (found.token_ids, found.images) == (expected.token_ids, expected.images)


def test_pictures_encoded_ahead_are_found_by_calls_of_the_same_scope(pipeline, picture):
    pictures = [picture, make_picture(1)]
    messages = [{"role": "user", "content": [
        *({"type": "image", "image": each} for each in pictures),
        {"type": "text", "text": QUESTION},
    ]}]  # fmt: skip
    seen = pipeline.backend.features
    expected = pipeline.generate(pictures, QUESTION, max_new_tokens=5).result
    pipeline.forget()
    seen.clear()
    for _ in range(2):
        pipeline.encode_ahead(messages, scope="a")
    assert len(seen) == 2
    result = pipeline.chat(messages, max_new_tokens=5, scope="a").result
    assert len(seen) == 2
    assert result.token_ids == expected.token_ids
    assert result.images == expected.images
    pipeline.chat(messages, max_new_tokens=5, scope="b")
    assert len(seen) == 4


def test_times_of_an_encoded_picture_include_what_encoding_took(pipeline, picture):
    encoded = replace(pipeline.encode_image(picture), preprocess_ms=100.0, vision_ms=2000.0)
    both = pipeline.generate([encoded, picture], QUESTION, max_new_tokens=1).result.timings
    assert both.preprocess > 100
    assert both.vision > 2000
    assert both.ttft > 2100


def test_a_vision_graph_that_produces_nan_is_refused(engine_dir, tmp_path, picture):
    """The real graph with weights that are all NaN: it must neither crash nor loop."""
    weights = (engine_dir / "vision" / "model.onnx.data").stat().st_size
    broken = copy_engine(
        engine_dir, tmp_path / "e", files={"vision/model.onnx.data": b"\xff" * weights}
    )
    with pytest.raises(NumericalError, match=r"(?s)the vision graph produced NaN/Inf.*fp32"):
        Pipeline.from_dir(broken, threads=1).generate(picture, QUESTION)


def test_a_language_model_that_produces_nan_is_refused(engine_dir, loaded, tmp_path, picture):
    name = "embed_tokens.safetensors"
    table = load_file(engine_dir / name)["embed_tokens"] * np.nan
    pipeline = changed(
        engine_dir, tmp_path / "e", loaded, files={name: save({"embed_tokens": table})}
    )
    with pytest.raises(NumericalError, match="logits"):
        pipeline.generate(picture, QUESTION)


def test_an_embedding_table_of_another_model_is_refused(engine_dir, loaded, tmp_path):
    table = save({"embed_tokens": np.zeros((480, 32), np.float32)})
    with pytest.raises(EngineDirectoryError, match="disagree about the embedding size"):
        changed(engine_dir, tmp_path / "e", loaded, files={"embed_tokens.safetensors": table})


def test_an_embedding_table_of_another_type_is_refused(engine_dir, loaded, tmp_path):
    hidden = read_manifest(engine_dir).model.hidden_size
    table = save({"embed_tokens": np.zeros((480, hidden), np.float16)})
    with pytest.raises(EngineDirectoryError, match="disagree about the embedding type"):
        changed(engine_dir, tmp_path / "e", loaded, files={"embed_tokens.safetensors": table})


def test_a_preprocessor_of_another_model_is_refused(engine_dir, loaded, tmp_path):
    name = "preprocessor_config.json"
    config = json.loads((engine_dir / name).read_text())
    for key in ("size", "crop_size"):
        config[key] = {"height": 32, "width": 32}
    with pytest.raises(EngineDirectoryError, match="do not fit each other"):
        changed(engine_dir, tmp_path / "e", loaded, files={name: json.dumps(config).encode()})


def test_an_engine_directory_with_a_changed_byte_is_refused(engine_dir, tmp_path):
    copy = copy_engine(engine_dir, tmp_path / "e")
    data = bytearray((copy / "llm" / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "llm" / "model.onnx.data").write_bytes(data)
    with pytest.raises(EngineDirectoryError, match="SHA-256"):
        Pipeline.from_dir(copy)


def test_the_report_has_the_fields_of_the_command_line(pipeline, picture):
    report = pipeline.generate([picture, make_picture(1)], QUESTION, max_new_tokens=3).result
    fields = json.loads(json.dumps(report.to_dict()))

    assert fields["token_ids"] == list(report.token_ids)
    assert fields["timings_ms"].keys() >= {
        "preprocess", "vision", "prefill", "ttft", "decode_per_token"
    }  # fmt: skip
    assert fields["memory_bytes"].keys() == {"peak_rss", "kv_cache", "peak_device"}
    assert len(fields["images"]) == 2
    mirrored = ("kept_indices", "num_image_tokens", "num_kept")
    assert {name: fields[name] for name in mirrored} == {
        name: fields["images"][0][name] for name in mirrored
    }


def test_public_names_are_there_and_others_are_not():
    assert all(hasattr(divprune.runtime, name) for name in divprune.runtime.__all__)
    assert set(dir(divprune.runtime)) >= {"Pipeline", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'pipelines'"):
        divprune.runtime.pipelines  # noqa: B018
