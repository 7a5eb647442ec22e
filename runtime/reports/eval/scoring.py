"""A metric over the answers of a data set: scores, differences, and what similarities gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.reports.eval.intervals import bootstrap, wilson
from divprune.runtime.reports.eval.report import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from divprune.runtime.reports.eval.dataset import Dataset, Sample
    from divprune.runtime.reports.eval.log import Record
    from divprune.runtime.reports.eval.metrics import Metric

    Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

__all__ = ["Answers", "Scoring"]


@dataclass(frozen=True)
class Answers:
    """What was answered with one fraction or similarity.

    Attributes:
        samples: Those that have an answer.
        records: Their answers.
        counts: float [samples, m], the metric's counts of each.
    """

    samples: Sequence[Sample]
    records: Sequence[Record]
    counts: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ids(self) -> set[str]:
        """Of the samples."""
        return {sample.id for sample in self.samples}

    def only(self, ids: set[str]) -> Answers:
        """Those of some samples."""
        places = [i for i, sample in enumerate(self.samples) if sample.id in ids]
        return Answers(
            [self.samples[i] for i in places],
            [self.records[i] for i in places],
            self.counts[places],
        )

    def numbers(self, field: str) -> NDArray[np.float64]:
        """One number of every answer's record, float [samples]."""
        return np.array([getattr(record, field) for record in self.records], np.float64)


class Scoring:
    """A metric over the samples of a data set."""

    def __init__(self, dataset: Dataset, metric: Metric) -> None:
        self.samples = dataset.samples
        self._metric = metric
        places = {image: i for i, image in enumerate(dict.fromkeys(s.image for s in self.samples))}
        self._picture = {sample.id: places[sample.image] for sample in self.samples}

    def answers(self, records: Mapping[str, Record]) -> Answers:
        """The answers among records, which are given by sample; in the order of the data."""
        found = [(sample, records.get(sample.id)) for sample in self.samples]
        pairs = [(sample, record) for sample, record in found if record and record.error is None]
        counts = [self._metric.count(record.text or "", s.answers) for s, record in pairs]
        return Answers(
            [sample for sample, _ in pairs],
            [record for _, record in pairs],
            np.array(counts, np.float64),
        )

    def score(self, answers: Answers) -> Interval:
        """The metric's value with its interval."""
        if not answers:
            return Interval(0.0, 0.0, 1.0)
        total = answers.counts.sum(axis=0)
        if self._metric.is_share:
            low, high = wilson(total[0], total[1])
        else:
            sums = self._by_picture(answers.samples, answers.counts)
            low, high = bootstrap(sums, self._metric.value)
        return Interval(float(self._metric.value(total)), low, high)

    def categories(self, answers: Answers) -> dict[str, float]:
        """The metric's value for each category of the samples."""
        of_samples = [sample.category for sample in answers.samples]
        values = {}
        for name in sorted({name for name in of_samples if name is not None}):
            inside = np.array([category == name for category in of_samples])
            values[name] = float(self._metric.value(answers.counts[inside].sum(axis=0)))
        return values

    def difference(self, base: Answers, answers: Answers) -> Interval | None:
        """Score less that of ``base``, over what both answered, paired by question."""
        both = base.ids & answers.ids
        if not both:
            return None
        base, answers = base.only(both), answers.only(both)
        width, value = base.counts.shape[1], self._metric.value

        def above(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return value(sums[..., width:]) - value(sums[..., :width])

        counts = np.concatenate((base.counts, answers.counts), axis=1)
        return self._interval(answers.samples, counts, above)

    def gain(self, answers: Answers, fractions: Sequence[Answers]) -> Interval | None:
        """Score less what fractions give at the same mean of tokens kept.

        That is the straight line between the two fractions whose means are nearest on either
        side, over what all three answered.

        Args:
            answers: With a similarity to reach.
            fractions: With fractions, at least some answers each.

        Returns:
            None where no fraction keeps as few, or none as many.
        """
        between = _neighbours(answers, fractions)
        if between is None:
            return None
        rows = [*between, answers]
        ids = set.intersection(*(row.ids for row in rows))
        if not ids:
            return None
        rows = [row.only(ids) for row in rows]
        width, value = answers.counts.shape[1], self._metric.value

        def above(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            low, high, found = (sums[..., i * width : (i + 1) * width] for i in range(3))
            fewest, most, kept = (sums[..., 3 * width + i] for i in range(3))
            share = (kept - fewest) / np.maximum(most - fewest, 1e-9)
            return value(found) - (1 - share) * value(low) - share * value(high)

        kept = np.stack([row.numbers("num_kept") for row in rows], axis=1)
        counts = np.concatenate([*(row.counts for row in rows), kept], axis=1)
        return self._interval(rows[0].samples, counts, above)

    def _interval(
        self, samples: Sequence[Sample], counts: NDArray[np.float64], statistic: Statistic
    ) -> Interval:
        pictures = self._by_picture(samples, counts)
        value = statistic(pictures.sum(axis=0))
        return Interval(float(value), *bootstrap(pictures, statistic))

    def _by_picture(
        self, samples: Sequence[Sample], counts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Counts [pictures, m], summed over the questions about each picture."""
        places = np.array([self._picture[sample.id] for sample in samples])
        _, places = np.unique(places, return_inverse=True)
        sums = np.zeros((int(places.max()) + 1, counts.shape[1]))
        np.add.at(sums, places, counts)
        return sums


def _neighbours(answers: Answers, fractions: Sequence[Answers]) -> tuple[Answers, Answers] | None:
    """The fractions whose means of tokens kept are next below and next above."""
    if not answers:
        return None
    mean = answers.numbers("num_kept").mean()
    means = [(row.numbers("num_kept").mean(), row) for row in fractions if row]
    below = max((pair for pair in means if pair[0] <= mean), key=_first, default=None)
    above = min((pair for pair in means if pair[0] >= mean), key=_first, default=None)
    return None if below is None or above is None else (below[1], above[1])


def _first(pair: tuple[float, Answers]) -> float:
    return pair[0]
