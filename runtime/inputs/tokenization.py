"""Text to token ids and back, equal to transformers' fast tokenizers.

``tokenizer.json`` is the file that transformers saves: everything its tokenizer classes add
(post-processor, special tokens, prefix spaces) is inside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from divprune.runtime.directory.bounded_json import read_bounded, read_json_object
from divprune.runtime.errors import EngineDirectoryError, PromptError, UnsupportedError
from divprune.runtime.inputs.tokenizer_guard import check_character_maps, guarded

__all__ = ["TextStream", "TextTokenizer"]

_FIX = "export the model again"
_MAX_BYTES = 256 << 20
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Decoders whose output grows at its end only: what a token says never changes what stands before.
_STREAMABLE = {"ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}


class TextTokenizer:
    """The tokenizer of an engine directory.

    Args:
        tokenizer: Its padding and truncation are switched off.
        config: Content of ``tokenizer_config.json``.

    Attributes:
        special_tokens: ``bos_token``, ``eos_token``, ... as texts, for the chat template.

    Raises:
        UnsupportedError: The tokenizer decodes in a way that cannot be streamed.
    """

    def __init__(self, tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
        _require_plain_decoding(tokenizer, config)
        self._tokenizer = tokenizer
        self._decoders = _require_streamable(tokenizer)
        self._hidden = {
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self.special_tokens = dict(_special_tokens(config))

    @classmethod
    def from_dir(cls, path: Path) -> TextTokenizer:
        """Read ``tokenizer.json`` and ``tokenizer_config.json``.

        Raises:
            EngineDirectoryError: A file is missing or damaged.
            UnsupportedError: The tokenizer decodes in a way that cannot be streamed.
        """
        file = path / "tokenizer.json"
        data = read_bounded(file, _MAX_BYTES, fix=_FIX)
        try:
            text = data.decode("utf-8")
            check_character_maps(text)
            tokenizer = guarded(lambda: Tokenizer.from_str(text))
        except (ValueError, TimeoutError) as error:
            raise _damaged(file, "a tokenizer of the tokenizers library", error) from error
        return cls(tokenizer, _read_config(path / "tokenizer_config.json"))

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt.

        The tokenizer adds its own special tokens (a BOS, as a rule) unless the text starts with
        the BOS already: what ``processor.apply_chat_template(tokenize=True)`` does.

        Raises:
            PromptError: if the tokenizer fails, or does not come to an end.
        """
        bos = self.special_tokens.get("bos_token")
        has_bos = bos is not None and text.startswith(bos)
        try:
            ids: list[int] = guarded(
                lambda: self._tokenizer.encode(text, add_special_tokens=not has_bos).ids
            )
        except (ValueError, TimeoutError) as error:
            raise PromptError(
                "the tokenizer fails over this prompt",
                expected="token ids",
                found=error,
                fix="another prompt; if it is every one, repair tokenizer.json in the checkpoint"
                " and export again",
            ) from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens and ids without a token are left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it; None for an id without one."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def stream(self) -> TextStream:
        """Start decoding a new answer piece by piece."""
        return TextStream(self)

    def is_hidden(self, token_id: int) -> bool:
        """Whether ``decode`` leaves this id out."""
        return token_id in self._hidden or self.token(token_id) is None

    def partial_bytes(self, token_id: int) -> bytes | None:
        """The bytes a token stands for if it may hold part of a character, else None."""
        token = self.token(token_id) or ""
        if "ByteLevel" in self._decoders:
            return _byte_level_bytes(token)
        if "ByteFallback" in self._decoders and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return None

    @property
    def decodes_bytes_in_runs(self) -> bool:
        """Whether one bad byte spoils all byte tokens around it (byte fallback)."""
        return "ByteLevel" not in self._decoders


