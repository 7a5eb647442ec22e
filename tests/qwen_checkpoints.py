"""Small Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints with random weights.

Cells of 8 pixels, windows of 2 x 2 cells, decoders with a layer more than there are planes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.llava_files import TensorSource, write_weights
from checkpoints import randomise

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["QWEN_CHECKPOINTS", "QwenSpec", "qwen_config", "write_qwen_checkpoint"]

_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOWER = {"depth": 4, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": {**_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    "qwen2_5_vl": {
        **_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    },
    "qwen3_vl": {
        **_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    },
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "vocab_size": 320,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_SECTIONS = {"qwen2_vl": [2, 3, 3], "qwen2_5_vl": [2, 3, 3], "qwen3_vl": [4, 2, 2]}


@dataclass(frozen=True)
class QwenSpec:
    """One small configuration.

    Attributes:
        kind: ``model_type``.
        layout: Key layout and spelling of the config: the hub's, or that of transformers 5.
        tied: Whether the output layer is the embedding table.
        vision: What the vision config has beyond the common part.
        seed: Of the weights.
    """

    kind: str
    layout: Literal["hub", "v5"] = "v5"
    tied: bool = False
    vision: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


QWEN_CHECKPOINTS: dict[str, QwenSpec] = {
    "qwen3-v5": QwenSpec("qwen3_vl"),
    "qwen3-hub-tied": QwenSpec("qwen3_vl", layout="hub", tied=True, seed=1),
    "qwen25-v5-tied": QwenSpec("qwen2_5_vl", tied=True, seed=2),
    "qwen25-hub": QwenSpec("qwen2_5_vl", layout="hub", seed=3),
    "qwen2-v5": QwenSpec("qwen2_vl", seed=4),
    "qwen2-hub-tied": QwenSpec("qwen2_vl", layout="hub", tied=True, seed=5),
}


def qwen_config(spec: QwenSpec) -> PreTrainedConfig:
    """The transformers config of ``spec``."""
    import transformers

    ids = {token: index for index, token in enumerate(_SPECIALS)}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": _SECTIONS[spec.kind]}
    text = {**_TEXT, "rope_parameters": rope, "tie_word_embeddings": spec.tied}
    if spec.kind == "qwen3_vl":
        text["head_dim"] = 16
    config: PreTrainedConfig = transformers.AutoConfig.for_model(
        spec.kind,
        vision_config={**_TOWERS[spec.kind], **spec.vision},
        text_config=text,
        tie_word_embeddings=spec.tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return config


def write_qwen_checkpoint(path: Path, name: str) -> Path:
    """Write the checkpoint of ``QWEN_CHECKPOINTS[name]`` (float32) to ``path``."""
    import transformers

    spec = QWEN_CHECKPOINTS[name]
    config = qwen_config(spec)
    auto_model: Any = transformers.AutoModelForImageTextToText
    model = auto_model.from_config(config).eval()
    randomise(model, spec.seed)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        _stored_name(key, spec): TensorSource.of(value.numpy())
        for key, value in model.state_dict().items()
        if not (spec.tied and key == "lm_head.weight")
    }
    write_weights(path, tensors, "fp32", 10**9 if spec.layout == "v5" else 100_000)
    content = config.to_diff_dict() | {"architectures": [type(model).__name__]}
    _write_json(path / "config.json", content if spec.layout == "v5" else _as_on_the_hub(content))
    generation = {key: _TEXT[key] for key in ("bos_token_id", "eos_token_id")}
    _write_json(path / "generation_config.json", generation)
    _write_tokenizer(path)
    _write_processors(path, spec)
    return path


def _stored_name(key: str, spec: QwenSpec) -> str:
    """Qwen3-VL's names on the hub are those of transformers 5."""
    if spec.layout == "v5" or spec.kind == "qwen3_vl":
        return key
    return key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def _as_on_the_hub(content: dict[str, Any]) -> dict[str, Any]:
    """``rope_scaling`` beside ``rope_theta``; what is the text's at the top but in Qwen3-VL."""
    text, kind = dict(content.pop("text_config")), content["model_type"]
    rope = dict(text.pop("rope_parameters"))
    text["rope_theta"] = rope.pop("rope_theta")
    if kind == "qwen3_vl":
        text["rope_scaling"] = {**rope, "mrope_interleaved": True}
        return {**content, "text_config": text}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    for key in ("model_type", "dtype"):
        text.pop(key, None)
    vision = {key: v for key, v in content["vision_config"].items() if key != "model_type"}
    return {**content, **text, "vision_config": vision, "use_sliding_window": False}


def _write_tokenizer(path: Path) -> None:
    """As Qwen's: byte-level BPE without BOS; turns end in ``<|im_end|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), (">", "<"), ("s", ">")]
    tokens = [*_SPECIALS, *characters, *("".join(pair) for pair in merges)]
    tokens += [f"<|extra_{index}|>" for index in range(_TEXT["vocab_size"] - len(tokens))]
    tokenizer = Tokenizer(models.BPE({t: index for index, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*_SPECIALS])
    tokenizer.save(str(path / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": [*_SPECIALS],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _TEXT["max_position_embeddings"],
    }
    _write_json(path / "tokenizer_config.json", content)


def _write_processors(path: Path, spec: QwenSpec) -> None:
    area = {"shortest_edge": 64, "longest_edge": 100_000}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if spec.kind == "qwen3_vl" else {}
    common = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": area, **half}
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", **common}
    kind = "Qwen3VL" if spec.kind == "qwen3_vl" else "Qwen2VL"
    video = {"video_processor_type": f"{kind}VideoProcessor", **common}
    if spec.layout == "hub":
        _write_json(path / "chat_template.json", {"chat_template": _TEMPLATE})
        _write_json(path / "preprocessor_config.json", image)
        _write_json(path / "video_preprocessor_config.json", video)
        return
    (path / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    both = {"image_processor": image, "video_processor": video}
    _write_json(path / "processor_config.json", both)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
