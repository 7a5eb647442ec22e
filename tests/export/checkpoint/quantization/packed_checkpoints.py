"""AWQ and GPTQ directories from known numbers, packed word by word as the formats say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

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
    source: Path, packed: Path, plain: Path, form: str, *, symmetric: bool = False
) -> None:
    """Give the decoder's layers (not lm_head) known numbers: once packed, once in float."""
    for folder in (packed, plain):
        shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    floats, stored = dict(tensors), dict(tensors)
    rng = np.random.default_rng(5)
    for name, weight in tensors.items():
        if "language_model" not in name or not name.endswith("_proj.weight"):
            continue
        outputs, inputs = weight.shape
        groups = inputs // BLOCK
        codes = rng.integers(0, 16, (inputs, outputs))
        low, high = {"awq": (0, 16), "gptq": (1, 17), "gptq_v2": (0, 16)}[form]
        zeros = rng.integers(low, high, (groups, outputs))
        if symmetric:
            zeros[:] = 8
        scales = rng.uniform(0.005, 0.03, (groups, outputs)).astype(np.float16)
        steps = codes - np.repeat(zeros, BLOCK, axis=0)
        values = steps * np.repeat(scales.astype(np.float32), BLOCK, axis=0)
        floats[name] = torch.from_numpy(values.T.astype(np.float32).copy())
        del stored[name]
        layer = name.removesuffix(".weight")
        stored[f"{layer}.scales"] = torch.from_numpy(scales)
        if form == "awq":
            stored[f"{layer}.qweight"] = torch.from_numpy(pack_words(codes, AWQ_ORDER))
            stored[f"{layer}.qzeros"] = torch.from_numpy(pack_words(zeros, AWQ_ORDER))
            continue
        words = pack_words(codes.T, PLAIN_ORDER).T.copy()
        stored[f"{layer}.qweight"] = torch.from_numpy(words)
        kept = zeros - (form == "gptq")
        stored[f"{layer}.qzeros"] = torch.from_numpy(pack_words(kept, PLAIN_ORDER))
        stored[f"{layer}.g_idx"] = torch.from_numpy((np.arange(inputs) // BLOCK).astype(np.int32))
    save_file(floats, plain / "model.safetensors")
    save_file(stored, packed / "model.safetensors")
    change_config(packed, **CONFIGS[form])


def change_config(path: Path, **fields: object) -> None:
    """Set entries of ``quantization_config``."""
    file = path / "config.json"
    content = json.loads(file.read_text())
    content["quantization_config"] = {**content.get("quantization_config", {}), **fields}
    file.write_text(json.dumps(content))
