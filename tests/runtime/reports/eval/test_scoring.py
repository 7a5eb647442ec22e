"""Scores of made-up answers, whose differences and gains can be reckoned by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from divprune.runtime.reports.eval.dataset import Dataset, Sample
from divprune.runtime.reports.eval.log import Record
from divprune.runtime.reports.eval.metrics import get_metric
from divprune.runtime.reports.eval.scoring import Scoring

PICTURES = 20


@pytest.fixture
def scoring() -> Scoring:
    samples = tuple(
        Sample(f"{picture}-{place}", f"{picture}.png", "?", ("yes",), ["even", "odd"][place])
        for picture in range(PICTURES)
        for place in range(2)
    )
    return Scoring(Dataset(Path("data.jsonl"), "0" * 64, samples), get_metric("exact-match"))


def answers(scoring: Scoring, right: float, kept: float | list[float], *, without: int = 0):
    """The first ``right`` of all answers are right; ``kept`` tokens each, or by picture."""
    records = {}
    for place, sample in enumerate(scoring.samples[without:], without):
        text = "yes" if place < right * len(scoring.samples) else "no"
        tokens = kept[place // 2] if isinstance(kept, list) else kept
        records[sample.id] = Record(sample.id, 0.5, 100, int(tokens), text, text_tokens=10)
    return scoring.answers(records)


def test_a_similarity_gains_what_it_lies_above_the_line_between_its_neighbours(scoring):
    fractions = [answers(scoring, share, kept) for share, kept in ((0.2, 10), (0.6, 30), (1, 100))]
    on_the_line = scoring.gain(answers(scoring, 0.4, 20), fractions)
    above = scoring.gain(answers(scoring, 0.7, 20), fractions)
    assert on_the_line.value == pytest.approx(0)
    assert above.value == pytest.approx(0.3)
    assert above.low < 0.3 < above.high


def test_its_mean_over_pictures_is_what_counts(scoring):
    fractions = [answers(scoring, 0.2, 10), answers(scoring, 0.6, 30)]
    kept = [5.0, 35.0] * (PICTURES // 2)
    gain = scoring.gain(answers(scoring, 0.5, kept), fractions)
    assert gain.value == pytest.approx(0.1)


def test_one_that_keeps_exactly_what_a_fraction_keeps_is_compared_with_that(scoring):
    fractions = [answers(scoring, 0.2, 10), answers(scoring, 0.6, 30)]
    assert scoring.gain(answers(scoring, 0.6, 30), fractions).value == pytest.approx(0)
    assert scoring.gain(answers(scoring, 0.1, 10), fractions).value == pytest.approx(-0.1)


def test_there_is_no_gain_without_a_fraction_on_either_side(scoring):
    fractions = [answers(scoring, 0.2, 10), answers(scoring, 0.6, 30), scoring.answers({})]
    for kept in (9, 31):
        assert scoring.gain(answers(scoring, 0.5, kept), fractions) is None
    assert scoring.gain(scoring.answers({}), fractions) is None


def test_only_what_was_answered_in_both_is_compared(scoring):
    base, found = answers(scoring, 1.0, 100, without=10), answers(scoring, 0.5, 10)
    # The last 30 of 40: all right at keep 1.0, 10 of them with fewer tokens.
    assert scoring.difference(base, found).value == pytest.approx(10 / 30 - 1)
    assert scoring.difference(scoring.answers({}), found) is None


def test_a_failure_is_no_answer_and_categories_are_scored_alone(scoring):
    first = scoring.samples[0]
    found = scoring.answers({first.id: Record(first.id, 0.5, error="torn")})
    assert (len(found), scoring.score(found).value) == (0, 0.0)
    assert scoring.categories(found) == {}
    assert scoring.categories(answers(scoring, 0.5, 1)) == {"even": 0.5, "odd": 0.5}
