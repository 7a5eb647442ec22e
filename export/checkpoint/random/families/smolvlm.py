"""SmolVLM2, SmolVLM and Idefics3, as the hub and transformers 5 write them."""

from __future__ import annotations

from typing import Any

from divprune.export.checkpoint.random.families.base import CheckpointFiles, class_name

__all__ = ["SmolVLMFiles"]

_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_CROPS_ALONG = 4  # of the longer edge of a picture
_MOST_ALONG = 6  # rows and columns that the prompt can name


class SmolVLMFiles(CheckpointFiles):
    """Crops are named in the prompt by their row and column."""

    @property
    def chat_template(self) -> str:
        """Words and ``<end_of_utterance>``."""
        return _TEMPLATE

    def stored_name(self, canonical: str) -> str:
        """See ``CheckpointFiles``."""
        if canonical == "lm_head.weight":
            return canonical
        return "model." + canonical.replace("language_model.", "text_model.", 1)

    def fixed_tokens(self) -> dict[int, str]:
        """See ``CheckpointFiles``."""
        along = range(1, _MOST_ALONG + 1)
        places = [f"<row_{row}_col_{column}>" for row in along for column in along]
        visual = ["<global-img>", *places, "<fake_token_around_image>", "<image>"]
        first = self.config.image_token_id + 1 - len(visual)
        turns = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        tokens = {**dict(enumerate(turns)), **dict(enumerate(visual, first))}
        return tokens | {self.eos_id: "<end_of_utterance>"}

    @property
    def eos_id(self) -> int:
        """The last token, whatever the text model's own config says."""
        return int(self.config.text_config.vocab_size) - 1

    def named_tokens(self) -> dict[str, str]:
        """See ``CheckpointFiles``."""
        return {
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        }

    def image_processor(self) -> dict[str, Any]:
        """See ``CheckpointFiles``."""
        side = self.config.vision_config.image_size
        half = [0.5, 0.5, 0.5]
        sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}
        return {
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": half,
            "image_processor_type": class_name(self.config, "ImageProcessor"),
            "image_std": half,
            "max_image_size": {"longest_edge": side},
            "processor_class": class_name(self.config, "Processor"),
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": _CROPS_ALONG * side},
            **({"video_sampling": sampling} if self.config.model_type == "smolvlm" else {}),
        }
