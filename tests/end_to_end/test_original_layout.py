"""Checkpoints of LLaVA's original code answer as that code has them answer.

The other side is written down here as the original code does it: the conversation as text, cut at
the placeholder, each piece tokenised on its own, and the features of transformers' model, which
has the same weights, between the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from anyres_checkpoints import write_anyres_checkpoint
from original_checkpoints import write_original
from PIL import Image
from tokenizers import Tokenizer

from checkpoints import TinySpec, lively_tensors, tiny_config, write_tiny_checkpoint
from divprune.export.checkpoint.random import write_checkpoint
from divprune.export.cli import main
from divprune.runtime import Pipeline
from divprune.runtime.inputs.chat_template import ChatTemplate, read_template
from divprune.runtime.inputs.tokenization import TextTokenizer
from tests.end_to_end.anyres_reference import AnyresReference

QUESTION = "What is in the image?"
NEW_TOKENS = 8
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
    f"{QUESTION} ASSISTANT:"
)
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\n"
    f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
CHATML = {1: "<|im_start|>", 2: "<|im_end|>"}
SIGLIP = {"tower": "siglip", "text": "qwen2", "strategy": "full"}
GRIDS = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}


@dataclass(frozen=True)
class Case:
    """A model in both layouts.

    Attributes:
        write: Writes it in transformers' form.
        prompt: The conversation as the original code writes it.
        options: Of `write_original`.
        copied: Settings of transformers' config that the original one has as well.
    """

    write: Callable[[Path], Path]
    prompt: str = VICUNA
    options: Mapping[str, Any] = field(default_factory=dict)
    copied: tuple[str, ...] = ()


def _tiny(name: str) -> Callable[[Path], Path]:
    return lambda path: write_tiny_checkpoint(path, name)


def _siglip(feature_layer: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        text = {"bos_token_id": 0, "eos_token_id": 2}
        vision = {"vision_use_head": False}
        spec = TinySpec(
            **SIGLIP, feature_layer=feature_layer, text_options=text, vision_options=vision
        )
        config = tiny_config(spec)
        return write_checkpoint(path, config, lively_tensors(config, 3), layout="hub", dtype="fp32")

    return write


def _anyres(name: str) -> Callable[[Path], Path]:
    return lambda path: write_anyres_checkpoint(path, name)


QWEN_OPTIONS = {"tokens": CHATML}
CASES = {
    "LLaVA-1.5, pickled, tower of its own": Case(
        _tiny("clip-llama-hub"), VICUNA, {"pickled": True}
    ),
    "a space in front of a text only": Case(_tiny("clip-llama-hub"), VICUNA, {"legacy": False}),
    "not padded, tower inside": Case(
        _tiny("clip-llama-hub"),
        VICUNA,
        {"tower_inside": True, "settings": {"image_aspect_ratio": "square"}},
    ),
    "pictures between marks": Case(
        _tiny("clip-llama-hub"),
        VICUNA.replace("<image>", "<im_start><image><im_end>"),
        {
            "settings": {"mm_use_im_start_end": True},
            "tokens": {477: "<im_start>", 478: "<im_end>"},
        },
    ),
    "Mistral": Case(_tiny("clip-mistral-hub-gqa1"), f"[INST] <image>\n{QUESTION} [/INST]"),
    "Qwen, the last layer of a SigLIP cut off": Case(
        _siglip(-1), QWEN, {**QWEN_OPTIONS, "tower_inside": True, "layers_cut": 1}
    ),
    "Qwen, a whole SigLIP of its own": Case(_siglip(-2), QWEN, QWEN_OPTIONS),
    "LLaVA-1.6": Case(
        _anyres("next-llama-hub"),
        VICUNA,
        {"tower_inside": True, "settings": GRIDS},
        ("image_grid_pinpoints",),
    ),
    "LLaVA-OneVision": Case(
        _anyres("onevision-qwen2-hub"),
        QWEN,
        {
            **QWEN_OPTIONS,
            "tower_inside": True,
            "layers_cut": 1,
            "settings": {**GRIDS, "image_aspect_ratio": "anyres_max_2"},
        },
        ("image_grid_pinpoints",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_original_code(
    name: str, tmp_path: Path, picture: Image.Image
) -> None:
    case = CASES[name]
    same = case.write(tmp_path / "transformers")
    config = transformers.AutoConfig.from_pretrained(same)
    copied = {key: getattr(config, key) for key in case.copied}
    settings = {**case.options.get("settings", {}), **copied}
    original = write_original(tmp_path / "original", same, **{**case.options, "settings": settings})
    engine = tmp_path / "engine"
    words = ["--model", str(original), "--keep", "0.3", "--dtype", "fp32", "--output", str(engine)]
    assert main([*words, "--no-verify", "-q"]) == 0
    pipeline = Pipeline.from_dir(engine, backend="onnxruntime")
    result = pipeline.generate(
        picture, QUESTION, keep=1.0, max_new_tokens=NEW_TOKENS, ignore_eos=True
    ).result
    before, after = _pieces(original, case.prompt)
    assert _prompt_ids(engine) == [before, after]
    expected = _answer(same, (before, after), settings, picture)
    assert list(result.token_ids) == expected


def _prompt_ids(engine: Path) -> list[list[int]]:
    """Ids in front of the placeholder and behind it, as the runtime makes them."""
    tokenizer = TextTokenizer.from_dir(engine)
    template = ChatTemplate(read_template(engine / "chat_template.jinja"), tokenizer.special_tokens)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = template.render([{"role": "user", "content": parts}])
    ids = tokenizer.encode(text)
    place = ids.index(tokenizer.encode("<image>")[-1])
    return [ids[:place], ids[place + 1 :]]


def _answer(
    same: Path,
    pieces: tuple[list[int], list[int]],
    settings: Mapping[str, Any],
    picture: Image.Image,
) -> list[int]:
    """Greedy ids of the model in transformers' form, asked as the original code asks."""
    loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        same, dtype=torch.float32
    )
    model = loaded.eval()
    table = model.get_input_embeddings()
    with torch.no_grad():
        if "anyres" in settings.get("image_aspect_ratio", ""):
            (features,) = AnyresReference(same).features([picture])
        else:
            pixels = _pixels(same, picture, pad=settings.get("image_aspect_ratio") != "square")
            features = model.get_image_features(pixels).pooler_output[0]
        before, after = map(torch.tensor, pieces)
        rows = torch.cat([table(before), features, table(after)])
        ids: list[int] = []
        for _ in range(NEW_TOKENS):
            logits = model(inputs_embeds=rows[None]).logits[0, -1]
            ids.append(int(logits.argmax()))
            rows = torch.cat([rows, table(torch.tensor(ids[-1:]))])
    return ids


