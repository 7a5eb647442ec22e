"""Write a LLaVA checkpoint with random weights, streamed so that memory stays small.

    python benchmarks/random_llava.py /tmp/llava-1.1b --shape 1.1b --dtype fp16

It has all the files of a real one: config, tokenizer, chat template, processor configs and sharded
safetensors, in one of the layouts of ``llava_files.py``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from benchmarks.llava_files import DType, Layout

__all__ = ["SHAPES", "write_random_llava"]

_CLIP_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
_LLAMA = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision_config": _CLIP_336
        | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "image_size": 56, "patch_size": 8},
        "text_config": _LLAMA
        | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 480},
        "image_token_index": 470,
    },
    "0.2b": {
        "vision_config": _CLIP_336
        | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "image_size": 224},
        "text_config": _LLAMA
        | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}
        | {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 2048},
        "image_token_index": 32000,
    },
    "0.5b": {  # that of LLaVA-Interleave 0.5B, its smaller vocabulary aside
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {"model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816}
        | {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16}
        | {"max_position_embeddings": 4096, "vocab_size": 32064, "rms_norm_eps": 1e-6}
        | {"bos_token_id": 1, "eos_token_id": 2},
        "image_token_index": 32000,
    },
    "1.1b": {
        "vision_config": _CLIP_336,
        "text_config": _LLAMA
        | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22}
        | {"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048},
        "image_token_index": 32000,
    },
    "7b": {
        "vision_config": _CLIP_336,
        "text_config": _LLAMA | {"max_position_embeddings": 4096},
        "image_token_index": 32000,
    },
    "1.6-7b": {
        "model_type": "llava_next",
        "vision_config": _CLIP_336,
        "text_config": _LLAMA | {"max_position_embeddings": 4096},
        "image_token_index": 32000,
    },
    "next-video-7b": {
        "model_type": "llava_next_video",
        "vision_config": _CLIP_336,
        "text_config": _LLAMA
        | {"max_position_embeddings": 4096}
        | {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
        "image_token_index": 32001,
        "video_token_index": 32000,
    },
    "1.6-1.1b": {  # LLaVA-1.6 in front of the decoder of 1.1b
        "model_type": "llava_next",
        "vision_config": _CLIP_336,
        "text_config": _LLAMA
        | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22}
        | {"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 4096},
        "image_token_index": 32000,
    },
    "onevision-0.5b": {
        "model_type": "llava_onevision",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "text_config": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864}
        | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
        | {"max_position_embeddings": 32768, "vocab_size": 152000, "rms_norm_eps": 1e-6}
        | {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True},
        "tie_word_embeddings": True,
        "image_token_index": 151646,
        "video_token_index": 151647,
    },
}


def _shape_config(shape: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    parts = {"model_type": "llava", **SHAPES[shape]}
    if parts["model_type"] != "llava_onevision":
        vision = parts["vision_config"]
        parts["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    auto_config: Any = AutoConfig
    config: PreTrainedConfig = auto_config.for_model(**parts)
    return config


def write_random_llava(
    directory: Path,
    *,
    shape: str = "1.1b",
    layout: Layout = "hub",
    dtype: DType = "fp16",
    shard_size: int = 5 * 10**9,
    seed: int = 0,
) -> Path:
    """Write a whole random checkpoint to ``directory`` and return it.

    Args:
        directory: Created if missing; files of the same names are overwritten.
        shape: One of ``SHAPES``.
        layout: How keys, config and chat template are spelled.
        dtype: Stored type of all tensors.
        shard_size: Largest shard in bytes (one tensor may exceed it).
        seed: The same seed gives the same bytes.
    """
    from benchmarks.llava_files import (
        TensorSource,
        stored_name,
        write_config,
        write_side_files,
        write_weights,
    )
    from divprune.export.checkpoint.checkpoint import expected_tensors

    directory.mkdir(parents=True, exist_ok=True)
    config = _shape_config(shape)
    tensors = {
        stored_name(name, layout): TensorSource.random(name, size, seed)
        for name, size in expected_tensors(config).items()
    }
    write_weights(directory, tensors, dtype, shard_size)
    write_side_files(directory, config, layout)
    write_config(directory, config, layout, dtype)
    return directory


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 5GB, found {text!r}")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]])


def main(argv: list[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description="Write a random-weight LLaVA checkpoint.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.1b")
    parser.add_argument("--layout", choices=["hub", "v4", "v5"], default="hub")
    parser.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument("--shard-size", type=_bytes, default="5GB", help="such as 500MB or 5GB")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    path = write_random_llava(options.pop("directory"), **options)
    print(path)
    return 0


if __name__ == "__main__":
    # As a script this file has benchmarks/ on its path and not the repository.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    raise SystemExit(main())
