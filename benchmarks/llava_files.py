"""The files of a LLaVA, LLaVA-1.6, NeXT-Video or OneVision checkpoint, in the layouts in use.

``hub`` is that of the llava-hf repositories, ``v4`` that of transformers 4.52 to 4.57, ``v5`` that
of transformers 5. They differ in tensor names, in the spelling of the config, and in where the
chat template and the image processor's config are kept.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = [
    "DType",
    "Layout",
    "TensorSource",
    "TokenizerStyle",
    "image_processor_config",
    "stored_name",
    "video_processor_config",
    "write_config",
    "write_side_files",
    "write_weights",
]

Layout = Literal["hub", "v4", "v5"]
DType = Literal["fp16", "bf16", "fp32"]
TokenizerStyle = Literal["llama", "chatml"]

LLAVA_TEMPLATE = (
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
CHATML_TEMPLATE = (
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
_DTYPES: dict[str, tuple[str, str, int]] = {  # torch name, safetensors name, bytes
    "fp16": ("float16", "F16", 2),
    "bf16": ("bfloat16", "BF16", 2),
    "fp32": ("float32", "F32", 4),
}
_CLIP_STATISTICS = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)
_ARCHITECTURE = "ForConditionalGeneration"
_CHUNK = 1 << 22  # elements made at once: 16 MiB of float32


def stored_name(canonical: str, layout: Layout) -> str:
    """The key under which ``layout`` stores the tensor with this canonical name."""
    language = re.sub(r"^language_model\.", "language_model.model.", canonical)
    if layout == "v5":
        return re.sub(r"^lm_head\.", "language_model.lm_head.", language)
    tower = r"^vision_tower\."
    if layout == "hub":
        head = re.sub(r"^lm_head\.", "language_model.lm_head.", language)
        return re.sub(tower, "vision_tower.vision_model.", head)
    if canonical.startswith("lm_head."):
        return canonical
    return "model." + re.sub(tower, "vision_tower.vision_model.", canonical)


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is made piece by piece: float32 pieces in row-major order."""

    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[NDArray[np.float32]]]

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> TensorSource:
        """A tensor that is there already."""
        return cls(tuple(array.shape), lambda: iter([array.reshape(-1)]))

    @classmethod
    def random(cls, name: str, shape: tuple[int, ...], seed: int) -> TensorSource:
        """Normal with std 0.02; norm weights lie around 1. Depends on name and seed only."""
        is_norm = name.endswith("weight") and ("norm" in name.split(".")[-2] or len(shape) == 1)
        total = math.prod(shape)

        def pieces() -> Iterator[NDArray[np.float32]]:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            for start in range(0, total, _CHUNK):
                values = rng.standard_normal(min(_CHUNK, total - start), dtype=np.float32)
                values *= np.float32(0.02)
                yield values + np.float32(1) if is_norm else values

        return cls(shape, pieces)


