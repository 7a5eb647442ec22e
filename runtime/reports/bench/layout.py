"""A report as tables for people, and as rows for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from divprune.runtime.directory.keep import Keep, describe_keep
from divprune.runtime.reports.bench.report import STAGES, Power, Ratio, Report, Run, Stat
from divprune.runtime.reports.tables import (
    Table,
    escape_markdown,
    plain,
    to_markdown,
    to_text,
)

__all__ = [
    "format_keep",
    "format_ms",
    "headline",
    "render_csv",
    "render_markdown",
    "render_text",
    "stage_label",
    "stage_table",
]

_MIB = 2**20
_STAT_COLUMNS = tuple(field.name for field in fields(Stat))
_NONE = "-"
_ANSWER_LETTERS = 300
_UNITS = "Times in ms; the selection is part of vision or prefill, TTFT the sum of the others."


def render_text(report: Report) -> str:
    """The report as a terminal shows it."""
    parts = [
        "\n".join(headline(report)) + "\n",
        f"{_UNITS}\n" + to_text(stage_table(report.runs)),
        to_text(_run_table(report)),
        "".join(f"{line}\n" for line in _closing_lines(report)),
    ]
    return "\n".join(parts)


def render_markdown(report: Report) -> str:
    """The report as Markdown, to be pasted into an issue."""
    parts = [
        escape_markdown(f"# {report.engine.model} on {report.device.name}") + "\n",
        "".join(f"- {escape_markdown(line)}\n" for line in headline(report)),
        f"{_UNITS}\n",
        to_markdown(stage_table(report.runs)),
        to_markdown(_run_table(report)),
        "".join(f"- {escape_markdown(line)}\n" for line in _closing_lines(report)),
    ]
    return "\n".join(parts)


def render_csv(report: Report) -> str:
    """One line for each fraction and stage; times in ms, empty where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    stat = [name if name == "n" else f"{name}_ms" for name in _STAT_COLUMNS]
    ratio = [f"speedup_{field.name}" for field in fields(Ratio)]
    first = ["model", "device", "backend", "dtype", "keep", "auto", "num_kept", "prompt_tokens"]
    last = ["roofline_ms", "bound", "achieved", *(field.name for field in fields(Power))]
    writer.writerow([*first, "new_tokens", "stage", *stat, *ratio, *last])
    engine = report.engine
    for run in report.runs:
        engine_facts = [engine.model, report.device.name, engine.backend, engine.dtype]
        counts = [run.num_kept, run.prompt_tokens, run.new_tokens]
        facts = [*engine_facts, run.keep, run.auto, *counts]
        for stage, measured in run.stages.measured():
            writer.writerow([*facts, stage, *_csv_numbers(run, stage, measured)])
    return out.getvalue()


def headline(report: Report) -> list[str]:
    """Model, device and workload in a few lines."""
    engine, device, work = report.engine, report.device, report.work
    facts = [device.name, device.gpu if device.gpu and device.gpu not in device.name else None]
    facts += [f"{device.cores} cores", _threads(device.threads), device.clocks, device.power_mode]
    picture = f"{work.image.width} x {work.image.height} ({work.image.source})"
    answer = f"at most {work.max_new_tokens} new tokens" + (", EOS ignored" * work.ignore_eos)
    lines = [
        f"{engine.model}, {engine.quant or engine.dtype}, {engine.selector}: {engine.backend}",
        ", ".join(fact for fact in facts if fact),
        f"{work.text_tokens} text tokens and a picture of {picture}, {answer}",
        f"{work.iters} rounds after {work.warmup} of warm-up, fractions kept taking turns",
        f"{report.created}, divprune-edge {report.tool.get('divprune-edge', 'unknown')}",
    ]
    lines += ["INTERRUPTED: fewer rounds than asked for"] * report.interrupted
    return [plain(line) for line in lines]


def stage_table(runs: Sequence[Run]) -> Table:
    """Times in ms: a row for each stage and fraction, fractions of one stage together."""
    times = ("p50", "p90", "p99", "mean", "std")
    header = ("stage", "keep", "n", *times, "speed-up (10-90 %)", "roofline", "achieved")
    rows = []
    for stage in STAGES:
        label = stage_label(stage)
        for run in runs:
            stat: Stat | None = getattr(run.stages, stage)
            if stat is not None:
                rows.append((label, format_keep(run.asked), *_stage_cells(run, stage, stat)))
                label = ""
    return Table(header, tuple(rows), labels=2)


