"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune.runtime.errors import NumericalError, OptionError

if TYPE_CHECKING:
    from divprune.runtime.backends import Logits
    from divprune.runtime.generation.processors import LogitsProcessor

__all__ = ["Sampler", "SamplingOptions"]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it before the draw.
        top_p: Draw from the fewest most probable tokens whose probabilities reach this sum.
        seed: Makes draws repeatable; None draws differently every time.
        top_k: Draw from so many of the most probable tokens; 0 does not limit them.
        min_p: Draw from tokens with at least this share of the largest probability.
        repetition_penalty: Divides the scores of tokens that have occurred; None takes what the
            model's generation config says.

    Raises:
        OptionError: A value is outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(
                "the temperature cannot be used",
                expected="a finite number, 0 (greedy) or more",
                found=self.temperature,
                fix="--temperature 0.7, or leave it out for greedy decoding",
            )
        if not 0 < self.top_p <= 1:
            raise OptionError(
                "top-p cannot be used",
                expected="a number above 0, at most 1",
                found=self.top_p,
                fix="--top-p 0.9, or leave it out to draw from all tokens",
            )
        if self.seed is not None and self.seed < 0:
            raise OptionError(
                "the seed cannot be used", expected="0 or more", found=self.seed, fix="--seed 0"
            )
        if self.top_k < 0:
            raise OptionError(
                "top-k cannot be used",
                expected="the number of tokens to draw from, or 0 for all of them",
                found=self.top_k,
                fix="--top-k 50, or leave it out",
            )
        if not 0 <= self.min_p <= 1:
            raise OptionError(
                "min-p cannot be used",
                expected="a number from 0 to 1",
                found=self.min_p,
                fix="--min-p 0.05, or leave it out",
            )
        penalty = self.repetition_penalty
        if penalty is not None and not (math.isfinite(penalty) and penalty > 0):
            raise OptionError(
                "the repetition penalty cannot be used",
                expected="a finite number above 0; 1 does nothing",
                found=penalty,
                fix="--repetition-penalty 1.1, or leave it out",
            )


class Sampler:
    """Chooses one token after another; holds the random state of one generation.

    Args:
        options: How a token is chosen.
        processor: What is done to the logits before; None for nothing.
    """

    def __init__(self, options: SamplingOptions, processor: LogitsProcessor | None = None) -> None:
        self._options = options
        self._processor = processor
        self._random = np.random.default_rng(options.seed)
        self._chosen: list[int] = []

    def __call__(self, logits: npt.NDArray[np.float32] | Logits) -> int:
        """Choose a token id.

        Args:
            logits: float32 [vocabulary], on the host or a device; -inf bars a token.

        Raises:
            NumericalError: A logit is NaN or +inf, or all are -inf.
        """
        if isinstance(logits, np.ndarray):
            best = int(np.argmax(logits))  # the lowest index on ties; a NaN if there is one
            largest = float(logits[best])
        else:
            best, largest = logits.best()
        if not math.isfinite(largest):
            raise NumericalError(
                "the model's logits are not finite: the engine overflowed",
                expected="finite numbers",
                found=largest,
                fix="export again with --dtype fp32",
            )
        if self._processor is not None:
            scores = self._processor(_on_host(logits), self._chosen)
            best = int(np.argmax(scores))
            if scores[best] == -math.inf:
                raise NumericalError(
                    "the rules for choosing tokens bar every token",
                    expected="a token that generation_config.json leaves",
                    found=f"none of {len(scores)} after {len(self._chosen)} tokens",
                    fix="mend generation_config.json in the checkpoint and export again",
                )
            logits = scores
        if self._options.temperature > 0:
            best = self._draw(_on_host(logits))
        self._chosen.append(best)
        return best

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        options = self._options
        if 0 < options.top_k < len(logits):
            lowest = np.partition(logits, -options.top_k)[-options.top_k]
            logits = np.where(logits < lowest, np.float32(-np.inf), logits)
        probabilities = _softmax(logits, options.temperature)
        kept = _nucleus(probabilities, options.top_p)
        if options.min_p:
            kept = kept[probabilities[kept] >= options.min_p * probabilities.max()]
        cumulative = np.cumsum(probabilities[kept])
        # random() < 1, but its product with the total may round up to the total itself.
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(kept[min(int(place), len(kept) - 1)])


def _on_host(logits: npt.NDArray[np.float32] | Logits) -> npt.NDArray[np.float32]:
    return logits if isinstance(logits, np.ndarray) else logits.numpy()


def _softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    scores = logits.astype(np.float64)
    scores -= scores.max()
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf, which is probability 0
        scores /= temperature
    weights = np.exp(scores)
    normalised: npt.NDArray[np.float64] = weights / weights.sum()
    return normalised


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the fewest most probable tokens that reach ``top_p``.

    Tokens are dropped from the least probable on while the dropped sum stays within 1 - top_p,
    as transformers does it; of equal ones the lowest index stays longest.
    """
    if top_p == 1:
        return np.flatnonzero(probabilities)
    slack = 1 - top_p
    # All tokens below the mean of the slack fit into it together: most need no sorting.
    likely = probabilities > slack / len(probabilities)
    candidates = np.flatnonzero(likely)
    ascending = candidates[np.argsort(-probabilities[candidates], kind="stable")[::-1]]
    dropped = probabilities[~likely].sum() + np.cumsum(probabilities[ascending]) <= slack
    dropped[-1] = False
    return np.sort(ascending[~dropped])
