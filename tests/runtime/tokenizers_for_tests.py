"""Small tokenizers of the two kinds that LLaVA's text models have.

Both know ``<image>``. They are trained on a few lines, so that most words split and everything
beyond ASCII goes through bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

KINDS = ("byte_level", "metaspace")

_TEXT = [
    "USER: What is in this picture? ASSISTANT: A red square on a white wall.",
    "Describe the image in detail, please. The picture shows two dogs and a cat.",
    "system user assistant You are a helpful assistant. don't can't it's 2024",
] * 4
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(kind: str) -> tuple[Tokenizer, dict[str, str]]:
    """A tokenizer and its named special tokens."""
    return {"byte_level": byte_level, "metaspace": metaspace}[kind]()


def byte_level() -> tuple[Tokenizer, dict[str, str]]:
    """Byte-level BPE as qwen2 has it: no BOS, nothing added by the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*_TEXT, "日本語の絵 日本 🐕🐕‍🦺 émoji"], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"])
    tokenizer.add_tokens(["<tool call>"])
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def metaspace() -> tuple[Tokenizer, dict[str, str]]:
    """SentencePiece-like BPE as llama has it: byte fallback, BOS from the post-processor."""
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    splitter = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=[*specials, *byte_tokens], show_progress=False
        ),
    )
    trained = json.loads(words.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=trained["vocab"],
            merges=[tuple(merge) for merge in trained["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in [*specials, "<image>"]])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def save_tokenizer(directory: Path, kind: str, **config: object) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; ``config`` adds or replaces keys."""
    tokenizer, names = make_tokenizer(kind)
    tokenizer.save(str(directory / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return directory
