"""Several pictures, original positions and a smaller keep, against parts of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image, ImageOps

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.selection import get_selector
from divprune.runtime import Pipeline
from divprune.runtime.directory.keep import kept_count

CHECKPOINT = "clip-llama-hub"  # that of the fixture engine_dir
KEEP = 0.1
NEW_TOKENS = 24
PROMPT = "What is different?"


class Reference:
    """A checkpoint in transformers; every picture is pruned on its own."""

    def __init__(self, checkpoint: Path) -> None:
        self.model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(checkpoint)

    def generate(self, pictures: Sequence[Image.Image], keep: float, positions: str) -> list[int]:
        """Greedy ids when only the kept embeddings are fed, at the positions asked for."""
        inputs = self.inputs(pictures)
        ids = inputs["input_ids"][0]
        rows = self.model.get_input_embeddings()(ids).detach()
        is_image = ids == self.model.config.image_token_id
        features = self.features(inputs["pixel_values"])
        rows[is_image] = torch.cat(list(features))
        stays = ~is_image
        stays[is_image] = torch.cat([kept_mask(each, keep) for each in features])
        places = torch.arange(len(ids))
        if positions == "original":
            return self.decode(rows[stays], places[stays], len(ids))
        return self.decode(rows[stays], places[: int(stays.sum())], int(stays.sum()))

    def inputs(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": PROMPT}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return self.processor(text=text, images=list(pictures), return_tensors="pt")

    def features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(self.model.get_image_features(pixel_values).pooler_output)

    def decode(self, rows: torch.Tensor, positions: torch.Tensor, position: int) -> list[int]:
        """NEW_TOKENS greedy ids after ``rows``; the first of them stands at ``position``."""
        embeds, cache, ids = rows[None], transformers.DynamicCache(), []
        positions = positions[None]
        while len(ids) < NEW_TOKENS:
            filled = cache.get_seq_length() + embeds.shape[1]
            with torch.no_grad():
                outputs = self.model.model.language_model(
                    inputs_embeds=embeds,
                    position_ids=positions,
                    # Without a mask, transformers takes gaps for the borders of packed texts.
                    attention_mask=torch.ones(1, filled, dtype=torch.long),
                    past_key_values=cache,
                )
                logits = self.model.lm_head(outputs.last_hidden_state[0, -1])
            ids.append(int(logits.argmax()))
            embeds = self.model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
            positions = torch.tensor([[position]])
            position += 1
        return ids


def kept_mask(features: torch.Tensor, keep: float) -> torch.Tensor:
    order = get_selector("divprune").select(features.numpy(), kept_count(keep, len(features)))
    mask = torch.zeros(len(features), dtype=torch.bool)
    mask[torch.from_numpy(order)] = True
    return mask


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Reference:
    return Reference(checkpoint(CHECKPOINT))


@pytest.fixture(scope="module")
def pictures(picture: Image.Image) -> list[Image.Image]:
    return [picture, ImageOps.invert(picture).rotate(90, expand=True)]


@pytest.fixture(scope="module")
def export(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Pipeline]:
    """Exports the checkpoint of ``engine_dir`` with other options, unchecked, and loads it."""

    def export(**options: Any) -> Pipeline:
        output = tmp_path_factory.mktemp("exports") / "engine"
        fixed = {"dtype": "fp32", "verify": False, "output": output}
        export_model(ExportOptions(model=str(checkpoint(CHECKPOINT)), **fixed, **options))
        return Pipeline.from_dir(output)

    return export


@pytest.fixture(scope="module")
def contiguous(engine_dir: Path) -> Pipeline:
    return Pipeline.from_dir(engine_dir)


@pytest.fixture(scope="module")
def original(export: Callable[..., Pipeline]) -> Pipeline:
    return export(keep=KEEP, positions="original")


def answer(pipeline: Pipeline, pictures: Sequence[Image.Image], keep: float | None = None) -> Any:
    return pipeline.generate(
        pictures, PROMPT, keep=keep, max_new_tokens=NEW_TOKENS, ignore_eos=True
    ).result


def test_two_unpruned_pictures_get_the_ids_of_transformers_generate(
    contiguous: Pipeline, reference: Reference, pictures: list[Image.Image]
) -> None:
    inputs = reference.inputs(pictures)
    length = inputs["input_ids"].shape[1]
    ids = reference.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    result = contiguous.generate(pictures, PROMPT, keep=1.0, max_new_tokens=NEW_TOKENS).result
    assert result.prompt_tokens == length
    assert list(result.token_ids) == ids[0, length:].tolist()


@pytest.mark.parametrize("keep", [1.0, KEEP])
def test_two_pictures_are_pruned_each_on_its_own(
    contiguous: Pipeline, reference: Reference, pictures: list[Image.Image], keep: float
) -> None:
    result = answer(contiguous, pictures, keep)
    assert list(result.token_ids) == reference.generate(pictures, keep, "contiguous")
    inputs = reference.inputs(pictures)
    for image, features in zip(
        result.images, reference.features(inputs["pixel_values"]), strict=True
    ):
        assert list(image.kept_indices) == kept_mask(features, keep).nonzero()[:, 0].tolist()


def test_the_order_of_two_pictures_is_that_of_the_prompt(
    contiguous: Pipeline, pictures: list[Image.Image]
) -> None:
    one = answer(contiguous, pictures)
    other = answer(contiguous, pictures[::-1])
    assert one.images == other.images[::-1]
    assert one.token_ids != other.token_ids


@pytest.mark.parametrize("count", [1, 2])
def test_original_positions_are_those_that_the_kept_tokens_had(
    original: Pipeline, reference: Reference, pictures: list[Image.Image], count: int
) -> None:
    result = answer(original, pictures[:count])
    expected = reference.generate(pictures[:count], KEEP, "original")
    assert list(result.token_ids) == expected
    assert expected != reference.generate(pictures[:count], KEEP, "contiguous")


def test_original_positions_of_unpruned_pictures_are_contiguous(
    original: Pipeline, contiguous: Pipeline, pictures: list[Image.Image]
) -> None:
    unpruned = [answer(pipeline, pictures, 1.0) for pipeline in (original, contiguous)]
    assert unpruned[0].token_ids == unpruned[1].token_ids


def test_a_smaller_keep_at_run_time_is_an_export_at_that_keep(
    export: Callable[..., Pipeline], contiguous: Pipeline, pictures: list[Image.Image]
) -> None:
    larger = export(keep=0.5)
    assert larger.manifest.selector.num_kept > contiguous.manifest.selector.num_kept
    smaller, exported = answer(larger, pictures, KEEP), answer(contiguous, pictures)
    assert smaller.images == exported.images
    assert smaller.token_ids == exported.token_ids
    assert answer(larger, pictures).token_ids != smaller.token_ids