def write_weights(
    directory: Path, tensors: Mapping[str, TensorSource], dtype: DType, shard_size: int
) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_size`` bytes and an index."""
    size_of = _DTYPES[dtype][2]
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * size_of
        if shards[-1] and used + size > shard_size:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        _write_shard(directory / "model.safetensors", tensors, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, tensors, names, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(math.prod(tensor.shape) for tensor in tensors.values()) * size_of
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_shard(
    path: Path, tensors: Mapping[str, TensorSource], names: list[str], dtype: DType
) -> None:
    """One safetensors file: header length, JSON header, then the data, never held whole."""
    _, stored, size_of = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + math.prod(tensors[name].shape) * size_of
        header[name] = {
            "dtype": stored,
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for piece in tensors[name].pieces():
                file.write(_encode(piece, dtype))


def _encode(values: NDArray[np.float32], dtype: DType) -> bytes:
    if dtype == "fp16":
        return values.astype("<f2").tobytes()
    if dtype == "fp32":
        return values.astype("<f4").tobytes()
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to even
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()


def write_config(directory: Path, config: PreTrainedConfig, layout: Layout, dtype: DType) -> None:
    """Write config.json and generation_config.json in the spelling of ``layout``."""
    content = config.to_diff_dict()
    content["architectures"] = [type(config).__name__.replace("Config", _ARCHITECTURE)]
    if layout == "v5":
        content["dtype"] = _DTYPES[dtype][0]
    else:
        content.pop("dtype", None)
        content["torch_dtype"] = _DTYPES[dtype][0]
        content["transformers_version"] = "4.36.0.dev0" if layout == "hub" else "4.52.4"
        sparse = layout == "hub"
        for key in ("text_config", "vision_config"):
            content[key] = _older_spelling(getattr(config, key), sparse=sparse)
    if layout == "hub":
        content |= {"ignore_index": -100, "vocab_size": config.text_config.vocab_size}
    _write_json(directory / "config.json", content)
    text = config.text_config
    generation = {"_from_model_config": True, "bos_token_id": text.bos_token_id}
    generation |= {"eos_token_id": text.eos_token_id, "transformers_version": "4.52.4"}
    _write_json(directory / "generation_config.json", generation)


def _older_spelling(part: Any, *, sparse: bool) -> dict[str, Any]:
    """A text or vision config as transformers 4 wrote it: rope_theta at the top level."""
    content = part.to_dict()
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


def write_side_files(
    directory: Path, config: PreTrainedConfig, layout: Layout, *, style: TokenizerStyle = "llama"
) -> None:
    """Write tokenizer, chat template and processor configs where ``layout`` keeps them."""
    _write_tokenizer(directory, config, style)
    template = LLAVA_TEMPLATE if style == "llama" else CHATML_TEMPLATE
    if layout == "hub":
        _write_json(directory / "chat_template.json", {"chat_template": template})
    else:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    video = video_processor_config(config)
    processor = _processor_config(config)
    image = image_processor_config(config)
    if layout == "v5":
        processor["image_processor"] = image
        if video is not None:
            processor["video_processor"] = video
    else:
        _write_json(directory / "preprocessor_config.json", image)
        if video is not None:
            _write_json(directory / "video_preprocessor_config.json", video)
    _write_json(directory / "processor_config.json", processor)


def _processor_config(config: PreTrainedConfig) -> dict[str, Any]:
    is_clip = config.vision_config.model_type == "clip_vision_model"
    content = {
        "image_token": "<image>",
        "processor_class": _class_name(config, "Processor"),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    if _video_token_id(config) is not None:
        content["video_token"] = "<video>"
    if config.model_type == "llava_onevision":
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        ratio = config.vision_aspect_ratio
        return content | {"num_image_tokens": patches, "vision_aspect_ratio": ratio}
    patch = config.vision_config.patch_size
    return content | {"num_additional_image_tokens": int(is_clip), "patch_size": patch}


def image_processor_config(config: PreTrainedConfig) -> dict[str, Any]:
    """What preprocessor_config.json says for the vision tower of ``config``."""
    edge = config.vision_config.image_size
    square = {"height": edge, "width": edge}
    content: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "processor_class": _class_name(config, "Processor"),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    if grids := getattr(config, "image_grid_pinpoints", None):
        content |= {"do_pad": True, "image_grid_pinpoints": grids}
    if config.vision_config.model_type != "clip_vision_model":
        half = [0.5, 0.5, 0.5]
        kind = _image_processor_type(config, "SiglipImageProcessor")
        content |= {"image_processor_type": kind, "size": square}
        return content | {"image_mean": half, "image_std": half}
    mean, std = _CLIP_STATISTICS
    return content | {
        "image_processor_type": _image_processor_type(config, "CLIPImageProcessor"),
        "crop_size": square,
        "do_center_crop": True,
        "image_mean": mean,
        "image_std": std,
        "size": {"shortest_edge": edge},
    }


def video_processor_config(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What video_preprocessor_config.json says; None for a model that takes no videos."""
    if _video_token_id(config) is None:
        return None
    content = image_processor_config(config)
    for key in ("image_processor_type", "image_grid_pinpoints", "do_pad"):
        del content[key]
    return content | {"video_processor_type": _class_name(config, "VideoProcessor")}


