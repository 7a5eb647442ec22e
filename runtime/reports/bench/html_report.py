"""A report as one HTML file: no script, and nothing that would be fetched from elsewhere.

The page forbids itself to load anything but the pictures inside it (Content-Security-Policy),
follows the light or dark scheme of the system, and reads from 320 pixels of width on. Figures
come from `html_view` and `html_chart`; the words are in `html_template.html`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from divprune.runtime.memory import format_bytes
from divprune.runtime.reports import bench
from divprune.runtime.reports.bench import html_view
from divprune.runtime.reports.bench.html_chart import make_chart
from divprune.runtime.reports.bench.layout import format_keep
from divprune.runtime.reports.bench.report import Report

__all__ = ["page_values", "render_html"]

_TEMPLATE = "html_template.html"
_MEDIA_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def render_html(report: Mapping[str, Any], overlays: Mapping[str, bytes] | None = None) -> str:
    """Render a benchmark report.

    Args:
        report: A report as `Report.to_dict` gives it.
        overlays: Pictures of the kept patches, PNG or JPEG files by their captions.

    Returns:
        The whole page; all text of the report is escaped.

    Raises:
        ReportError: if it is no report of this schema version.
        ValueError: if an overlay is neither PNG nor JPEG.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "keep": format_keep,
        "size": format_bytes,
        "verdict": html_view.verdict,
    }
    source = resources.files(bench).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    values = page_values(Report.from_json(json.dumps(report), "the report"))
    pictures = {caption: _data_uri(file) for caption, file in (overlays or {}).items()}
    return environment.from_string(source).render(values, overlays=pictures)


def page_values(report: Report) -> dict[str, Any]:
    """Everything that the template draws but the overlays."""
    runs = sorted(report.runs, key=lambda run: -run.keep)
    total = report.engine.num_image_tokens
    return {
        "report": report,
        "runs": runs,
        "headline": html_view.make_headline(runs, total),
        "tiles": list(html_view.make_tiles(runs)),
        "legend": [(stage, html_view.STAGE_NAMES[stage]) for stage in html_view.TTFT_STAGES],
        "bars": list(html_view.make_bars(runs, total)),
        "chart": make_chart(runs),
        "memory": list(html_view.make_memory(runs)),
        "power": list(html_view.make_power(runs)),
        "stages": list(html_view.make_stages(runs)),
        "predictions": list(html_view.make_predictions(runs)),
    }


def _data_uri(file: bytes) -> str:
    for start, media_type in _MEDIA_TYPES.items():
        if file.startswith(start):
            return f"data:{media_type};base64,{base64.b64encode(file).decode()}"
    raise ValueError("an overlay is neither a PNG nor a JPEG file")
