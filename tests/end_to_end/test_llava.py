"""LLaVA-1.5 answers as transformers does about pictures of all shapes, and in a second turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from tests.end_to_end.reference import Media, Reference, messages_about, two_turns
from tests.runtime.families.anyres_cases import SIZES, noise

NAMES = ("clip-llama-hub", "siglip-qwen2-v4-tied")
PROMPT = "What is in the picture?"
KEEPS = (1.0, 0.3, 0.1)
NEW_TOKENS = 4


class LlavaReference(Reference):
    """One crop a picture, whatever its shape."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        auto: Any = transformers.AutoImageProcessor
        self.images = auto.from_pretrained(checkpoint)

    def features(self, media: Media) -> list[torch.Tensor]:
        """Through the checkpoint's image processor."""
        pixels = self.images(list(media), return_tensors="pt")
        found = self.model.get_image_features(pixels["pixel_values"]).pooler_output
        return list(found)


class Both:
    """An engine directory at keep 0.3, and its checkpoint in transformers."""

    def __init__(self, checkpoint: Path, output: Path) -> None:
        export_model(
            ExportOptions(str(checkpoint), keep=0.3, dtype="fp32", verify=False, output=output)
        )
        self.pipeline = Pipeline.from_dir(output)
        self.reference = LlavaReference(checkpoint)

    def check(self, conversations: list[Any], images: list[Image.Image], keep: float) -> None:
        """A conversation with its pictures, and without them."""
        given, bare = conversations
        expected = self.reference.answer_messages(bare, images, keep, NEW_TOKENS)
        result = self.pipeline.chat(
            given, keep=keep, max_new_tokens=NEW_TOKENS, ignore_eos=True
        ).result
        assert [list(image.kept_indices) for image in result.images] == expected.kept
        assert list(result.token_ids) == expected.token_ids


@pytest.fixture(scope="module", params=NAMES)
def both(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    return Both(checkpoint(request.param), tmp_path_factory.mktemp("llava") / "engine")


def test_pictures_of_every_shape(both: Both) -> None:
    for seed, size in enumerate(SIZES.values()):
        image = noise(size, seed)
        for keep in KEEPS:
            asked = [messages_about([image], PROMPT, keys=keys) for keys in (True, False)]
            both.check(asked, [image], keep)


def test_a_picture_in_the_second_turn(both: Both) -> None:
    images = [noise((64, 48)), noise((30, 70), 1)]
    for keep in KEEPS:
        first = [messages_about(images[:1], PROMPT, keys=keys) for keys in (True, False)]
        both.check(first, images[:1], keep)  # which the cache then holds
        both.check([two_turns(images, PROMPT, keys=keys) for keys in (True, False)], images, keep)
