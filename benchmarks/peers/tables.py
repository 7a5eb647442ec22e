"""The report of ``compare.py`` as Markdown, also from its JSON file:

python benchmarks/peers/tables.py benchmarks/results/peers-1.1b.json
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

__all__ = ["render"]

_COLUMNS = {
    "prompt_tokens": "rows in prefill",
    "vision": "vision, s",
    "prefill": "prefill, s",
    "ttft": "TTFT, s",
    "decode_tokens_per_s": "decode, tokens/s",
    "peak_rss": "peak memory, MiB",
}
_RATIOS = ("vision", "prefill", "ttft", "decode_tokens_per_s", "peak_rss")
_ACROSS = ("ttft",)  # what is said of fewer tokens beside all

Samples = list[dict[str, Any]]


def main() -> int:
    for name in sys.argv[1:]:
        report = json.loads(Path(name).read_text(encoding="utf-8"))
        Path(name).with_suffix(".md").write_text(render(report), encoding="utf-8")
    return 0


def render(report: dict[str, Any]) -> str:
    """What was measured on what, the medians, and the first worker beside the others."""
    names = list(report["workers"])
    parts = (
        heading(report),
        table(report["samples"], names, report["image_tokens"]),
        ratio_table(report["samples"], names),
    )
    return "\n\n".join(parts) + "\n"


def heading(report: dict[str, Any]) -> str:
    """Model, request, machine, and what each row stands for."""
    machine, side = report["machine"], report["side"]
    load = machine.get("load_before")  # reports of before do not have it
    rounds = len({sample["round"] for sample in report["samples"]})
    where = f"{machine['cpu']}, {machine['cores']} cores, {report['date']}"
    lines = [
        f"# Beside other runtimes: {report['model']}",
        "",
        "Written by `benchmarks/peers/compare.py`; its README says how, and what stands behind it.",
        f"A picture of {side} x {side}, {report['image_tokens']} visual tokens,",
        f"{report['new_tokens']} new ones; {where}.",
        f"Medians of {rounds} rounds, all rows in turns, after a round that does not count.",
        *([] if load is None else [f"Load of the machine before the first: {load:.1f}."]),
        "",
        "| row | runtime | weights |",
        "| --- | --- | --- |",
    ]
    for name, facts in report["workers"].items():
        lines.append(f"| {name} | {facts['runtime']} {facts['version']} | {facts['weights']} |")
    return "\n".join(lines)


def table(samples: Samples, names: list[str], image_tokens: int) -> str:
    """Medians by worker and kept tokens; of memory the peak."""
    lines = [f"| row | tokens of {image_tokens} | " + " | ".join(_COLUMNS.values()) + " |"]
    lines.append("| --- | --: |" + " --: |" * len(_COLUMNS))
    for name in names:
        for kept in _kept_tokens(samples):
            rows = [s for s in samples if s["worker"] == name and s["kept_tokens"] == kept]
            cells = [_cell(column, [r[column] for r in rows if column in r]) for column in _COLUMNS]
            if any(cells[:-1]):
                lines.append(f"| {name} | {kept} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio_table(samples: Samples, names: list[str]) -> str:
    """The first worker over each other one, round by round: median and its 95 % interval.

    Its TTFT with the fewest visual tokens is also put beside what the others need for all.
    """
    first, *others = names
    most, *_, fewest = _kept_tokens(samples)
    lines = [f"| {first} over | tokens | " + " | ".join(_COLUMNS[name] for name in _RATIOS) + " |"]
    lines.append("| --- | --- |" + " --: |" * len(_RATIOS))
    for other in others:
        for ours, theirs in ((fewest, fewest), (most, most), (fewest, most)):
            columns = _RATIOS if ours == theirs else _ACROSS
            cells = [
                _ratio(samples, (first, ours), (other, theirs), name) if name in columns else ""
                for name in _RATIOS
            ]
            if any(cells[:-1]):
                lines.append(f"| {other} | {ours} over {theirs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kept_tokens(samples: Samples) -> list[int]:
    return sorted({sample["kept_tokens"] for sample in samples}, reverse=True)


def _ratio(samples: Samples, ours: tuple[str, int], theirs: tuple[str, int], column: str) -> str:
    """Median of the rounds' ratios; in brackets the middle 95 % of medians drawn again."""
    values = []
    for key in (ours, theirs):
        found = [s for s in samples if (s["worker"], s["kept_tokens"]) == key and column in s]
        values.append({sample["round"]: sample[column] for sample in found})
    ratios = [values[0][n] / values[1][n] for n in values[0] if n in values[1]]
    if not ratios:
        return ""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    low, high = medians[100], medians[-101]
    return f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"


def _cell(column: str, values: list[float]) -> str:
    if not values:
        return ""
    if column == "peak_rss":
        return f"{max(values) / 2**20:,.0f}"
    median = statistics.median(values)
    digits = {"prompt_tokens": 0, "decode_tokens_per_s": 1}.get(column, 2)
    return f"{median:.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(main())
