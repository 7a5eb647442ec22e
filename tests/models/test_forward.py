"""Training sees what inference sees: the lean forward pass against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# ruff: noqa: E402 - what needs torch is imported behind the check that it is there

from PIL import Image

from models.small_scenes.architecture import NUM_IMAGE_TOKENS, make_model
from models.small_scenes.batches import PREFIX, BatchRequest, make_batch
from models.small_scenes.checkpoint_files import IMAGE_TOKEN, make_tokenizer
from models.small_scenes.forward import encode_patches
from models.small_scenes.losses import answer_logits, to_pixel_values
from models.small_scenes.patch_labels import IGNORE
from models.small_scenes.save import save_checkpoint


@pytest.fixture(scope="module")
def model():
    return make_model(0).eval()


@pytest.fixture(scope="module")
def batch():
    return make_batch(BatchRequest(seed=1, first=0, size=2), 0)


@torch.no_grad()
def test_every_question_of_a_row_has_the_logits_it_has_alone(model, batch):
    tokenizer = make_tokenizer()
    opening = torch.tensor(tokenizer.encode(PREFIX[0]).ids)
    pixels = to_pixel_values(batch)
    patches = encode_patches(model.model.vision_tower, pixels)
    packed = answer_logits(model, patches, batch, opening)
    alone = []
    image = torch.full((NUM_IMAGE_TOKENS,), tokenizer.token_to_id(IMAGE_TOKEN))
    for row in range(len(pixels)):
        owners = np.unique(batch.owner[row][batch.targets[row] != IGNORE])
        for owner in owners:
            own = batch.owner[row] == owner
            ids = torch.cat([opening, image, torch.from_numpy(batch.ids[row][own])])
            logits = model(input_ids=ids[None], pixel_values=pixels[row][None]).logits[0]
            alone.append(logits[-own.sum() :][batch.targets[row][own] != IGNORE])
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_the_saved_processor_makes_the_prompt_and_pixels_of_training(model, batch, tmp_path):
    from transformers import AutoProcessor

    save_checkpoint(make_model(0), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it red?"}]}],
        add_generation_prompt=True,
    )
    made = processor(images=[Image.fromarray(batch.pixels[0])], text=[text], return_tensors="pt")
    tokenizer = make_tokenizer()
    image = [tokenizer.token_to_id(IMAGE_TOKEN)] * NUM_IMAGE_TOKENS
    opening = tokenizer.encode(PREFIX[0]).ids
    question = tokenizer.encode("Is it red?" + PREFIX[1], add_special_tokens=False).ids
    assert made["input_ids"][0].tolist() == [*opening, *image, *question]
    torch.testing.assert_close(
        made["pixel_values"][0], to_pixel_values(batch)[0], rtol=0, atol=1e-5
    )
