"""Tokenizers for random checkpoints: every id of the vocabulary decodes to something."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["byte_level_tokenizer", "llama_tokenizer"]

_QUESTION = ("what", "is", "in", "the", "image", "how", "many")
# Merges of real tokenizers by which a prompt depends on what is put together before it is split.
_ACROSS = ("ĊĊ", "s>", "><")


def llama_tokenizer(vocab_size: int, fixed: Mapping[int, str]) -> Tokenizer:
    """As Llama's: BPE over ``▁`` words with byte fallback, BOS added in front.

    ``<unk>``, ``<s>`` and ``</s>`` are 0, 1 and 2.

    Args:
        vocab_size: Rows of the embedding table.
        fixed: Special tokens at ids of their own.

    Raises:
        ValueError: if the vocabulary is too small for the tokens that there must be.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    start = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    characters = [chr(code) for code in range(33, 127)]
    vocab, merges = _vocabulary(start + characters, _words("▁"), vocab_size, fixed)
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
    tokenizer.add_special_tokens([*start[:3], *fixed.values()])
    return tokenizer


def byte_level_tokenizer(vocab_size: int, fixed: Mapping[int, str]) -> Tokenizer:
    """As Qwen's and SmolLM's: byte-level BPE without BOS; for the rest see ``llama_tokenizer``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = itertools.chain(_ACROSS, _words("Ġ"))
    vocab, merges = _vocabulary(characters, words, vocab_size, fixed)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*fixed.values()])
    return tokenizer


def _vocabulary(
    start: list[str], words: Iterable[str], vocab_size: int, fixed: Mapping[int, str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids for ``start``, then ``words`` with their merges; ``fixed`` tokens at their places."""
    if len(start) + len(fixed) > vocab_size or max(fixed) >= vocab_size:
        raise ValueError(f"{len(start)} tokens and {dict(fixed)} do not fit {vocab_size=}")
    merges: list[tuple[str, str]] = []
    tokens = dict.fromkeys(start)
    for word in words:
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
    yield from (space + word for word in _QUESTION)
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    for length in itertools.count(2):
        for parts in itertools.product(syllables, repeat=length):
            yield space + "".join(parts)
