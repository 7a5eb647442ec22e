"""The engine directory answers with the token ids of transformers, for every configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from checkpoints import TINY_CHECKPOINTS
from divprune.export.export_model import ExportOptions, export_model
from divprune.export.selection import get_selector
from divprune.runtime import Pipeline
from divprune.runtime.directory.keep import kept_count

NEW_TOKENS = 32
PROMPT = "What is in the picture?"


class Reference:
    """transformers on the same checkpoint and picture."""

    def __init__(self, checkpoint: Path, image: Image.Image) -> None:
        self.model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        processor = transformers.AutoProcessor.from_pretrained(checkpoint)
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        tokenizer = processor.tokenizer
        has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        self.inputs = processor(
            text=text, images=image, return_tensors="pt", add_special_tokens=not has_bos
        )

    def generate_unpruned(self) -> list[int]:
        ids = self.model.generate(**self.inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return ids[0, self.inputs["input_ids"].shape[1] :].tolist()

    def generate_pruned(self, keep: float) -> tuple[list[int], list[int]]:
        """Kept indices, and the ids when only the kept embeddings are fed, renumbered."""
        features = self.model.get_image_features(
            self.inputs["pixel_values"], return_dict=True
        ).pooler_output[0]
        order = get_selector("divprune").select(
            features.detach().numpy(), kept_count(keep, len(features))
        )
        kept = np.sort(order)
        input_ids = self.inputs["input_ids"][0]
        embeddings = self.model.get_input_embeddings()(input_ids)
        is_image = input_ids == self.model.config.image_token_id
        first = int(is_image.nonzero()[0, 0])
        rows = torch.cat(
            [
                embeddings[:first],
                features[torch.from_numpy(kept)],
                embeddings[first + int(is_image.sum()) :],
            ]
        )
        ids = self.model.generate(
            inputs_embeds=rows[None],
            attention_mask=torch.ones(1, len(rows), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return kept.tolist(), ids[0].tolist()


@pytest.mark.parametrize("name", sorted(TINY_CHECKPOINTS))
def test_token_ids_are_those_of_transformers(
    name: str, checkpoint: Any, picture: Image.Image, tmp_path: Path
) -> None:
    path = checkpoint(name)
    export_model(ExportOptions(model=str(path), keep=0.1, dtype="fp32", output=tmp_path / "e"))
    pipeline = Pipeline.from_dir(tmp_path / "e")
    reference = Reference(path, picture)

    unpruned = pipeline.generate(picture, PROMPT, keep=1.0, max_new_tokens=NEW_TOKENS).result
    assert list(unpruned.token_ids) == reference.generate_unpruned()

    kept, ids = reference.generate_pruned(0.1)
    pruned = pipeline.generate(picture, PROMPT, max_new_tokens=NEW_TOKENS).result
    assert list(pruned.images[0].kept_indices) == kept
    assert list(pruned.token_ids) == ids


@pytest.mark.parametrize("target", ["tensorrt", "jetpack6"])
@pytest.mark.parametrize("name", ["clip-llama-v4-gqa2-full", "siglip-qwen3-v5"])
def test_directories_for_tensorrt_answer_the_same_on_onnx_runtime(
    name: str, target: str, checkpoint: Any, picture: Image.Image, tmp_path: Path
) -> None:
    """Which is how they are checked before they are copied to a device."""
    path, output = checkpoint(name), tmp_path / "e"
    export_model(
        ExportOptions(model=str(path), keep=0.1, dtype="fp32", target=target, output=output)
    )
    pipeline = Pipeline.from_dir(output, backend="onnxruntime")
    kept, ids = Reference(path, picture).generate_pruned(0.1)
    pruned = pipeline.generate(picture, PROMPT, max_new_tokens=NEW_TOKENS).result
    assert list(pruned.images[0].kept_indices) == kept
    assert list(pruned.token_ids) == ids
