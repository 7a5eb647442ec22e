"""LLaVA, LLaVA-1.6, NeXT-Video and OneVision, as the llava-hf repositories and transformers write them."""  # noqa: E501

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.checkpoint.random.families.base import CheckpointFiles, Layout, class_name
from divprune.export.checkpoint.random.tokenizer import llama_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["LlavaFiles"]

_LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CLIP_STATISTICS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


class LlavaFiles(CheckpointFiles):
    """Tokenizer and template are Vicuna's, or Qwen's where the text model is a Qwen."""

    layouts: ClassVar[tuple[Layout, ...]] = ("hub", "v4", "v5")

    @property
    def chat_template(self) -> str:
        """Vicuna's, or ChatML."""
        return _CHATML_TEMPLATE if self._is_chatml else _LLAVA_TEMPLATE

    def stored_name(self, canonical: str) -> str:
        """See ``CheckpointFiles``."""
        name = canonical
        if self.layout != "v5":
            name = re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)
        if self.layout == "v4":
            return name if name.startswith("lm_head.") else f"model.{name}"
        name = re.sub(r"^language_model\.", "language_model.model.", name)
        return re.sub(r"^lm_head\.", "language_model.lm_head.", name)

    def tokenizer(self) -> Tokenizer:
        """See ``CheckpointFiles``."""
        if self._is_chatml:
            return super().tokenizer()
        return llama_tokenizer(self.config.text_config.vocab_size, self.fixed_tokens())

    def fixed_tokens(self) -> dict[int, str]:
        """Visual tokens side by side with the padding behind them."""
        visual = self._visual_tokens()
        turns = ("<|endoftext|>", "<|im_start|>", "<|im_end|>") if self._is_chatml else ()
        first = self.eos_id - 2 if turns else 0
        pad = "<|pad|>" if turns else "<pad>"
        return {**dict(enumerate(turns, first)), **visual, max(visual) + 1: pad}

    def named_tokens(self) -> dict[str, str]:
        """See ``CheckpointFiles``."""
        if self._is_chatml:
            return {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        return {**names, "pad_token": "<pad>"}

    def image_processor(self) -> dict[str, Any]:
        """That of the vision tower; pictures of any size are cut first."""
        edge = self.config.vision_config.image_size
        square = {"height": edge, "width": edge}
        content: dict[str, Any] = {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "processor_class": class_name(self.config, "Processor"),
            "resample": 3,
            "rescale_factor": 1 / 255,
        }
        if grids := getattr(self.config, "image_grid_pinpoints", None):
            content |= {"do_pad": True, "image_grid_pinpoints": grids}
        if not self._is_clip:
            content |= {"image_processor_type": self._image_processor_type("Siglip")}
            half = [0.5, 0.5, 0.5]
            return content | {"size": square, "image_mean": half, "image_std": half}
        return content | {
            "image_processor_type": self._image_processor_type("CLIP"),
            "crop_size": square,
            "do_center_crop": True,
            "size": {"shortest_edge": edge},
            **_CLIP_STATISTICS,
        }

    def video_processor(self) -> dict[str, Any] | None:
        """That of a frame; None for a model that takes no videos."""
        if self._video_id is None:
            return None
        content = self.image_processor()
        for key in ("image_processor_type", "image_grid_pinpoints", "do_pad"):
            del content[key]
        return content | {"video_processor_type": class_name(self.config, "VideoProcessor")}

    def processor(self) -> dict[str, Any]:
        """With what the prompt's placeholders become."""
        vision = self.config.vision_config
        content = super().processor() | {
            "image_token": "<image>",
            "vision_feature_select_strategy": self.config.vision_feature_select_strategy,
        }
        if self._video_id is not None:
            content["video_token"] = "<video>"
        if self.config.model_type == "llava_onevision":
            patches = (vision.image_size // vision.patch_size) ** 2
            ratio = self.config.vision_aspect_ratio
            return content | {"num_image_tokens": patches, "vision_aspect_ratio": ratio}
        additional = {"num_additional_image_tokens": int(self._is_clip)}
        return content | additional | {"patch_size": vision.patch_size}

    def config_json(self) -> dict[str, Any]:
        """See ``CheckpointFiles``; the hub's says what is not a default only."""
        content = super().config_json()
        if self.layout == "v5":
            return content
        sparse = self.layout == "hub"
        content["transformers_version"] = "4.36.0.dev0" if sparse else "4.52.4"
        for key in ("text_config", "vision_config"):
            content[key] = _older_spelling(getattr(self.config, key), sparse=sparse)
        if sparse:
            content |= {"ignore_index": -100, "vocab_size": self.config.text_config.vocab_size}
        return content

    @property
    def _is_chatml(self) -> bool:
        return str(self.config.text_config.model_type).startswith("qwen")

    @property
    def _is_clip(self) -> bool:
        return bool(self.config.vision_config.model_type == "clip_vision_model")

    @property
    def _video_id(self) -> int | None:
        index: int | None = getattr(self.config, "video_token_id", None)
        return index

    def _visual_tokens(self) -> dict[int, str]:
        tokens = {self.config.image_token_id: "<image>"}
        return tokens if self._video_id is None else tokens | {self._video_id: "<video>"}

    def _image_processor_type(self, tower: str) -> str:
        """LLaVA-NeXT-Video has that of LLaVA-1.6, and LLaVA-1.5 that of its tower."""
        if self.config.model_type == "llava":
            return f"{tower}ImageProcessor"
        return class_name(self.config, "ImageProcessor").replace("NextVideo", "Next")


def _older_spelling(part: Any, *, sparse: bool) -> dict[str, Any]:
    """A text or vision config as transformers 4 wrote it: rope_theta at the top level."""
    content: dict[str, Any] = part.to_dict()
    if sparse:
        # The class defaults did not change between the versions for what is written here.
        defaults = type(part)().to_dict()
        content = {
            key: value
            for key, value in content.items()
            if key in ("model_type", "rope_parameters") or defaults.get(key) != value
        }
    content.pop("dtype", None)
    content.pop("layer_types", None)
    if sparse and content.get("head_dim") == part.hidden_size // part.num_attention_heads:
        del content["head_dim"]
    rope = content.pop("rope_parameters", None)
    if rope is not None:
        theta = rope.pop("rope_theta")
        if not sparse or theta != 10000.0:
            content["rope_theta"] = theta
        if rope["rope_type"] != "default":
            content["rope_scaling"] = rope
        elif not sparse:
            content["rope_scaling"] = None
    return content
