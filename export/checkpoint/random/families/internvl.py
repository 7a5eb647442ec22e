"""InternVL3 and 3.5, as the repositories that end in -hf and transformers 5 write them."""

from __future__ import annotations

from typing import Any

from divprune.export.checkpoint.random.families.base import CheckpointFiles

__all__ = ["InternVLFiles"]

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class InternVLFiles(CheckpointFiles):
    """Tokenizer and turns are Qwen's."""

    @property
    def chat_template(self) -> str:
        """ChatML."""
        return _TEMPLATE

    def stored_name(self, canonical: str) -> str:
        """See ``CheckpointFiles``."""
        if self.layout == "hub":
            renamed = canonical.replace("language_model.", "language_model.model.", 1)
            return renamed.replace("lm_head.", "language_model.lm_head.", 1)
        return canonical if canonical == "lm_head.weight" else f"model.{canonical}"

    def fixed_tokens(self) -> dict[int, str]:
        """See ``CheckpointFiles``."""
        turns = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        visual = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
        return {
            **dict(enumerate(turns, self.eos_id - 2)),
            **dict(enumerate(visual, self.config.image_token_id - 2)),
        }

    def named_tokens(self) -> dict[str, str]:
        """See ``CheckpointFiles``."""
        return {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }

    def image_processor(self) -> dict[str, Any]:
        """See ``CheckpointFiles``."""
        height, width = self.config.vision_config.image_size
        return {
            "crop_to_patches": False,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "image_std": [0.229, 0.224, 0.225],
            "max_patches": 12,
            "min_patches": 1,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": height, "width": width},
        }
