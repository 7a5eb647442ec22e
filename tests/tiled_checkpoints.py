"""Small InternVL, SmolVLM and Idefics3 checkpoints with random weights, as transformers saves them.

Tokenizer, chat template and processor configs have the form of those on the hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import randomise
from tests.runtime.families.processors import (
    internvl_tokenizer,
    smolvlm_tokenizer,
    transformers_tokenizer,
)

__all__ = ["TILED_CHECKPOINTS", "TiledSpec", "write_tiled_checkpoint"]

_INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "vocab_size": 512,
}
_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
}


@dataclass(frozen=True)
class TiledSpec:
    """One small configuration.

    Attributes:
        model_type: ``internvl``, ``smolvlm`` or ``idefics3``.
        text: Model type of the text model.
        tied: Whether the output layer is the embedding table.
        hub_keys: Store tensors under the names that the hub's files have.
        vision: What the vision config has beyond the common part.
        text_options: What the text config has beyond the common part.
        options: What the config of the whole has.
        merges_newlines: Whether two line feeds are one token.
        seed: Of the weights.
    """

    model_type: str
    text: str
    tied: bool = False
    hub_keys: bool = False
    vision: dict[str, Any] = field(default_factory=dict)
    text_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    merges_newlines: bool = False
    seed: int = 0


_TILE = {"image_size": [16, 16], "patch_size": [4, 4], "attention_bias": True}
_CROP = {"image_size": 16, "patch_size": 4}
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}

TILED_CHECKPOINTS: dict[str, TiledSpec] = {
    "internvl-qwen2-hub": TiledSpec(
        "internvl",
        "qwen2",
        hub_keys=True,
        vision=_TILE,
        text_options={"rope_parameters": _DYNAMIC_ROPE},
    ),
    "internvl-qwen3-tied": TiledSpec("internvl", "qwen3", tied=True, vision=_TILE, seed=1),
    "internvl-qwen2-6b-tower": TiledSpec(
        "internvl",
        "qwen2",
        tied=True,
        vision={**_TILE, "use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False},
        seed=2,
    ),
    "smolvlm-llama": TiledSpec(
        "smolvlm", "llama", vision=_CROP, options={"scale_factor": 2}, seed=3
    ),
    "smolvlm-llama-tied-merging": TiledSpec(
        "smolvlm",
        "llama",
        tied=True,
        vision={"image_size": 24, "patch_size": 4},
        options={"scale_factor": 3},
        merges_newlines=True,
        seed=4,
    ),
    "idefics3-llama": TiledSpec(
        "idefics3", "llama", vision=_CROP, options={"scale_factor": 2}, seed=5
    ),
}


def write_tiled_checkpoint(path: Path, name: str) -> Path:
    """Write the checkpoint of ``TILED_CHECKPOINTS[name]`` (float32) to ``path``."""
    spec = TILED_CHECKPOINTS[name]
    is_internvl = spec.model_type == "internvl"
    raw, names = (
        internvl_tokenizer()
        if is_internvl
        else smolvlm_tokenizer(merges_newlines=spec.merges_newlines)
    )
    image_token = "<IMG_CONTEXT>" if is_internvl else "<image>"
    config = _config(spec, raw.token_to_id(image_token), raw.token_to_id(names["eos_token"]))
    path.mkdir(parents=True, exist_ok=True)
    _write_model(path, config, spec)
    transformers_tokenizer(raw, names).save_pretrained(path)
    template = _INTERNVL_TEMPLATE if is_internvl else _SMOLVLM_TEMPLATE
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    side = _square(spec.vision["image_size"])
    processor = _internvl_processor(side) if is_internvl else _smolvlm_processor(side, spec)
    _write_json(path / "preprocessor_config.json", processor)
    eos = {"eos_token_id": raw.token_to_id(names["eos_token"])}
    _write_json(path / "generation_config.json", eos)
    return path


def _config(spec: TiledSpec, image_token_id: int, eos: int) -> Any:
    import transformers

    classes = {
        "internvl": transformers.InternVLConfig,
        "smolvlm": transformers.SmolVLMConfig,
        "idefics3": transformers.Idefics3Config,
    }
    side, patch = _square(spec.vision["image_size"]), _square(spec.vision["patch_size"])
    options = dict(spec.options)
    if spec.model_type == "internvl":
        options["image_seq_length"] = (side // patch // 2) ** 2
    text = {"model_type": spec.text, **_TEXT, "bos_token_id": None, "eos_token_id": eos}
    text |= {"pad_token_id": None, "tie_word_embeddings": spec.tied}
    return classes[spec.model_type](
        vision_config={**_VISION, **spec.vision},
        text_config={**text, **spec.text_options},
        image_token_id=image_token_id,
        tie_word_embeddings=spec.tied,
        **options,
    )


def _write_model(path: Path, config: Any, spec: TiledSpec) -> None:
    import transformers
    from safetensors.torch import save_file

    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    randomise(model, spec.seed)
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    tensors = {
        _hub_name(key) if spec.hub_keys else key: value.contiguous()
        for key, value in model.state_dict().items()
        if not (spec.tied and key == "lm_head.weight")
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _hub_name(key: str) -> str:
    """The name of a tensor in the repositories that end in -hf."""
    if key == "lm_head.weight":
        return "language_model.lm_head.weight"
    key = key.removeprefix("model.")
    head, _, rest = key.partition("language_model.")
    return f"language_model.model.{rest}" if rest and not head else key


def _internvl_processor(side: int) -> dict[str, Any]:
    return {
        **_PROCESSOR,
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "crop_to_patches": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "size": {"height": side, "width": side},
    }


def _smolvlm_processor(side: int, spec: TiledSpec) -> dict[str, Any]:
    is_smolvlm = spec.model_type == "smolvlm"
    sampling = {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": side}}
    return {
        **_PROCESSOR,
        "image_processor_type": f"{'SmolVLM' if is_smolvlm else 'Idefics3'}ImageProcessor",
        "do_image_splitting": True,
        "do_pad": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": side},
        "processor_class": f"{'SmolVLM' if is_smolvlm else 'Idefics3'}Processor",
        "resample": 1,
        "size": {"longest_edge": 4 * side},
        **({"video_sampling": sampling} if is_smolvlm else {}),
    }


def _square(size: int | list[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