class TextStream:
    """Decodes an answer while it is made.

    The pieces and ``finish()`` joined are ``decode(ids)``, less a character left unfinished at
    the very end; no piece ever holds part of a character. (The library's own DecodeStream raises
    where byte tokens are not valid UTF-8, and never shows a valid U+FFFD at the end.)
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        # The last settled token: decoded along, so that only the answer's first word
        # loses its leading space.
        self._anchor: list[int] = []
        self._pending: list[int] = []
        self._tail = b""  # the bytes of the pending tokens
        self._shown = 0  # characters of the pending text already returned

    def push(self, token_id: int) -> str:
        """Take the next token; the text that is certain now, often empty."""
        if self._tokenizer.is_hidden(token_id):
            return ""
        self._pending.append(token_id)
        part = self._tokenizer.partial_bytes(token_id)
        if part is not None:
            self._tail += part
            if self._tokenizer.decodes_bytes_in_runs:
                return ""
            if unfinished_bytes(self._tail):
                return self._show(hide=1)  # cut bytes decode as one U+FFFD
        piece = self._show()
        self._settle()
        return piece

    def finish(self) -> str:
        """The rest, after the last token."""
        cut = unfinished_bytes(self._tail)
        piece = ""
        if self._tokenizer.decodes_bytes_in_runs:
            del self._pending[len(self._pending) - cut :]
            piece = self._show()
        self._settle()
        return piece

    def _show(self, hide: int = 0) -> str:
        """Pending text not returned yet, but for the last ``hide`` characters."""
        before = len(self._tokenizer.decode(self._anchor))
        text = self._tokenizer.decode(self._anchor + self._pending)[before:]
        text = text[: len(text) - hide]
        piece = text[self._shown :]
        self._shown = len(text)
        return piece

    def _settle(self) -> None:
        self._anchor = self._pending[-1:] or self._anchor
        self._pending = []
        self._tail = b""
        self._shown = 0


def unfinished_bytes(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not complete, 0 to 3."""
    for size in range(1, min(3, len(data)) + 1):
        tail = data[-size:]
        completions = (
            tail + fill * missing for fill in (b"\x80", b"\xbf") for missing in range(1, 5 - size)
        )
        if any(_is_character(candidate) for candidate in completions):
            return size
    return 0


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def _byte_alphabet() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable ones as themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + index): byte for index, byte in enumerate(rest)}


_BYTE_ALPHABET = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_ALPHABET[character] for character in token)
    except KeyError:  # an added token with characters outside the alphabet is plain text
        return token.encode("utf-8")


def _require_plain_decoding(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Refuse the one decoding option that rewrites text already shown."""
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    applies = forced or type(tokenizer.model).__name__ != "BPE"  # transformers ignores it for BPE
    if config.get("clean_up_tokenization_spaces") and applies:
        raise UnsupportedError(
            "the tokenizer removes spaces from decoded text, which cannot be streamed",
            expected='"clean_up_tokenization_spaces": false in tokenizer_config.json',
            found=True,
        )


def _require_streamable(tokenizer: Tokenizer) -> frozenset[str]:
    """Names of the tokenizer's decoders, none for plain joining."""
    if tokenizer.decoder is None:
        return frozenset()
    root = json.loads(tokenizer.decoder.__getstate__())
    names: list[str] = []
    for step in _flatten(root):
        if not _is_streamable(step, after_fuse="Fuse" in names):
            raise UnsupportedError(
                "the tokenizer's decoder cannot be streamed",
                expected=f"steps out of {', '.join(sorted(_STREAMABLE))}",
                found=json.dumps(step, ensure_ascii=False),
            )
        names.append(step["type"])
    return frozenset(names)


def _is_streamable(step: Mapping[str, Any], *, after_fuse: bool) -> bool:
    """Whether a decoder leaves text alone that stands before the newest token."""
    if step["type"] == "Strip":  # the stream decodes with one token of context: one leading space
        return bool(step["stop"] == 0 and step["start"] <= 1)
    return step["type"] in _STREAMABLE and not after_fuse


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _flatten(step)
    else:
        yield decoder


def _special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Named tokens: texts, or objects with ``content`` as older files have them."""
    extra = config.get("extra_special_tokens")
    named = {**config, **extra} if isinstance(extra, Mapping) else config
    for name, value in named.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            yield name, text


def _read_config(file: Path) -> dict[str, Any]:
    return read_json_object(file, fix=_FIX)


def _damaged(file: Path, expected: str, found: object) -> EngineDirectoryError:
    return EngineDirectoryError(
        f"{file} is missing or damaged",
        expected=expected,
        found=found,
        fix=_FIX,
    )
