"""The schema of a benchmark's JSON report.

Times are milliseconds, memory is bytes. A number that could not be measured is null; none is
ever infinite or NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from divprune.runtime.directory.keep import AutoKeep, Keep
from divprune.runtime.directory.manifest_json import FieldError, dump, parse, read_dataclass
from divprune.runtime.errors import DivPruneError

__all__ = [
    "SCHEMA_VERSION",
    "STAGES",
    "Agreement",
    "DeviceFacts",
    "EngineFacts",
    "ImageFacts",
    "Power",
    "Prediction",
    "Probe",
    "Ratio",
    "Report",
    "ReportError",
    "Run",
    "Stages",
    "Stat",
    "Work",
]

SCHEMA_VERSION = 1
STAGES = (
    "preprocess",
    "vision",
    "selection",
    "merge",
    "prefill",
    "first_sample",
    "ttft",
    "decode_per_token",
)
_OPTIONAL = {"power": None, "auto": None}  # what a run of a file may leave out
_BOUNDS = ("memory", "compute")
_NUMBER_LIST = re.compile(r"\[\n([-+.,\deE\s]*)\]")  # no string of JSON has a bare newline


class ReportError(DivPruneError):
    """A benchmark report cannot be read, or not be compared with another."""


@dataclass(frozen=True, slots=True)
class Stat:
    """Statistics of ``n`` times in ms; ``std`` (of the sample) is None for a single one."""

    n: int
    mean: float
    std: float | None
    p50: float
    p90: float
    p99: float
    min: float
    max: float

    def __post_init__(self) -> None:
        _check_at_least("n", self.n, 1)
        for name in ("mean", "std", "p50", "p90", "p99", "min", "max"):
            _check_finite(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed-up over keep 1.0 (its time divided by this one): median and 10-90 % range."""

    median: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("median", "low", "high"):
            _check_finite(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Prediction:
    """Roofline time of a stage, what bounds it, and its share of the measured median."""

    ms: float
    bound: str
    achieved: float | None

    def __post_init__(self) -> None:
        _check_finite("ms", self.ms)
        _check_finite("achieved", self.achieved)
        _check("bound", self.bound in _BOUNDS, " or ".join(_BOUNDS), self.bound)


@dataclass(frozen=True, slots=True)
class Probe:
    """Measured limits of the device: bandwidth in 1e9 bytes/s, float32 rate in 1e9 FLOP/s."""

    bandwidth_gb_s: float
    gflops: float

    def __post_init__(self) -> None:
        for name in ("bandwidth_gb_s", "gflops"):
            value = getattr(self, name)
            _check(name, math.isfinite(value) and value > 0, "a finite number above 0", value)


@dataclass(frozen=True, slots=True)
class Power:
    """Power in watts while answering, and the energy of one answer in joules.

    ``joules_per_answer`` is ``mean_w`` times the mean duration of an answer.
    """

    mean_w: float
    max_w: float
    joules_per_answer: float

    def __post_init__(self) -> None:
        for name in ("mean_w", "max_w", "joules_per_answer"):
            _check_finite(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement with the answer at keep 1.0: number of equal first tokens, and equal text."""

    equal_prefix: int
    same_text: bool


@dataclass(frozen=True, slots=True)
class Stages:
    """One statistic a stage.

    ``selection`` was timed on its own and is part of ``vision``, so it is not in ``ttft``,
    which sums the others up to ``first_sample``. ``decode_per_token`` is over all single
    tokens after the first; None where there is none.
    """

    preprocess: Stat
    vision: Stat
    selection: Stat | None
    merge: Stat
    prefill: Stat
    first_sample: Stat
    ttft: Stat
    decode_per_token: Stat | None

    def measured(self) -> Iterator[tuple[str, Stat]]:
        """Names and statistics of the stages that have one, in order."""
        for name in STAGES:
            if (stat := getattr(self, name)) is not None:
                yield name, stat


@dataclass(frozen=True, slots=True)
class Run:
    """The measurements at one fraction kept.

    ``prompt_tokens`` is what prefill processed, ``kv_cache_bytes`` what the cache takes and
    ``live_kv_bytes`` what of it was filled at the end. ``ratios`` and ``predicted`` have
    stages as keys; the run with keep 1.0 has no ratios and no agreement. ``auto`` is the
    similarity that was asked for instead of a fraction, None otherwise; ``keep`` is what it
    kept of this picture. It and ``power``, which most machines cannot tell, may be missing in a
    file.
    """

    keep: float
    num_kept: int
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    kv_cache_bytes: int
    live_kv_bytes: int
    peak_host_bytes: int | None
    peak_device_bytes: int | None
    stages: Stages
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    ratios: dict[str, Ratio]
    agreement: Agreement | None
    text: str
    kept_indices: tuple[int, ...]
    predicted: dict[str, Prediction]
    power: Power | None = None
    auto: float | None = None

    def __post_init__(self) -> None:
        _check_finite("auto", self.auto)
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            _check_finite(name, getattr(self, name))
        for field in ("ratios", "predicted"):
            unknown = sorted(set(getattr(self, field)) - set(STAGES))
            _check(field, not unknown, f"stages of {', '.join(STAGES)}", ", ".join(unknown))

    @property
    def asked(self) -> Keep:
        """What was asked for: the fraction, or the similarity to reach."""
        return self.keep if self.auto is None else AutoKeep(self.auto)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The machine; ``threads`` is None where the library chose."""

    name: str
    cpu: str
    cores: int
    threads: int | None
    gpu: str | None
    driver: str | None
    power_mode: str | None
    clocks: str | None
    memory_bytes: int
    os: str
    load_average: float | None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The engine directory and what ran it.

    ``num_image_tokens`` is N of the measured picture, before pruning.
    """

    model: str
    revision: str | None
    selector: str
    target: str
    dtype: str
    quant: str | None
    backend: str
    max_seq_len: int
    num_image_tokens: int


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The picture; ``sha256`` is over its decoded pixels."""

    source: str
    width: int
    height: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Work:
    """The workload of every run.

    ``text_tokens`` counts the prompt without the picture, ``keeps`` are what was asked for:
    fractions, and similarities such as ``auto:0.8``.
    """

    image: ImageFacts
    prompt: str
    text_tokens: int
    max_new_tokens: int
    ignore_eos: bool
    warmup: int
    iters: int
    keeps: tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark; ``created`` is ISO 8601 in UTC, ``tool`` maps packages to versions."""

    schema_version: int
    tool: dict[str, str]
    created: str
    interrupted: bool
    notes: tuple[str, ...]
    device: DeviceFacts
    engine: EngineFacts
    work: Work
    runs: tuple[Run, ...]
    probe: Probe | None

    def __post_init__(self) -> None:
        _check("runs", self.runs, "one or more", "none")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return parse(self.to_json())

    def to_json(self) -> str:
        """The text of a report file, each list of numbers on one line."""
        return _NUMBER_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", dump(self))

    @classmethod
    def from_json(cls, text: str, name: str) -> Report:
        """Read a report; ``name`` is what messages call it.

        Raises:
            ReportError: for text that is no report of this schema version.
        """
        try:
            value = parse(text)
            _check_schema_version(value.get("schema_version"), name)
            return read_dataclass(cls, _with_optional_fields(value))
        except FieldError as error:
            where = f"{name}: {error.field}" if error.field else name
            raise ReportError(
                f"{where} {error.problem}",
                expected=error.expected,
                found=error.found,
                fix="write the report again: divprune-bench ENGINE_DIR --output REPORT.json",
            ) from error


def _with_optional_fields(report: dict[str, Any]) -> dict[str, Any]:
    """The same with null for what a file may leave out."""
    runs = report.get("runs")
    if not isinstance(runs, list):
        return report
    return report | {"runs": [_OPTIONAL | run if isinstance(run, dict) else run for run in runs]}


def _check_schema_version(version: object, name: str) -> None:
    if type(version) is int and version == SCHEMA_VERSION:
        return
    newer = type(version) is int and version > SCHEMA_VERSION
    raise ReportError(
        f"{name} is of a newer version" if newer else f"{name} is not a benchmark report",
        expected=f"schema_version {SCHEMA_VERSION}, the one this divprune-edge reads",
        found="no such field" if version is None else version,
        fix="install the divprune-edge that wrote it, or a newer one" if newer else None,
    )


def _check(field: str, holds: object, expected: object, found: object) -> None:
    if not holds:
        raise FieldError(field, "has a value it cannot have", expected=expected, found=found)


def _check_at_least(field: str, value: int, lowest: int) -> None:
    _check(field, value >= lowest, f"at least {lowest}", value)


def _check_finite(field: str, value: float | None) -> None:
    valid = value is None or (math.isfinite(value) and value >= 0)
    _check(field, valid, "a finite number of at least 0", value)
