"""InternVL, SmolVLM and Idefics3 answer with the token ids of transformers, fed the kept rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiled_checkpoints import TILED_CHECKPOINTS, write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.selection import get_selector
from divprune.runtime import Pipeline
from divprune.runtime.directory.keep import kept_count
from tests.runtime.families.processors import SIZES, picture, processor

NEW_TOKENS = 12
PROMPT = "What is in the picture?"
# One of each family meets everything; the others differ in tower and text model.
ONE_EACH = ["internvl-qwen2-hub", "smolvlm-llama-tied-merging"]
OTHERS = sorted(TILED_CHECKPOINTS.keys() - ONE_EACH)

Messages = list[dict[str, Any]]


class Reference:
    """transformers on the same checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self.images = transformers.AutoImageProcessor.from_pretrained(checkpoint)
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        kind = type(self.model).__name__.replace("ForConditionalGeneration", "Processor")
        length = self.features(picture(16, 16))[1]
        lengths = {"image_seq_length": length, "image_seq_len": length}
        self.processor = processor(kind, tokenizer, image_processor=self.images, **lengths)

    def features(self, image: Image.Image) -> tuple[torch.Tensor, int]:
        """Of one picture [N, hidden], and how many there are of a crop."""
        options = {"crop_to_patches": True} if self.is_internvl else {}
        pixels = self.images([image], return_tensors="pt", **options)["pixel_values"]
        with torch.no_grad():
            found = self.model.get_image_features(pixels).pooler_output
        rows = found.flatten(0, 1) if isinstance(found, torch.Tensor) else found[0]
        return rows, len(rows) // pixels.shape[0 if self.is_internvl else 1]

    @property
    def is_internvl(self) -> bool:
        return self.model.config.model_type == "internvl"

    def answer(self, messages: Messages, keep: float) -> tuple[list[list[int]], list[int]]:
        """Kept indices of each picture, and the ids when only the kept rows are fed."""
        pictures = [p["image"] for m in messages for p in m["content"] if p["type"] == "image"]
        text = self.processor.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        nested = pictures if self.is_internvl else [pictures]
        ids = self.processor(images=nested, text=[text], return_tensors="pt")["input_ids"][0]
        return self.generate(ids, [self.features(image)[0] for image in pictures], keep)

    def generate(
        self, ids: torch.Tensor, media: list[torch.Tensor], keep: float
    ) -> tuple[list[list[int]], list[int]]:
        visual = ids == self.model.config.image_token_id
        assert int(visual.sum()) == sum(map(len, media))
        kept = [_select(features, keep) for features in media]
        rows = self.model.get_input_embeddings()(ids).clone()
        rows[visual] = torch.cat(media)
        stays = torch.ones(len(ids), dtype=torch.bool)
        stays[visual] = torch.cat(
            [
                torch.isin(torch.arange(len(f)), torch.tensor(k))
                for f, k in zip(media, kept, strict=True)
            ]
        )
        fed = rows[stays][None]
        answer = self.model.generate(
            inputs_embeds=fed,
            attention_mask=torch.ones(fed.shape[:2], dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return kept, answer[0].tolist()


def _select(features: torch.Tensor, keep: float) -> list[int]:
    if keep == 1.0:
        return list(range(len(features)))
    count = kept_count(keep, len(features))
    return np.sort(get_selector("divprune").select(features.numpy(), count)).tolist()


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Reference, Pipeline]]:
    """A function from a checkpoint's name and export options to both sides, made once."""
    folder = tmp_path_factory.mktemp("tiled")
    references: dict[str, Reference] = {}
    pipelines: dict[str, Pipeline] = {}

    def get(name: str, **options: Any) -> tuple[Reference, Pipeline]:
        checkpoint = folder / name
        if name not in references:
            write_tiled_checkpoint(checkpoint, name)
            references[name] = Reference(checkpoint)
        key = "-".join([name, *(f"{key}_{options[key]}" for key in sorted(options))])
        if key not in pipelines:
            output = folder / f"engine-{key}"
            fixed = {"keep": 0.3, "dtype": "fp32", "max_seq_len": 1024}
            export_model(
                ExportOptions(model=str(checkpoint), output=output, **{**fixed, **options})
            )
            pipelines[key] = Pipeline.from_dir(output, backend="onnxruntime")
        return references[name], pipelines[key]

    return get


def ask(*images: Image.Image) -> Messages:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": PROMPT}]}]


def check(sides: tuple[Reference, Pipeline], messages: Messages, keep: float) -> None:
    reference, pipeline = sides
    kept, ids = reference.answer(messages, keep)
    given = None if keep == 0.3 else keep
    result = pipeline.chat(messages, keep=given, max_new_tokens=NEW_TOKENS).result
    assert [list(image.kept_indices) for image in result.images] == kept
    assert list(result.token_ids) == ids


@pytest.mark.parametrize("keep", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ONE_EACH)
def test_pictures_of_any_size(
    name: str, size: tuple[int, int], keep: float, tiled: Callable[..., Any]
) -> None:
    check(tiled(name), ask(picture(*size)), keep)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_and_text_models(name: str, keep: float, tiled: Callable[..., Any]) -> None:
    for size in ((40, 30), (16, 16), (20, 100)):
        check(tiled(name), ask(picture(*size)), keep)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", ONE_EACH)
def test_two_pictures_of_different_size(name: str, keep: float, tiled: Callable[..., Any]) -> None:
    check(tiled(name), ask(picture(40, 30), picture(16, 33, seed=1)), keep)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_picture_in_the_second_turn(name: str, tiled: Callable[..., Any]) -> None:
    first = ask(picture(40, 30))
    reply = {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]}
    check(tiled(name), first, 0.3)
    check(tiled(name), [*first, reply, *ask(picture(30, 40, seed=1))], 0.3)


@pytest.mark.parametrize("target", ["jetpack6", "tensorrt-rtx"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_directories_for_tensorrt_answer_the_same_on_onnx_runtime(
    name: str, target: str, tiled: Callable[..., Any]
) -> None:
    sides = tiled(name, target=target)
    for size in ((40, 30), (16, 16)):
        check(sides, ask(picture(*size)), 0.3)
