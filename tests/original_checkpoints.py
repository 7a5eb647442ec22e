"""Small checkpoints in the layout of LLaVA's original code, with their towers.

Made of those in transformers' form: the same weights under other names, so that both layouts have
to give the same answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.random.tokenizer import byte_level_tokenizer, llama_tokenizer

__all__ = ["original_name", "write_original"]

_RENAMES = (
    (r"^language_model\.", "model."),
    (r"^multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^image_newline$", "model.image_newline"),
    (r"^vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
)
_ARCHITECTURES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen"}


def original_name(name: str) -> str:
    """The original code's name of a tensor."""
    for pattern, new in _RENAMES:
        name = re.sub(pattern, new, name)
    return name


def write_original(
    path: Path,
    checkpoint: Path,
    *,
    tower_inside: bool = False,
    pickled: bool = False,
    layers_cut: int = 0,
    legacy: bool = True,
    settings: Mapping[str, Any] | None = None,
    tokens: Mapping[int, str] | None = None,
) -> Path:
    """Write a checkpoint in the original layout to ``path`` and its tower to ``path``-tower.

    Args:
        path: Where.
        checkpoint: The same model in transformers' form.
        tower_inside: Whether the tower's weights lie in the checkpoint, as of LLaVA-1.6.
        pickled: Whether weights are ``pytorch_model.bin``, as of LLaVA-1.5 and OpenAI's CLIP.
        layers_cut: Layers that the tower's own config has beyond those of the model: the
            original code cuts off the last one of a SigLIP.
        legacy: Whether a Llama's tokenizer writes a space behind every special token.
        settings: What ``config.json`` has beyond or other than the model's own.
        tokens: Special tokens of the tokenizer by their numbers.
    """
    opened = Checkpoint.open(checkpoint)
    tensors = {original_name(name): opened.read(name) for name in sorted(opened.names())}
    tower = {name: t for name, t in tensors.items() if ".vision_tower." in name}
    rest = {name: t for name, t in tensors.items() if name not in tower}
    path.mkdir(parents=True)
    _write_weights(path, tensors if tower_inside else rest, pickled=pickled)
    _write_config(path, opened.config, settings or {})
    _write_tokenizer(path, opened.config.text_config, tokens or {}, legacy=legacy)
    beside = path.with_name(path.name + "-tower")
    _write_tower(beside, checkpoint, opened.config, tower, pickled=pickled)
    content = json.loads((beside / "config.json").read_text())
    content["vision_config"]["num_hidden_layers"] += layers_cut
    (beside / "config.json").write_text(json.dumps(content))
    return path


def _write_weights(path: Path, tensors: dict[str, torch.Tensor], *, pickled: bool) -> None:
    """In two shards, as large models have them."""
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    stem, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    index = {}
    for number, half in enumerate(halves, start=1):
        file = path / f"{stem}-{number:05}-of-00002.{ending}"
        part = {name: tensors[name].contiguous() for name in half}
        torch.save(part, file) if pickled else save_file(part, file)
        index |= dict.fromkeys(half, file.name)
    (path / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": index}))


def _write_config(path: Path, config: Any, settings: Mapping[str, Any]) -> None:
    text = config.text_config
    content = {key: value for key, value in text.to_dict().items() if key != "rope_parameters"}
    content |= {
        "architectures": [f"Llava{_ARCHITECTURES[text.model_type]}ForCausalLM"],
        "model_type": f"llava_{text.model_type}",
        "rope_theta": text.rope_parameters["rope_theta"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": str(path.with_name(path.name + "-tower")),
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
    }
    (path / "config.json").write_text(json.dumps({**content, **settings}))


def _write_tokenizer(path: Path, text: Any, tokens: Mapping[int, str], *, legacy: bool) -> None:
    """A tokenizer of the decoder: it knows nothing of pictures."""
    last = {text.vocab_size - 1: "<pad>"}
    if text.model_type == "qwen2":
        tokenizer, name = (
            byte_level_tokenizer(text.vocab_size, {**last, **tokens}),
            "Qwen2Tokenizer",
        )
    else:
        tokenizer, name = llama_tokenizer(text.vocab_size, {**last, **tokens}), "LlamaTokenizer"
    if not legacy:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.save(str(path / "tokenizer.json"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    content |= ends if name == "LlamaTokenizer" else {"eos_token": tokens.get(2, "<pad>")}
    (path / "tokenizer_config.json").write_text(json.dumps(content))


def _write_tower(
    path: Path, checkpoint: Path, config: Any, tower: dict[str, torch.Tensor], *, pickled: bool
) -> None:
    """The CLIP or SigLIP that the tower comes from, with a text half that nobody needs."""
    vision = config.vision_config
    kind = vision.model_type.removesuffix("_vision_model")
    path.mkdir()
    whole = {name.partition("vision_tower.vision_tower.")[2]: t for name, t in tower.items()}
    whole |= {"text_model.embeddings.weight": torch.ones(3, 2), "logit_scale": torch.ones(())}
    if pickled:
        torch.save(whole, path / "pytorch_model.bin")
    else:
        save_file({name: t.contiguous() for name, t in whole.items()}, path / "model.safetensors")
    content = {"model_type": kind, "vision_config": vision.to_dict(), "text_config": {}}
    (path / "config.json").write_text(json.dumps(content))
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    kind = "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor"
    own = ("image_grid_pinpoints", "image_processor_type", "processor_class", "do_pad")
    processor = {key: value for key, value in processor.items() if key not in own}
    processor["image_processor_type"] = kind
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
