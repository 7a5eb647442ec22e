"""What the HTML report shows: texts, and lengths as percentages of what they are drawn on."""

from __future__ import annotations

from dataclasses import dataclass

from divprune.runtime.reports.bench.html_chart import Chart, make_chart
from divprune.runtime.reports.bench.html_figures import (
    Bar,
    Group,
    Headline,
    Tile,
    make_bars,
    make_headline,
    make_memory,
    make_power,
    make_tiles,
)
from divprune.runtime.reports.bench.html_tables import StageRows, make_predictions, make_stages
from divprune.runtime.reports.bench.html_text import STAGE_NAMES, TTFT_STAGES, format_size
from divprune.runtime.reports.bench.layout import format_keep
from divprune.runtime.reports.bench.report import Probe, Report, Run

__all__ = ["View", "make_view"]


@dataclass(frozen=True)
class Answer:
    """One run's text, and how it compares with keep 1.0."""

    label: str
    verdict: str
    same: bool | None
    text: str
    ending: str


@dataclass(frozen=True)
class View:
    """Everything on the page but the overlays."""

    title: str
    subtitle: str
    headline: Headline
    warnings: tuple[str, ...]
    tiles: tuple[Tile, ...]
    legend: tuple[tuple[str, str], ...]
    bars: tuple[Bar, ...]
    chart: Chart | None
    memory: tuple[Group, ...]
    power: tuple[Group, ...]
    stages: tuple[StageRows, ...]
    rounds: str
    probe: str
    predictions: tuple[StageRows, ...]
    prompt: str
    answers: tuple[Answer, ...]
    facts: dict[str, dict[str, str]]
    notes: tuple[str, ...]
    footer: str


def make_view(report: Report) -> View:
    """Gather what the page shows."""
    runs = sorted(report.runs, key=lambda run: -run.keep)
    interrupted = "Interrupted: fewer rounds were measured than asked for."
    return View(
        title=f"{report.engine.model} on {report.device.name}",
        subtitle=" \N{MIDDLE DOT} ".join(_subtitle(report)),
        headline=make_headline(runs, report.engine.num_image_tokens),
        warnings=(interrupted,) if report.interrupted else (),
        tiles=tuple(make_tiles(runs)),
        legend=tuple((stage, STAGE_NAMES[stage]) for stage in TTFT_STAGES),
        bars=tuple(make_bars(runs, report.engine.num_image_tokens)),
        chart=make_chart(runs),
        memory=tuple(make_memory(runs)),
        power=tuple(make_power(runs)),
        stages=tuple(make_stages(runs)),
        rounds=_rounds(report),
        probe=_probe(report.probe),
        predictions=tuple(make_predictions(runs)),
        prompt=report.work.prompt,
        answers=tuple(map(_answer, runs)),
        facts=_facts(report),
        notes=report.notes,
        footer=", ".join(f"{name} {version}" for name, version in report.tool.items()),
    )


def _subtitle(report: Report) -> list[str]:
    date = report.created.replace("T", " ")[:16]
    return [report.engine.quant or report.engine.dtype, report.engine.backend, date]


def _rounds(report: Report) -> str:
    rounds = f"{report.work.iters} rounds after {report.work.warmup} of warm-up"
    if len(report.runs) > 1:
        rounds += "; the fractions took turns within each round"
    if any(run.ratios for run in report.runs):
        rounds += ". Speed-up: median of the ratios to keep 1.0, and the range of the middle 80 %"
    return f"{rounds}."


def _probe(probe: Probe | None) -> str:
    if probe is None:
        return ""
    return (
        f"A short probe of this device reached {probe.bandwidth_gb_s:.1f} GB/s from memory and "
        f"{probe.gflops:,.0f} GFLOP/s. The roofline is the time that a stage would take if only "
        "the slower of the two limited it."
    )


def _answer(run: Run) -> Answer:
    label = f"keep {format_keep(run.keep)}"
    ending = {"stop": "ended by itself", "length": "cut off at the limit"}
    tokens = "1 token" if run.new_tokens == 1 else f"{run.new_tokens} tokens"
    end = f"{tokens}, {ending.get(run.finish_reason, run.finish_reason)}"
    if run.agreement is None:
        verdict = "all visual tokens" if run.keep == 1 else "not compared"
        return Answer(label, verdict, None, run.text, end)
    if run.agreement.same_text:
        return Answer(label, "same text as keep 1.0", True, run.text, end)
    equal = run.agreement.equal_prefix
    first = {0: "differs from the first token", 1: "differs after 1 equal token"}
    verdict = first.get(equal, f"differs after {equal} equal tokens")
    return Answer(label, verdict, False, run.text, end)


def _facts(report: Report) -> dict[str, dict[str, str]]:
    device, engine, work = report.device, report.engine, report.work
    threads = "chosen by the backend" if device.threads is None else str(device.threads)
    image = f"{work.image.source}, {work.image.width} x {work.image.height}"
    cards: dict[str, dict[str, str | None]] = {
        "Device": {
            "Name": device.name,
            "CPU": f"{device.cpu}, {device.cores} cores",
            "Threads": threads,
            "GPU": device.gpu,
            "Driver": device.driver,
            "Power mode": device.power_mode,
            "Clocks": device.clocks,
            "Memory": format_size(device.memory_bytes),
            "System": device.os,
            "Load before": None if device.load_average is None else f"{device.load_average:.2f}",
        },
        "Engine": {
            "Model": engine.model,
            "Revision": engine.revision,
            "Selector": engine.selector,
            "Target": engine.target,
            "Type": engine.dtype,
            "Quantised": engine.quant,
            "Backend": engine.backend,
            "Longest sequence": f"{engine.max_seq_len:,} tokens",
            "Visual tokens": f"{engine.num_image_tokens:,} a picture",
        },
        "Work": {
            "Picture": image,
            "SHA-256": work.image.sha256[:16],
            "Text": f"{work.text_tokens:,} tokens",
            "Answer": f"at most {work.max_new_tokens:,} tokens",
            "Keep": ", ".join(map(format_keep, work.keeps)),
            "Rounds": f"{work.iters} after {work.warmup} of warm-up",
            "Date": report.created,
        },
    }
    return {
        title: {name: value for name, value in card.items() if value}
        for title, card in cards.items()
    }
