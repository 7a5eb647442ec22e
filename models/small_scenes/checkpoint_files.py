"""The tokenizer and the files around the weights, as transformers expects them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.small_scenes.questions import words
from models.small_scenes.scenes import IMAGE_SIZE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "IMAGE_TOKEN",
    "MAX_POSITIONS",
    "PATCH_SIZE",
    "SPECIAL_TOKENS",
    "make_tokenizer",
    "write_side_files",
]

PATCH_SIZE = 8
MAX_POSITIONS = 512
IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_CLIP_STATISTICS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def make_tokenizer() -> Tokenizer:
    """One token a word or mark; case does not matter; a BOS is added in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    names = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN]
    marks = [":", ",", ".", "?", "▁"]
    spoken = ["▁" + word for word in ["user", "assistant", *words()]]
    vocabulary = {token: index for index, token in enumerate([*names, *marks, *spoken])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex("[:,.?]"), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer.add_special_tokens(names)
    return tokenizer


def write_side_files(directory: Path) -> None:
    """Everything of a checkpoint but its weights and what ``save_pretrained`` writes."""
    tokenizer = make_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(directory / "tokenizer_config.json", _tokenizer_config(tokenizer))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    mean, std = _CLIP_STATISTICS
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "processor_class": "LlavaProcessor",
    }
    _write(directory / "preprocessor_config.json", image_processor)
    processor = {
        "image_token": IMAGE_TOKEN,
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_SIZE,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    _write(directory / "processor_config.json", processor)


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    plain = {"special": True, "normalized": False}
    plain |= {"lstrip": False, "rstrip": False, "single_word": False}
    return {
        "added_tokens_decoder": {
            str(index): {"content": token.content} | plain
            for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "additional_special_tokens": [IMAGE_TOKEN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL_TOKENS,
    }


def _write(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
