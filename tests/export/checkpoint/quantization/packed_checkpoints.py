"""AWQ and GPTQ directories from known numbers, packed word by word as the formats say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from divprune.export.families import class_of

BLOCK = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PLAIN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
CONFIGS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": BLOCK, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": BLOCK, "desc_act": False},
    "gptq_v2": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": BLOCK,
        "desc_act": False,
        "checkpoint_format": "gptq_v2",
    },
}


def pack_words(codes: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Codes [n, m] to int32 [n, m / 8]: bits 4 i of a word hold column ``order[i]`` of its 8."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for bits, column in enumerate(order):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * bits)
    return words.view(np.int32)


def write_packed(
    source: Path,
    packed: Path,
    plain: Path,
    form: str,
    *,
    symmetric: bool = False,
    kept: Sequence[str] = (),
) -> None:
    """Give the decoder's layers (not lm_head) known numbers: once packed, once in float.

    Everything else is in 16 bits in both. GPTQ of the first version comes with the zero biases
    that AutoGPTQ writes for layers that have none.

    Args:
        source: Any checkpoint.
        packed: Directory for the quantised one.
        plain: Directory for the one that it stands for.
        form: Of ``CONFIGS``.
        symmetric: Whether all zero points are 8.
        kept: ``modules_to_not_convert`` of the config, if any: modules that are not packed.
    """
    for folder in (packed, plain):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    floats, stored = {}, {}
    rng = np.random.default_rng(5)
    family = class_of(json.loads((source / "config.json").read_text())["model_type"])
    tensors = {k: v for file in source.glob("*.safetensors") for k, v in load_file(file).items()}
    for name, weight in sorted(tensors.items()):
        canonical = family.canonical_name(name)
        if not canonical.startswith("language_model.") or not name.endswith("_proj.weight"):
            floats[name] = stored[name] = weight.half()
            continue
        layer = name.removesuffix(".weight")
        parts, floats[name] = _packed_layer(rng, weight.shape, form, symmetric=symmetric)
        stored |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        if form == "gptq" and f"{layer}.bias" not in tensors:
            stored[f"{layer}.bias"] = torch.zeros(len(weight), dtype=torch.float16)
    save_file(floats, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    named = {"modules_to_not_convert": list(kept)} if kept else {}
    change_config(packed, **CONFIGS[form], **named)


def _packed_layer(
    rng: np.random.Generator, shape: torch.Size, form: str, *, symmetric: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The stored parts of a layer of that shape, and the float32 weight that they stand for."""
    outputs, inputs = shape
    groups = inputs // BLOCK
    codes = rng.integers(0, 16, (inputs, outputs))
    low, high = {"awq": (0, 16), "gptq": (1, 17), "gptq_v2": (0, 16)}[form]
    zeros = rng.integers(low, high, (groups, outputs))
    if symmetric:
        zeros[:] = 8
    scales = rng.uniform(0.005, 0.03, (groups, outputs)).astype(np.float16)
    steps = codes - np.repeat(zeros, BLOCK, axis=0)
    values = steps * np.repeat(scales.astype(np.float32), BLOCK, axis=0)
    weight = torch.from_numpy(values.T.astype(np.float32).copy())
    parts = {"scales": scales}
    if form == "awq":
        parts |= {"qweight": pack_words(codes, AWQ_ORDER), "qzeros": pack_words(zeros, AWQ_ORDER)}
    else:
        parts["qweight"] = pack_words(codes.T, PLAIN_ORDER).T.copy()
        parts["qzeros"] = pack_words(zeros - (form == "gptq"), PLAIN_ORDER)
        parts["g_idx"] = (np.arange(inputs) // BLOCK).astype(np.int32)
    return {name: torch.from_numpy(part) for name, part in parts.items()}, weight


def change_config(path: Path, **fields: object) -> None:
    """Set entries of ``quantization_config``."""
    file = path / "config.json"
    content = json.loads(file.read_text())
    content["quantization_config"] = {**content.get("quantization_config", {}), **fields}
    file.write_text(json.dumps(content))
