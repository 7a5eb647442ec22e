"""The schema of an evaluation's ``report.json``.

Scores are shares in [0, 1], times milliseconds, FLOPs and multiply-adds plain counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.directory.manifest_json import dump

__all__ = ["REPORT_VERSION", "DataFacts", "EvalReport", "Interval", "Row"]

REPORT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the 95 % interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The data file: its name, SHA-256, and how many samples and pictures of it were asked."""

    name: str
    sha256: str
    samples: int
    pictures: int


# Of a row: what has no value without an answer.
_OVER_ANSWERS = (
    *("num_kept", "kept_low", "kept_high", "num_image_tokens", "layer_tokens", "text_tokens"),
    *("score", "paper_flops", "paper_ratio", "macs", "macs_ratio"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One engine directory with one fraction kept.

    Attributes:
        engine: Name of the engine directory.
        selector: Name of its selector.
        layer: Decoder layers that see every visual token before it selects; None where it
            selects before the language model.
        keep: Fraction kept; where a similarity was to be reached, what it kept of all pictures.
        auto: The similarity to reach; None where a fraction was asked for.
        num_kept: Tokens kept of a picture, mean over the answers. Like every mean here and the
            score it has no meaning, and is null in ``report.json``, where nothing was answered.
        kept_low: What a tenth of the answers had less than.
        kept_high: What a tenth of the answers had more than.
        num_image_tokens: Tokens of a picture before pruning, mean over the answers.
        layer_tokens: Visual tokens that a decoder layer sees, mean over the layers. It is
            ``num_kept`` unless the selector works inside the language model.
        answers: How many the score is over.
        errors: Samples that failed; they are not in the score.
        score: The metric over all answers.
        difference: Score less that of keep 1.0, over what both answered; None for keep 1.0
            itself and where there is none.
        gain: Score less what fractions of the same directory give at the same mean of tokens
            kept, on the straight line between the two nearest; None for fractions, and where no
            fraction keeps as few or as many.
        categories: The metric by category of the samples.
        ttft_ms: Median time to first token; None where nothing was answered.
        text_tokens: Mean tokens of the prompt around the picture.
        paper_flops: Prefill as the papers count it (`divprune.runtime.reports.eval.flops`), mean.
        paper_ratio: That as a share of the same with every token kept, mean.
        macs: Multiply-adds of the same prefill, mean.
        macs_ratio: That as a share of the same with every token kept, mean.
    """

    engine: str
    selector: str
    layer: int | None
    keep: float
    auto: float | None
    num_kept: float
    kept_low: float
    kept_high: float
    num_image_tokens: float
    layer_tokens: float
    answers: int
    errors: int
    score: Interval
    difference: Interval | None
    gain: Interval | None
    categories: dict[str, float]
    ttft_ms: float | None
    text_tokens: float
    paper_flops: float
    paper_ratio: float
    macs: float
    macs_ratio: float

    @property
    def method(self) -> str:
        """The selector, with its layer where it has one."""
        return self.selector if self.layer is None else f"{self.selector} (layer {self.layer})"

    @property
    def is_baseline(self) -> bool:
        """Whether every token was asked for."""
        return self.keep == 1.0 and self.auto is None

    @property
    def asked(self) -> str:
        """What was asked for, as ``--keep`` spells it."""
        if self.auto is not None:
            return str(AutoKeep(self.auto))
        return f"{self.keep:g}" if self.keep < 1 else "1.0"


@dataclass(frozen=True, slots=True)
class EvalReport:
    """A whole evaluation; ``created`` is ISO 8601 in UTC, ``tools`` maps packages to versions."""

    report_version: int
    tools: dict[str, str]
    created: str
    device: str
    model: str
    metric: str
    max_new_tokens: int
    data: DataFacts
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def errors(self) -> int:
        """Answers that failed, over all rows."""
        return sum(row.errors for row in self.rows)

    def to_json(self) -> str:
        """The text of ``report.json``; what is over answers is null where there are none."""
        content = dataclasses.asdict(self)
        for row in content["rows"]:
            if not row["answers"]:
                row |= dict.fromkeys(_OVER_ANSWERS)
        return dump(content)
