"""What is done to logits before a token is chosen, value for value as transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.generation.generation_config import TokenRules
    from divprune.runtime.generation.sampling import SamplingOptions

__all__ = ["LogitsProcessor", "make_processor"]


def make_processor(
    rules: TokenRules, sampling: SamplingOptions, prompt_ids: NDArray[np.int64], limit: int
) -> LogitsProcessor | None:
    """The rules of a model with what was asked for; None where they change nothing.

    Arguments are those of ``LogitsProcessor``.
    """
    if sampling.repetition_penalty is not None:
        rules = replace(rules, repetition_penalty=sampling.repetition_penalty)
    return None if rules.change_nothing else LogitsProcessor(rules, prompt_ids, limit)


class LogitsProcessor:
    """The rules of one generation.

    Args:
        rules: What is done.
        prompt_ids: int64 [L], the prompt as transformers has it: with every visual token, those
            that were pruned included.
        max_new_tokens: The limit of the answer.
    """

    def __init__(
        self, rules: TokenRules, prompt_ids: NDArray[np.int64], max_new_tokens: int
    ) -> None:
        self._rules = rules
        self._prompt = np.asarray(prompt_ids, np.int64)
        self._limit = max_new_tokens

    def __call__(self, logits: NDArray[np.float32], answer: Sequence[int]) -> NDArray[np.float32]:
        """The logits [V] after every rule; ``answer`` are the tokens chosen so far."""
        rules = self._rules
        ids = np.concatenate([self._prompt, np.asarray(answer, np.int64)])
        scores = logits.astype(np.float32)  # a copy: what the backend holds stays as it is
        # The order of transformers' generate: what is set to -inf stays there.
        for run, bias in rules.sequence_bias:
            _add_bias(scores, ids, run, bias)
        if rules.repetition_penalty != 1:
            _penalise(scores, ids, rules.repetition_penalty)
        if rules.no_repeat_ngram_size:
            _bar_repeats(scores, ids, rules.no_repeat_ngram_size)
        for run in rules.bad_words:
            _add_bias(scores, ids, run, -np.inf)
        if len(ids) < rules.min_length or len(answer) < rules.min_new_tokens:
            _bar(scores, rules.eos_token_ids)
        if rules.forced_eos_token_ids and len(answer) == self._limit - 1:
            scores[:] = -np.inf
            scores[_known(rules.forced_eos_token_ids, scores)] = 0
        if rules.decay_factor != 1 and len(answer) > rules.decay_start:
            _favour_end(scores, rules, len(answer) - rules.decay_start)
        _bar(scores, rules.suppressed)
        if not answer:
            _bar(scores, rules.suppressed_first)
        return scores


def _known(
    ids: Sequence[int] | NDArray[np.int64], scores: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Ids that have a score: a table of embeddings may be longer than the output layer."""
    array = np.asarray(ids, np.int64)
    return array[array < len(scores)]


def _bar(scores: NDArray[np.float32], ids: Sequence[int]) -> None:
    if ids:
        scores[_known(ids, scores)] = -np.inf


def _penalise(scores: NDArray[np.float32], ids: NDArray[np.int64], penalty: float) -> None:
    seen = np.unique(_known(ids, scores))
    values, divisor = scores[seen], np.float32(penalty)
    scores[seen] = np.where(values < 0, values * divisor, values / divisor)


def _bar_repeats(scores: NDArray[np.float32], ids: NDArray[np.int64], size: int) -> None:
    """Bar every token that would complete a run of ``size`` tokens that is there already."""
    if len(ids) < size:
        return
    runs = sliding_window_view(ids, size)
    repeated = (runs[:, :-1] == ids[len(ids) + 1 - size :]).all(axis=1)
    scores[_known(runs[repeated, -1], scores)] = -np.inf


def _add_bias(
    scores: NDArray[np.float32], ids: NDArray[np.int64], run: tuple[int, ...], bias: float
) -> None:
    """Add to the score of a run's last token where the others have just been written."""
    *first, last = run
    if last < len(scores) and (not first or ids[-len(first) :].tolist() == first):
        scores[last] += np.float32(bias)


def _favour_end(scores: NDArray[np.float32], rules: TokenRules, beyond: int) -> None:
    ends = np.unique(_known(rules.eos_token_ids, scores))
    values = scores[ends]
    factor = np.float32(rules.decay_factor**beyond - 1)
    scores[ends] = values + np.where(np.isfinite(values), np.abs(values) * factor, 0)
