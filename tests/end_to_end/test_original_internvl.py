"""Checkpoints of InternVL's original code answer as that code has them answer.

The other side is written down here as the original code does it: tiles cut with Pillow, the
conversation as text with as many placeholders as there are tokens, and the features of
transformers' model, which has the same weights, in their places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from original_internvl import tokenizer_of, write_original_internvl
from PIL import Image
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.cli import main
from divprune.runtime import Pipeline
from divprune.runtime.families import VideoFrames
from divprune.runtime.families.internvl import InternVL
from tests.runtime.families.processors import picture

QUESTION = "What is in the image?"
NEW_TOKENS = 8
TILE, TILE_TOKENS = 16, 4
FACTS = {"image_token": "<IMG_CONTEXT>", "tile_size": TILE, "tile_side": 2}
PROMPT = (
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作"  # noqa: RUF001
    "单位联合开发的多模态大语言模型。<|im_end|>\n<|im_start|>user\n{pictures}\n"
    f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Case:
    """A model in both layouts.

    Attributes:
        name: Of ``TILED_CHECKPOINTS``.
        options: Of `write_original_internvl`.
        most: Most tiles of a picture.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    most: int = 12


CASES = {
    "InternVL3": Case("internvl-qwen2-hub"),
    "the tower of 6B, tied, pickled, files of a slow tokenizer, few tiles": Case(
        "internvl-qwen2-6b-tower",
        {"pickled": True, "slow_tokenizer": True, "settings": {"max_dynamic_patch": 4}},
        most=4,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_original_code(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    same = write_tiled_checkpoint(tmp_path / "transformers", case.name)
    original = write_original_internvl(tmp_path / "original", same, **case.options)
    words = ["--model", str(original), "--keep", "0.3", "--dtype", "fp32", "--no-verify", "-q"]
    assert main([*words, "--output", str(tmp_path / "engine")]) == 0
    pipeline = Pipeline.from_dir(tmp_path / "engine", backend="onnxruntime")
    processor = json.loads((tmp_path / "engine" / "preprocessor_config.json").read_text())
    reference = Reference(same)
    for image in (picture(40, 30), picture(16, 33, seed=1)):
        tiles = tiles_of(image, case.most)
        assert len(tiles) > 2
        given = InternVL.from_facts(FACTS, processor, None).prepare_image(image).inputs
        expected_pixels = np.stack([levels(tile) for tile in tiles])
        np.testing.assert_allclose(given["pixel_values"], expected_pixels, atol=1e-5)
        assert answer_of(pipeline, image) == reference.answer([tiles], "<image>")
    frames = [picture(30, 20, seed) for seed in range(3)]
    names = "\n".join(f"Frame{number}: <image>" for number in (1, 2, 3))
    expected = reference.answer([[frame.resize((TILE, TILE))] for frame in frames], names)
    assert answer_of(pipeline, VideoFrames(tuple(frames), 1.0)) == expected


def answer_of(pipeline: Pipeline, media: Image.Image | VideoFrames) -> list[int]:
    kind = "image" if isinstance(media, Image.Image) else "video"
    parts = [{"type": kind, kind: media}, {"type": "text", "text": QUESTION}]
    asked = [{"role": "user", "content": parts}]
    answered = pipeline.chat(asked, keep=1.0, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    return list(answered.result.token_ids)


def tiles_of(image: Image.Image, most: int) -> list[Image.Image]:
    """In the grid of the nearest aspect, the larger one of two if the picture fills half of it."""
    grids = [(x, y) for x in range(1, most + 1) for y in range(1, most + 1) if x * y <= most]
    width, height = image.size
    chosen, nearest = (1, 1), float("inf")
    for x, y in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        away = abs(width / height - x / y)
        if away < nearest or (away == nearest and width * height > TILE * TILE * x * y / 2):
            chosen, nearest = (x, y), away
    columns, rows = chosen
    whole = image.resize((columns * TILE, rows * TILE))
    corners = [(x * TILE, y * TILE) for y in range(rows) for x in range(columns)]
    tiles = [whole.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    return tiles if len(tiles) == 1 else [*tiles, image.resize((TILE, TILE))]


class Reference:
    """The model in transformers' form, asked as the original code asks."""

    def __init__(self, same: Path) -> None:
        auto: Any = transformers.AutoModelForImageTextToText
        self.model = auto.from_pretrained(same, dtype=torch.float32).eval()
        self.tokenizer = tokenizer_of(self.model.config.text_config.vocab_size)

    def answer(self, media: Sequence[Sequence[Image.Image]], pictures: str) -> list[int]:
        """Greedy ids for tiles; ``pictures`` is what stands in front of the question."""
        for tiles in media:
            context = "<IMG_CONTEXT>" * (TILE_TOKENS * len(tiles))
            pictures = pictures.replace("<image>", f"<img>{context}</img>", 1)
        prompt = torch.tensor(self.tokenizer.encode(PROMPT.replace("{pictures}", pictures)).ids)
        table = self.model.get_input_embeddings()
        with torch.no_grad():
            rows = table(prompt)
            pixels = torch.stack([levels(tile) for tiles in media for tile in tiles])
            features = self.model.get_image_features(pixels).pooler_output.flatten(0, 1)
            rows[prompt == self.tokenizer.token_to_id("<IMG_CONTEXT>")] = features
            ids: list[int] = []
            for _ in range(NEW_TOKENS):
                ids.append(int(self.model(inputs_embeds=rows[None]).logits[0, -1].argmax()))
                rows = torch.cat([rows, table(torch.tensor(ids[-1:]))])
        return ids


def levels(tile: Image.Image) -> torch.Tensor:
    """float32 [3, H, W]."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = (np.asarray(tile.convert("RGB"), np.float64) / 255 - mean) / std
    return torch.from_numpy(scaled.transpose(2, 0, 1)).float()