def _image_processor_type(config: PreTrainedConfig, of_one_crop: str) -> str:
    """LLaVA-NeXT-Video has that of LLaVA-1.6, and LLaVA-1.5 that of its tower."""
    if config.model_type == "llava":
        return of_one_crop
    return _class_name(config, "ImageProcessor").replace("NextVideo", "Next")


def _class_name(config: PreTrainedConfig, role: str) -> str:
    return type(config).__name__.replace("Config", role)


def _video_token_id(config: PreTrainedConfig) -> int | None:
    index: int | None = getattr(config, "video_token_id", None)
    return index


def _write_tokenizer(directory: Path, config: PreTrainedConfig, style: TokenizerStyle) -> None:
    """A small BPE tokenizer in which every id below vocab_size decodes to something."""
    build = _llama_tokenizer if style == "llama" else _chatml_tokenizer
    tokenizer, names = build(config.text_config.vocab_size, _placeholders(config))
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"additional_special_tokens": [*_placeholders(config).values()], **names}
    content = {
        "added_tokens_decoder": {
            str(index): {"content": token.content, "special": True, "normalized": False}
            | {"lstrip": False, "rstrip": False, "single_word": False}
            for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.text_config.max_position_embeddings,
        "processor_class": _class_name(config, "Processor"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
    }
    _write_json(directory / "tokenizer_config.json", content)


def _placeholders(config: PreTrainedConfig) -> dict[int, str]:
    """The visual tokens, which stand side by side in the vocabulary."""
    video = _video_token_id(config)
    tokens = {config.image_token_id: "<image>"}
    return tokens if video is None else tokens | {video: "<video>"}


def _llama_tokenizer(vocab_size: int, visual: Mapping[int, str]) -> tuple[Any, dict[str, str]]:
    """As Llama's: BPE over ``▁`` words with byte fallback, BOS added in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    start = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    characters = [chr(code) for code in range(33, 127)]
    vocab, merges = _vocabulary(start + characters, "▁", vocab_size, visual, "<pad>")
    model = models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    tokenizer.add_special_tokens([*names.values(), *visual.values()])
    return tokenizer, names


def _chatml_tokenizer(vocab_size: int, visual: Mapping[int, str]) -> tuple[Any, dict[str, str]]:
    """As Qwen's: byte-level BPE without BOS; turns end in ``<|im_end|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = _vocabulary(specials + characters, "Ġ", vocab_size, visual, "<|pad|>")
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*specials, "<|pad|>", *visual.values()])
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}


def _vocabulary(
    start: list[str], space: str, vocab_size: int, visual: Mapping[int, str], pad: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids for ``start``, then words with their merges; placeholders and ``pad`` at their places."""
    fixed = {**visual, max(visual) + 1: pad}
    if len(start) > min(visual) or max(fixed) >= vocab_size:
        raise ValueError(f"{len(start)} tokens and {visual} do not fit {vocab_size=}")
    merges: list[tuple[str, str]] = []
    tokens = dict.fromkeys(start)
    for word in _words(space):
        for end in range(1, len(word)):
            if word[: end + 1] not in tokens:
                tokens[word[: end + 1]] = None
                merges.append((word[:end], word[end]))
        if len(tokens) >= vocab_size - len(fixed):
            break
    ordered = iter(tokens)
    ids = {fixed.get(index) or next(ordered): index for index in range(vocab_size)}
    return ids, [pair for pair in merges if "".join(pair) in ids]


def _words(space: str) -> Iterator[str]:
    """A few real words, then pronounceable ones without end, each after ``space``."""
    yield from (space + word for word in ("what", "is", "in", "the", "image", "how", "many"))
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    for length in itertools.count(2):
        for parts in itertools.product(syllables, repeat=length):
            yield space + "".join(parts)


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