def _pieces(original: Path, prompt: str) -> tuple[list[int], list[int]]:
    """Ids of the text before the picture and behind it; BOS in front of the first one only."""
    tokenizer = Tokenizer.from_file(str(original / "tokenizer.json"))
    first, second = (tokenizer.encode(piece).ids for piece in prompt.split("<image>"))
    bos = tokenizer.token_to_id("<s>")
    return first, second[1:] if bos is not None and second[0] == bos else second


def _pixels(same: Path, picture: Image.Image, *, pad: bool) -> torch.Tensor:
    """Padded to a square in the colour of the mean, or its middle cut out, as Pillow does it."""
    config = transformers.AutoConfig.from_pretrained(same).vision_config
    mean, std = (np.array([0.48145466, 0.4578275, 0.40821073]), None)
    if config.model_type == "clip_vision_model":
        std = np.array([0.26862954, 0.26130258, 0.27577711])
    else:
        mean, std = np.full(3, 0.5), np.full(3, 0.5)
    side, (width, height) = config.image_size, picture.size
    if pad:
        longer = max(width, height)
        square = Image.new("RGB", (longer, longer), tuple(int(each * 255) for each in mean))
        square.paste(picture, ((longer - width) // 2, (longer - height) // 2))
        resized = square.resize((side, side), Image.Resampling.BICUBIC)
    else:
        scaled = picture.resize((int(side * width / height), side), Image.Resampling.BICUBIC)
        left = (scaled.width - side) // 2
        resized = scaled.crop((left, 0, left + side, side))
    levels = (np.asarray(resized, np.float64) / 255 - mean) / std
    return torch.from_numpy(levels.transpose(2, 0, 1)[None]).float()
