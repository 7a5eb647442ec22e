"""When an answer is right, and what the report makes of many.

A metric turns an answer into a few counts. Counts add up: over a category, over everything, or
over a bootstrap's draw of pictures; its value is a function of their sum.

| metric | an answer counts as right when |
|---|---|
| ``exact-match`` | it is one of the answers, both normalised |
| ``relaxed-match`` | as above, or both are numbers within 5 % of the true one (ChartQA) |
| ``yes-no-f1`` | its first word is the answer; the value is F1 of "yes" (POPE) |
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.reports.eval.dataset import Dataset

__all__ = ["METRICS", "Metric", "check_answers", "get_metric", "normalise"]

TOLERANCE = 0.05  # of the true number: ChartQA's relaxed accuracy
_SIGNS = "%#&@*/\u2030"  # punctuation to Unicode, but part of an answer
_QUOTES = "\"'\u00ab\u00bb`"
_SPELLINGS = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-"),
    **dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u2033"), '"'),
}
_POINT = re.compile(r"\.\d")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?")


@dataclass(frozen=True)
class Metric:
    """A metric: how answers are scored.

    Attributes:
        name: As ``--metric`` spells it.
        title: As a table spells it.
        count: Counts [m] of an answer, given the true ones.
        value: From sums of counts float [..., m] to values in [0, 1], float [...].
        is_share: Whether the counts are (right, answers), so that Wilson's interval fits.
    """

    name: str
    title: str
    count: Callable[[str, Sequence[str]], tuple[int, ...]]
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    is_share: bool


def get_metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        OptionError: if there is none of that name.
    """
    if name not in METRICS:
        raise OptionError("--metric is not known", expected=", ".join(METRICS), found=name)
    return METRICS[name]


def check_answers(metric: Metric, dataset: Dataset) -> None:
    """Refuse data that a metric cannot judge.

    Raises:
        DatasetError: for answers other than yes and no where only these count.
    """
    if metric.name != "yes-no-f1":
        return
    for sample in dataset.samples:
        if len(sample.answers) != 1 or _yes_or_no(sample.answers[0]) is None:
            raise DatasetError(
                f"{dataset.path}: sample {sample.id} is no question of yes or no",
                expected="one answer, yes or no",
                found=" | ".join(sample.answers),
                fix="--metric exact-match",
            )


def normalise(text: str) -> str:
    """The form in which answers are compared.

    Unicode NFKC, case folded, one kind of dash and quote, nothing invisible, white space as
    single spaces, no punctuation, quotes or brackets of any script around. Signs of numbers
    stay: a minus, a percent sign, the point of ``.5``.
    """
    folded = " ".join(_one_spelling(text).casefold().split())
    start, end = 0, len(folded)
    while start < end and _is_around(folded[start]) and not _POINT.match(folded, start):
        start += 1
    while start < end and _is_around(folded[end - 1]):
        end -= 1
    return folded[start:end]


def _one_spelling(text: str) -> str:
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", visible).translate(_SPELLINGS)


def _is_around(letter: str) -> bool:
    kind = unicodedata.category(letter)
    opening_or_closing = kind in ("Ps", "Pe", "Pi", "Pf")
    return opening_or_closing or letter in " `" or (kind == "Po" and letter not in _SIGNS)


def _exact(answer: str, truths: Sequence[str]) -> tuple[int, int]:
    given = normalise(answer)
    return int(any(given == normalise(truth) for truth in truths)), 1


def _relaxed(answer: str, truths: Sequence[str]) -> tuple[int, int]:
    near = any(_near(_to_number(answer), _to_number(truth)) for truth in truths)
    return (1, 1) if near else _exact(answer, truths)


def _near(given: float | None, true: float | None) -> bool:
    if given is None or true is None:
        return False
    # Not `<=` alone: 5 % off in decimal is a little more or less in binary.
    error, allowed = abs(given - true), TOLERANCE * abs(true)
    return error <= allowed or math.isclose(error, allowed, rel_tol=1e-9)


def _to_number(text: str) -> float | None:
    """A number with its thousands' commas; a percentage is its hundredth."""
    text = _one_spelling(text).strip().strip(_QUOTES).rstrip(".\u3002 ")
    percent = text.endswith("%")
    text = text.removesuffix("%").removeprefix("$").strip()
    if not text or not _NUMBER.fullmatch(text) or not any(map(str.isdigit, text)):
        return None
    return float(text.replace(",", "")) / (100 if percent else 1)


def _yes_no(answer: str, truths: Sequence[str]) -> tuple[int, int, int]:
    """True positives, false positives, false negatives of "yes"."""
    given, true = _yes_or_no(answer), _yes_or_no(truths[0])
    says_yes, is_yes = given == "yes", true == "yes"
    return int(says_yes and is_yes), int(says_yes and not is_yes), int(is_yes and not says_yes)


def _yes_or_no(text: str) -> str | None:
    first = re.match(r"\w+", normalise(text))
    return first[0] if first and first[0] in ("yes", "no") else None


def _share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return _divide(sums[..., 0], sums[..., 1])


def _f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    right = 2 * sums[..., 0]
    return _divide(right, right + sums[..., 1] + sums[..., 2])


def _divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient, 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact-match", "exact match", _exact, _share, is_share=True),
        Metric("relaxed-match", "relaxed match", _relaxed, _share, is_share=True),
        Metric("yes-no-f1", "F1 of yes", _yes_no, _f1, is_share=False),
    )
}
