"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, as the hub and transformers 5 write them."""

from __future__ import annotations

from typing import Any

from divprune.export.checkpoint.random.families.base import CheckpointFiles

__all__ = ["QwenVLFiles"]

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Merged patches of the smallest and the largest picture.
_FEWEST, _MOST = {"qwen2_vl": 4, "qwen2_5_vl": 4, "qwen3_vl": 64}, 16384


class QwenVLFiles(CheckpointFiles):
    """Qwen3-VL's files on the hub are named as transformers 5 names them."""

    @property
    def chat_template(self) -> str:
        """ChatML with markers around pictures and videos."""
        return _TEMPLATE

    def stored_name(self, canonical: str) -> str:
        """See ``CheckpointFiles``."""
        if canonical == "lm_head.weight":
            return canonical
        if self._is_flat:
            return canonical.replace("language_model.", "model.", 1)
        return f"model.{canonical}"

    def fixed_tokens(self) -> dict[int, str]:
        """See ``CheckpointFiles``."""
        config = self.config
        turns = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        return {
            **dict(enumerate(turns, self.eos_id - 2)),
            config.vision_start_token_id: "<|vision_start|>",
            config.vision_end_token_id: "<|vision_end|>",
            config.image_token_id: "<|image_pad|>",
            config.video_token_id: "<|video_pad|>",
        }

    def named_tokens(self) -> dict[str, str]:
        """See ``CheckpointFiles``."""
        return {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

    def image_processor(self) -> dict[str, Any]:
        """See ``CheckpointFiles``."""
        return {"image_processor_type": "Qwen2VLImageProcessorFast", **self._patches()}

    def video_processor(self) -> dict[str, Any]:
        """See ``CheckpointFiles``."""
        kind = "Qwen3VL" if self._is_qwen3 else "Qwen2VL"
        return {"video_processor_type": f"{kind}VideoProcessor", **self._patches()}

    def config_json(self) -> dict[str, Any]:
        """On the hub: ``rope_scaling`` beside ``rope_theta``; Qwen3-VL's alone keeps text apart."""
        content = super().config_json()
        if self.layout == "v5":
            return content
        text = dict(content.pop("text_config"))
        rope = dict(text.pop("rope_parameters"))
        text["rope_theta"] = rope.pop("rope_theta")
        if self._is_qwen3:
            text["rope_scaling"] = {**rope, "mrope_interleaved": True}
            return {**content, "text_config": text}
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        for key in ("model_type", "dtype"):
            text.pop(key, None)
        vision = {key: v for key, v in content["vision_config"].items() if key != "model_type"}
        return {**content, **text, "vision_config": vision, "use_sliding_window": False}

    @property
    def _is_qwen3(self) -> bool:
        return bool(self.config.model_type == "qwen3_vl")

    @property
    def _is_flat(self) -> bool:
        return self.layout == "hub" and not self._is_qwen3

    def _patches(self) -> dict[str, Any]:
        vision = self.config.vision_config
        cell = (vision.patch_size * vision.spatial_merge_size) ** 2
        fewest = _FEWEST[self.config.model_type]
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if self._is_qwen3 else {}
        return {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "size": {"shortest_edge": fewest * cell, "longest_edge": _MOST * cell},
            **half,
        }
