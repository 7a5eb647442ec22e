"""Small checkpoints in the layout of InternVL's original code.

Made of those in transformers' form: the same weights under other names, queries, keys and values
of the tower in one tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.random.tokenizer import byte_level_tokenizer

__all__ = ["original_name", "tokenizer_of", "write_original_internvl"]

_RENAMES = (
    (r"^language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
    (r"\.cls_token$", ".class_embedding"),
    (r"\.position_embeddings$", ".position_embedding"),
    (r"\.patch_embeddings\.projection\.", ".patch_embedding."),
    (r"^vision_tower\.encoder\.layer\.", "vision_tower.encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_", ".ls"),
    (r"^vision_tower\.", "vision_model."),
)
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_VISION = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_VISION += ("num_channels", "hidden_act", "layer_norm_eps", "norm_type")
_TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ADDED = (*_TURNS, "<img>", "</img>", "<IMG_CONTEXT>", "<ref>")


def original_name(name: str) -> str:
    """The original code's name of a tensor that is not joined with others."""
    for pattern, new in _RENAMES:
        name = re.sub(pattern, new, name)
    return name


def write_original_internvl(
    path: Path,
    checkpoint: Path,
    *,
    pickled: bool = False,
    slow_tokenizer: bool = False,
    settings: Mapping[str, Any] | None = None,
    llm_settings: Mapping[str, Any] | None = None,
    vision_settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint in the original layout.

    Args:
        path: Where.
        checkpoint: The same model in transformers' form.
        pickled: Whether weights are ``pytorch_model.bin``.
        slow_tokenizer: Whether the tokenizer is vocab.json, merges.txt and added_tokens.json, as
            in the original repositories.
        settings: What ``config.json`` has beyond or other than the model's own.
        llm_settings: The same of its decoder's part.
        vision_settings: The same of its tower's part.
    """
    opened = Checkpoint.open(checkpoint)
    path.mkdir(parents=True)
    tensors = _joined({name: opened.read(name) for name in opened.names()})
    if pickled:
        torch.save(tensors, path / "pytorch_model.bin")
    else:
        save_file(tensors, path / "model.safetensors")
    content = _config(opened.config)
    content["llm_config"] |= llm_settings or {}
    content["vision_config"] |= vision_settings or {}
    (path / "config.json").write_text(json.dumps({**content, **(settings or {})}))
    _write_tokenizer(path, opened.config.text_config.vocab_size, slow=slow_tokenizer)
    processor = {"image_processor_type": "CLIPFeatureExtractor", "crop_size": 448, "size": 448}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def _joined(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    joined = {}
    for name, tensor in tensors.items():
        if ".attention.k_proj." in name or ".attention.v_proj." in name:
            continue
        if ".attention.q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            joined[original_name(name.replace(".q_proj.", ".qkv."))] = torch.cat(parts)
        else:
            joined[original_name(name)] = tensor.contiguous()
    return joined


def _config(config: Any) -> dict[str, Any]:
    text, vision = config.text_config, config.vision_config
    rope = dict(text.rope_parameters)
    llm = {key: value for key, value in text.to_dict().items() if key != "rope_parameters"}
    llm["architectures"] = [_ARCHITECTURES[text.model_type]]
    llm["rope_theta"] = rope.pop("rope_theta")
    llm["eos_token_id"] = text.vocab_size - len(_ADDED)
    llm["rope_scaling"] = {**rope, "type": rope["rope_type"]} if len(rope) > 1 else None
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size[0],
        "llm_config": llm,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            **{key: getattr(vision, key) for key in _VISION},
            "architectures": ["InternVisionModel"],
            "image_size": vision.image_size[0],
            "model_type": "intern_vit_6b",
            "patch_size": vision.patch_size[0],
            "qk_normalization": vision.use_qk_norm,
            "qkv_bias": vision.attention_bias,
        },
    }


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """A tokenizer like Qwen's, with the tokens of pictures behind those of turns at its end."""
    first = vocab_size - len(_ADDED)
    return byte_level_tokenizer(vocab_size, dict(enumerate(_ADDED, first)))


def _write_tokenizer(path: Path, vocab_size: int, *, slow: bool) -> None:
    tokenizer = tokenizer_of(vocab_size)
    content = json.loads(tokenizer.to_str())
    stored = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    if not slow:
        tokenizer.save(str(path / "tokenizer.json"))
        stored["tokenizer_class"] = "PreTrainedTokenizerFast"
        (path / "tokenizer_config.json").write_text(json.dumps(stored))
        return
    vocab = {t: i for t, i in content["model"]["vocab"].items() if t not in _ADDED}
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (path / "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (path / "added_tokens.json").write_text(json.dumps(added))
    decoder = {str(token.pop("id")): token for token in content["added_tokens"]}
    stored |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
    (path / "tokenizer_config.json").write_text(json.dumps(stored))
