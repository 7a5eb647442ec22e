from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from divprune.runtime.errors import DatasetError, OptionError
from divprune.runtime.reports.eval.dataset import Dataset, Sample
from divprune.runtime.reports.eval.metrics import METRICS, check_answers, get_metric, normalise


def value(name: str, pairs: list[tuple[str, str]]) -> float:
    metric = get_metric(name)
    counts = np.array([metric.count(given, [true]) for given, true in pairs], float)
    return float(metric.value(counts.sum(axis=0)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" Two  Dogs. ", "two dogs"), ('"Yes!"', "yes"), ("ﬁve", "five"), ("STRASSE", "strasse")],
)
def test_normalised_text_has_no_case_spaces_or_marks_around(text, expected):
    assert normalise(text) == expected


def test_exact_match_takes_any_of_the_answers_and_nothing_else():
    count = get_metric("exact-match").count
    assert count("Red.", ["scarlet", "red"]) == (1, 1)
    assert count("dark red", ["scarlet", "red"]) == (0, 1)
    assert count("10.1", ["10"]) == (0, 1)


@pytest.mark.parametrize(
    ("given", "true", "right"),
    [
        ("10.5", "10", True),
        ("9.5", "10", True),
        ("10.6", "10", False),
        ("-10.4", "-10", True),
        ("10", "-10", False),
        ("1,050", "1000", True),
        ("$ 1000", "1000", True),
        ("52%", "0.5", True),
        ("52%", "50%", True),
        ("0.1", "0", False),
        ("0", "0", True),
        ("2019.", "2019", True),
        ("Germany", "germany", True),
        ("nan", "nan", True),
        ("inf", "1", False),
        ("1.2.3", "1.2", False),
    ],
)
def test_relaxed_match_allows_numbers_five_percent(given, true, right):
    assert get_metric("relaxed-match").count(given, [true]) == (int(right), 1)


def test_f1_of_yes_is_that_of_precision_and_recall():
    pairs = [("Yes.", "yes")] * 6 + [("yes, it is", "no")] * 2 + [("no", "yes")] * 3
    pairs += [("maybe", "yes")] + [("No", "no")] * 4 + [("nothing", "no")]
    precision, recall = 6 / 8, 6 / 10
    expected = 2 * precision * recall / (precision + recall)
    assert value("yes-no-f1", pairs) == pytest.approx(expected)


def test_f1_without_any_yes_is_zero():
    assert value("yes-no-f1", [("no", "no")]) == 0.0


def test_data_with_other_answers_than_yes_and_no_has_no_f1():
    def dataset(*answers: str) -> Dataset:
        return Dataset(Path("d.jsonl"), "0" * 64, (Sample("7", "a.png", "?", answers),))

    check_answers(get_metric("yes-no-f1"), dataset("Yes"))
    check_answers(get_metric("exact-match"), dataset("red"))
    for answers in (("red",), ("yes", "no")):
        with pytest.raises(DatasetError, match="sample 7 is no question of yes or no"):
            check_answers(get_metric("yes-no-f1"), dataset(*answers))


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match=r"(?s)exact-match, relaxed-match, yes-no-f1.*bleu"):
        get_metric("bleu")


# --- one content in several spellings


@pytest.mark.parametrize(
    ("true", "answer", "metric"),
    [
        ("red", "\u201cred\u201d", "exact-match"),
        ("\u7ea2\u8272", "\u7ea2\u8272\u3002", "exact-match"),
        ("red", "\u00abRed\u00bb!", "exact-match"),
        ("red", "\u300cred\u300d", "exact-match"),
        ("red", "\u00bfred?", "exact-match"),
        ("don't", "Don\u2019t", "exact-match"),
        ("red", "r\u200bed\ufeff", "exact-match"),
        ("-5", "\u22125", "exact-match"),
        ("-5", "\u22125", "relaxed-match"),
        ("12", "\uff11\uff12", "relaxed-match"),
        ("12", "\u201c12\u201d", "relaxed-match"),
        ("12", "12\u3002", "relaxed-match"),
        ("0.5", ".5", "relaxed-match"),
        ("yes", "\u201cYes\u201d", "yes-no-f1"),
    ],
)
def test_spelling_does_not_count(true, answer, metric):
    assert METRICS[metric].count(answer, [true])[0] == 1


@pytest.mark.parametrize(
    ("true", "answer"),
    [("5", "-5"), ("5", ".5"), ("5%", "5"), ("#1", "1"), ("C", "C#"), ("a-b", "ab"), ("", "red")],
)
def test_signs_count(true, answer):
    assert METRICS["exact-match"].count(answer, [true]) == (0, 1)
