"""A report as one HTML file: no script, and nothing that would be fetched from elsewhere.

The page forbids itself to load anything but the pictures inside it (Content-Security-Policy),
follows the light or dark scheme of the system, and reads from 320 pixels of width on. What it
shows is gathered in `html_view`; this module puts it into `html_template.html`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from divprune.runtime.reports.bench.html_view import make_view
from divprune.runtime.reports.bench.report import Report

__all__ = ["render_html"]

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
    source = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    view = make_view(Report.from_json(json.dumps(report), "the report"))
    pictures = {caption: _data_uri(file) for caption, file in (overlays or {}).items()}
    return environment.from_string(source).render(view=view, overlays=pictures)


def _data_uri(file: bytes) -> str:
    for start, media_type in _MEDIA_TYPES.items():
        if file.startswith(start):
            return f"data:{media_type};base64,{base64.b64encode(file).decode()}"
    raise ValueError("an overlay is neither a PNG nor a JPEG file")
