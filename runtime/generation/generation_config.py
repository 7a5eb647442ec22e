"""What ``generation_config.json`` says: which tokens end an answer, and which are favoured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune.runtime.directory.bounded_json import read_json_object
from divprune.runtime.errors import EngineDirectoryError

__all__ = ["TokenRules", "describe_left_out", "load_eos_token_ids", "load_token_rules"]

_FIX = "mend it in the checkpoint's generation_config.json and export again"

# Whatever changes the answer and is not done here, unless it has the value behind it.
_LEFT_OUT: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "constraints": (),
    "force_words_ids": (),
    "forced_decoder_ids": (),
    "watermarking_config": (),
    "token_healing": (False,),
    "remove_invalid_values": (False,),
}
_LEFT_OUT_OF_SAMPLING: dict[str, tuple[object, ...]] = {
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "top_h": (),
}
_FLAGS = {
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "max_new_tokens": "--max-new-tokens",
    "stop_strings": "--stop",
}


@dataclass(frozen=True)
class TokenRules:
    """What is done to the logits whether or not tokens are drawn, as transformers does it.

    Attributes:
        eos_token_ids: Tokens that end an answer.
        repetition_penalty: Divides the score of what stands in prompt or answer already.
        no_repeat_ngram_size: Length of a run of tokens that may occur only once; 0 for none.
        bad_words: Runs of tokens that are never completed.
        sequence_bias: Runs of tokens and what is added to the score of their last one.
        min_length: Tokens of prompt and answer before the answer may end.
        min_new_tokens: Tokens of the answer before it may end.
        forced_eos_token_ids: What the last token that the limit allows must be.
        decay_start: Tokens of the answer from which on its end is favoured.
        decay_factor: By which power per token; 1 for not at all.
        suppressed: Tokens that are never chosen.
        suppressed_first: Tokens that are not chosen first.
    """

    eos_token_ids: tuple[int, ...]
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_eos_token_ids: tuple[int, ...] = ()
    decay_start: int = 0
    decay_factor: float = 1.0
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()

    @property
    def change_nothing(self) -> bool:
        """Whether the logits stay as they are."""
        return self == TokenRules(self.eos_token_ids)


def load_eos_token_ids(path: Path) -> tuple[int, ...]:
    """Read ``eos_token_id``, which is one id or a list of them.

    Args:
        path: The file ``generation_config.json``.

    Returns:
        At least one id, in the order of the file.

    Raises:
        EngineDirectoryError: The file or the key is missing, or the value is not token ids.
    """
    return _eos_token_ids(path, _read(path))


def load_token_rules(path: Path) -> TokenRules:
    """Read everything that greedy decoding obeys.

    Raises:
        EngineDirectoryError: naming the key whose value cannot be used.
    """
    content = _read(path)
    eos = _eos_token_ids(path, content)
    read = _Reader(path, content)
    words = read.get("bad_words_ids", "lists of token ids", _runs, ())
    decay = read.get("exponential_decay_length_penalty", "[start, factor]", _decay, (0, 1.0))
    return TokenRules(
        eos_token_ids=eos,
        repetition_penalty=read.get("repetition_penalty", "a number above 0", _positive, 1.0),
        no_repeat_ngram_size=read.get("no_repeat_ngram_size", "0 or more", _count, 0),
        # Whoever bars the end alone means the words: the answer would have none.
        bad_words=tuple(word for word in words if word not in {(token,) for token in eos}),
        sequence_bias=read.get("sequence_bias", "pairs of token ids and a number", _biases, ()),
        min_length=read.get("min_length", "0 or more", _count, 0),
        min_new_tokens=read.get("min_new_tokens", "0 or more", _count, 0),
        forced_eos_token_ids=read.get("forced_eos_token_id", "token ids", _ids, ()),
        decay_start=decay[0],
        decay_factor=decay[1],
        suppressed=read.get("suppress_tokens", "token ids", _ids, ()),
        suppressed_first=read.get("begin_suppress_tokens", "token ids", _ids, ()),
    )


def describe_left_out(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences about what a ``generation_config.json`` asks for that a run does not do by itself.

    Sampling is among it: answers are greedy unless the run is told otherwise.
    """
    sampled = content.get("do_sample") is True
    names = {**_LEFT_OUT, **(_LEFT_OUT_OF_SAMPLING if sampled else {})}
    left = [
        f"{name}={json.dumps(content[name])}"
        for name, harmless in names.items()
        if content.get(name) not in (None, [], {}, *harmless)
    ]
    sentences = []
    if left:
        sentences.append(f"not carried over from generation_config.json: {', '.join(left)}")
    if sampled:
        flags = _flags(content, ("temperature", "top_p", "top_k", "min_p"))
        sentences.append(
            "generation_config.json draws tokens (do_sample); divprune-run answers greedily"
            f" unless told otherwise: {flags or '--temperature 1'}"
        )
    limits = _flags(content, ("max_new_tokens", "stop_strings"))
    if limits:
        sentences.append(f"generation_config.json sets what divprune-run takes as {limits}")
    return tuple(sentences)


def _flags(content: Mapping[str, Any], names: tuple[str, ...]) -> str:
    words: list[str] = []
    for name in names:
        value = content.get(name)
        default = 1.0 if name == "temperature" and content.get("do_sample") else None
        value = default if value is None else value
        items = value if isinstance(value, list) else [value]
        words += [f"{_FLAGS[name]} {json.dumps(item)}" for item in items if item is not None]
    return " ".join(words)


class _Reader:
    """Reads one key after another, and names the one that cannot be used."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self._path, self._content = path, content

    def get(self, name: str, expected: str, convert: Callable[[Any], Any], default: Any) -> Any:
        value = self._content.get(name)
        if value is None:
            return default
        try:
            return convert(value)
        except (TypeError, ValueError, KeyError):
            raise EngineDirectoryError(
                f"{name} of {self._path.name} cannot be used",
                expected=expected,
                found=json.dumps(value),
                fix=_FIX,
            ) from None


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _positive(value: object) -> float:
    if type(value) not in (int, float) or not (0 < value < math.inf):  # type: ignore[operator]
        raise ValueError
    return float(value)  # type: ignore[arg-type]


def _ids(value: object) -> tuple[int, ...]:
    return tuple(map(_count, value if isinstance(value, list) else [value]))


def _run(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(map(_count, value))


def _runs(value: object) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(map(_run, value))


def _biases(value: object) -> tuple[tuple[tuple[int, ...], float], ...]:
    if not isinstance(value, list):
        raise ValueError
    pairs = [(_run(tokens), float(bias)) for tokens, bias in value]
    if not all(bias < math.inf for _, bias in pairs):  # a NaN is not below it either
        raise ValueError
    return tuple(pairs)


def _decay(value: object) -> tuple[int, float]:
    if not isinstance(value, list):
        raise ValueError
    start, factor = value
    return _count(start), _positive(factor)


def _eos_token_ids(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    value = content.get("eos_token_id")
    ids: list[Any] = value if isinstance(value, list) else [value]
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise EngineDirectoryError(
            f"{path.name} does not say which token ends an answer",
            expected='"eos_token_id": a token id or a list of them',
            found="no such key" if value is None else json.dumps(value),
            fix="add eos_token_id to the checkpoint's generation_config.json and export again",
        )
    return tuple(ids)


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, fix="export the model again")
