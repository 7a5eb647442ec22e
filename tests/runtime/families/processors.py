"""transformers' processors of families whose constructors need torchvision, without it.

Their video processors do; nothing here calls one. Where one would run, its outcome is passed in.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from divprune.runtime.families.protocol import Prepared
from tests.runtime.tokenizers_for_tests import byte_level

SIZES = [(16, 16), (40, 30), (30, 40), (100, 20), (7, 90), (64, 64), (33, 31), (2, 50), (200, 3)]
"""Width and height: squares, both orientations, slivers, and some smaller than a crop."""

_INTERNVL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_SMOLVLM = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: no two crops are alike."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, from 0 to 255."""
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def centres(pixels: np.ndarray, side: int) -> np.ndarray:
    """Where each token of crops [crops, 3, S, S] of a ``gradient`` lies: x, y in 0..1 [N, 2]."""
    crops, _, size, _ = pixels.shape
    blocks = pixels[:, :2].reshape(crops, 2, side, size // side, side, size // side)
    return blocks.mean(axis=(3, 5)).transpose(0, 2, 3, 1).reshape(-1, 2)


def internvl_tokenizer() -> tuple[Tokenizer, dict[str, str]]:
    """Byte-level, with InternVL's special tokens."""
    return _with_specials(_INTERNVL)


def smolvlm_tokenizer(*, merges_newlines: bool) -> tuple[Tokenizer, dict[str, str]]:
    """Byte-level, with SmolVLM's special tokens; two line feeds are one token or two."""
    rows = {f"row_{r}_{c}": f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)}
    tokenizer, names = _with_specials(_SMOLVLM | rows)
    if merges_newlines:
        tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return tokenizer, {key: value for key, value in names.items() if key not in rows}


def transformers_tokenizer(raw: Tokenizer, names: dict[str, str]) -> Any:
    """A tokenizer as transformers wraps it."""
    import transformers

    named = {key: names[key] for key in ("eos_token", "pad_token")}
    extra = {key: value for key, value in names.items() if key not in named}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, extra_special_tokens=extra, **named
    )


def processor(kind: str, tokenizer: Any, **parts: Any) -> Any:
    """A transformers processor whose parts are put in place without its constructor."""
    import transformers

    cls = getattr(transformers, kind)
    made = cls.__new__(cls)
    made.tokenizer, made.chat_template = tokenizer, None
    for name, value in {**_derived(kind, tokenizer), **parts}.items():
        setattr(made, name, value)
    return made


def expanded_ids(text: str, placeholder: str, token: str, raw: Tokenizer, media: list[Prepared]):
    """Ids [L] of a prompt: placeholders replaced, tokenised, visual tokens repeated."""
    parts = text.split(placeholder)
    filled = parts[0] + "".join(
        prepared.text + part for prepared, part in zip(media, parts[1:], strict=True)
    )
    visual = raw.token_to_id(token)
    runs = iter([run for prepared in media for run in prepared.runs])
    ids: list[int] = []
    for token_id in raw.encode(filled, add_special_tokens=False).ids:
        ids += [token_id] * next(runs) if token_id == visual else [token_id]
    assert next(runs, None) is None
    return ids


def _with_specials(specials: dict[str, str]) -> tuple[Tokenizer, dict[str, str]]:
    tokenizer, names = byte_level()
    tokenizer.add_special_tokens(list(specials.values()))
    return tokenizer, names | specials


def _derived(kind: str, tokenizer: Any) -> dict[str, Any]:
    """What the constructor reads from the tokenizer."""
    if kind == "InternVLProcessor":
        tokens = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
        pattern = re.compile("(?P<image><IMG_CONTEXT>)|(?P<video><video>)")
        ids = {
            f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()
        }
        return {**tokens, **ids, "multimodal_pattern": pattern}
    tokens = {key: value for key, value in _SMOLVLM.items() if key != "end_of_utterance_token"}
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "fake_image_token_id": tokenizer.convert_tokens_to_ids("<fake_token_around_image>"),
    }
    return {**tokens, **ids, "global_image_tag": "<global-img>", "video_token": "<video>"}