def stage_label(stage: str) -> str:
    """Name of a stage as the tables show it."""
    if stage == "ttft":
        return "TTFT"
    return "  of it selection" if stage == "selection" else stage.replace("_", " ")


def format_keep(keep: Keep | str) -> str:
    """What to keep as it is written on the command line; all of it is 1.0."""
    if not isinstance(keep, (int, float)):
        return str(keep)
    return f"{keep:g}" if keep < 1 else "1.0"


def format_ms(ms: float | None) -> str:
    """Three significant digits or the whole number of milliseconds."""
    if ms is None:
        return _NONE
    return f"{ms:.0f}" if ms >= 99.95 else f"{ms:#.3g}" if ms >= 0.01 else f"{ms:.4f}"


def _stage_cells(run: Run, stage: str, stat: Stat) -> tuple[str, ...]:
    times = (stat.p50, stat.p90, stat.p99, stat.mean, stat.std)
    ratio, predicted = run.ratios.get(stage), run.predicted.get(stage)
    speedup = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else _NONE
    roofline = f"{format_ms(predicted.ms)} {predicted.bound}" if predicted else _NONE
    achieved = predicted.achieved if predicted else None
    share = _NONE if achieved is None else f"{100 * achieved:.0f} %"
    return (str(stat.n), *map(format_ms, times), speedup, roofline, share)


def _run_table(report: Report) -> Table:
    """Everything but times: a row for each fact, a column for each fraction."""
    total = report.engine.num_image_tokens
    facts = {
        "visual tokens": [describe_keep(run.num_kept, total) for run in report.runs],
        "tokens prefilled": [str(run.prompt_tokens) for run in report.runs],
        "prefill tokens/s": [_one_decimal(run.prefill_tokens_per_s) for run in report.runs],
        "new tokens": [f"{run.new_tokens} ({run.finish_reason})" for run in report.runs],
        "decode tokens/s": [_one_decimal(run.decode_tokens_per_s) for run in report.runs],
        "KV cache filled, MiB": [f"{run.live_kv_bytes / _MIB:.1f}" for run in report.runs],
        "KV cache, MiB": [f"{run.kv_cache_bytes / _MIB:.1f}" for run in report.runs],
        "peak host memory, MiB": [_mib(run.peak_host_bytes) for run in report.runs],
        "peak device memory, MiB": [_mib(run.peak_device_bytes) for run in report.runs],
        "answer against keep 1.0": [_agreement(run) for run in report.runs],
    }
    facts |= _power_rows(report.runs)
    header = ("", *(f"keep {format_keep(run.asked)}" for run in report.runs))
    return Table(header, tuple((fact, *cells) for fact, cells in facts.items()))


def _power_rows(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Power and energy where any fraction has them."""
    if not any(run.power for run in runs):
        return {}
    return {
        "mean power, W": [_one_decimal(run.power.mean_w if run.power else None) for run in runs],
        "largest power, W": [_one_decimal(run.power.max_w if run.power else None) for run in runs],
        "energy per answer, J": [
            f"{run.power.joules_per_answer:.2f}" if run.power else _NONE for run in runs
        ],
    }


def _closing_lines(report: Report) -> list[str]:
    answers = [
        f"answer with keep {format_keep(run.asked)}: {_shorten(run.text)}" for run in report.runs
    ]
    return [plain(line) for line in (*answers, *(f"note: {note}" for note in report.notes))]


def _agreement(run: Run) -> str:
    if run.agreement is None:
        return _NONE
    same = "same text" if run.agreement.same_text else "other text"
    return f"{same}, first {run.agreement.equal_prefix} tokens equal"


def _shorten(text: str) -> str:
    return text if len(text) <= _ANSWER_LETTERS else f"{text[:_ANSWER_LETTERS]} ..."


def _csv_numbers(run: Run, stage: str, stat: Stat) -> list[object]:
    ratio, predicted = run.ratios.get(stage), run.predicted.get(stage)
    ratios = asdict(ratio).values() if ratio else [None] * len(fields(Ratio))
    roofline = [predicted.ms, predicted.bound, predicted.achieved] if predicted else [None] * 3
    power = asdict(run.power).values() if run.power else [None] * len(fields(Power))
    return [*(getattr(stat, name) for name in _STAT_COLUMNS), *ratios, *roofline, *power]


def _one_decimal(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _mib(value: int | None) -> str:
    return _NONE if value is None else f"{value / _MIB:,.0f}"


def _threads(count: int | None) -> str:
    if count is None:
        return "threads chosen by the backend"
    return "1 thread" if count == 1 else f"{count} threads"
