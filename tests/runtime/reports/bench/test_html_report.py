from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from divprune.runtime.reports.bench.html_report import render_html
from divprune.runtime.reports.bench.report import ReportError
from tests.runtime.reports.bench.chromium import CHROMIUM, Page, open_chromium
from tests.runtime.reports.bench.example_pages import report, run

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"
)
HOSTILE = "</title></style><script>throw 1</script>\"'><img src=http://127.0.0.1:9/x.png>{{ 1 }}"


def picture_file(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (40, 200, 120)).save(file, kind)
    return file.getvalue()


def with_bare_minimum() -> dict[str, Any]:
    """One run of one round and one token, and null wherever the schema has it."""
    bare = run(1.0, iters=1)
    bare |= {"new_tokens": 1, "finish_reason": "stop", "text": "", "predicted": {}}
    bare |= {"decode_tokens_per_s": None, "prefill_tokens_per_s": None, "peak_host_bytes": None}
    bare["stages"] |= {"selection": None, "decode_per_token": None}
    changed = report(1.0, runs=[bare], probe=None, tool={})
    changed["device"] |= {"clocks": None, "load_average": None}
    return changed


def with_zeros() -> dict[str, Any]:
    changed = report(1.0, 0.1)
    for measured in changed["runs"]:
        for values in measured["stages"].values():
            values |= dict.fromkeys(("mean", "std", "p50", "p90", "p99", "min", "max"), 0.0)
        measured |= {"live_kv_bytes": 0, "peak_host_bytes": 0}
    changed["runs"][1]["ratios"] = {"ttft": {"median": 0.0, "low": 0.0, "high": 0.0}}
    return changed


def with_every_text_replaced(value: Any, text: str) -> Any:
    """A report in which every text that is not one of a fixed set is another."""
    if isinstance(value, dict):
        return {
            key: item if key == "bound" else with_every_text_replaced(item, text)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_every_text_replaced(item, text) for item in value]
    return text if isinstance(value, str) else value


def with_everything() -> dict[str, Any]:
    changed = report(1.0, 0.5, 0.1, interrupted=True, notes=["one note", "another"])
    texts = {"gpu": "a GPU", "driver": "570.1", "power_mode": "MAXN"}
    changed["device"] |= texts | {"threads": 2}
    changed["engine"] |= {"revision": "0" * 40, "quant": "int4"}
    changed["runs"][1]["agreement"] = {"equal_prefix": 64, "same_text": True}
    changed["runs"][1]["peak_device_bytes"] = 2**33
    changed["runs"][1]["power"] = {"mean_w": 12.25, "max_w": 15.0, "joules_per_answer": 1234.5}
    return changed


PAGES = {
    "three fractions": render_html(
        report(1.0, 0.25, 0.1), {"keep 0.1": picture_file("PNG"), "0.25": picture_file("JPEG")}
    ),
    "seven fractions, interrupted": render_html(
        report(1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, interrupted=True)
    ),
    "everything": render_html(with_everything()),
    "no baseline": render_html(report(0.25, 0.1)),
    "bare minimum": render_html(with_bare_minimum()),
    "zeros": render_html(with_zeros()),
    "long words": render_html(with_every_text_replaced(with_everything(), "Donaudampf" * 300)),
    "long texts": render_html(with_every_text_replaced(with_everything(), "a few words\n" * 500)),
    "hostile texts": render_html(
        with_every_text_replaced(with_everything(), HOSTILE) | {"tool": {HOSTILE: HOSTILE}},
        {HOSTILE: picture_file("PNG")},
    ),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


def write(folder: Path, html: str) -> Path:
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("name", PAGES)
def test_the_page_asks_for_nothing_complains_of_nothing_and_is_no_wider_than_the_window(
    page, tmp_path, name, width
):
    page.open(write(tmp_path, PAGES[name]), width=width)
    assert page.requests == []
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width >= 390:  # on narrower ones the tables may be moved sideways
        assert page.evaluate(
            "[...document.querySelectorAll('.scroll')].every(s => s.scrollWidth <= s.clientWidth)"
        )
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.querySelector('h1').getBoundingClientRect().height") > 20


@needs_chromium
@pytest.mark.parametrize(
    "body, requested, complaint",
    [
        ("<script>console.error('broken')</script>", None, "broken"),
        ("<script>throw new Error('thrown')</script>", None, "thrown"),
        ("<img src=http://127.0.0.1:9/outside.png>", "http://127.0.0.1:9/outside.png", "Failed"),
        ("<img src=beside.png>", "/beside.png", "Failed"),
        ("<style>b { background: url(http://127.0.0.1:9/b.png) }</style><b>x</b>", "/b.png", "Fai"),
        ("<style>@import 'http://127.0.0.1:9/a.css'</style>", "/a.css", ""),
    ],
)
def test_a_page_that_is_not_self_contained_would_be_found_out(
    page, tmp_path, body, requested, complaint
):
    page.open(write(tmp_path, f"<!DOCTYPE html><title>x</title>{body}"), width=390)
    assert [url for url in page.requests if requested and url.endswith(requested)] or not requested
    assert complaint in " ".join(page.problems)


@needs_chromium
def test_the_page_forbids_itself_what_a_mistake_in_it_would_fetch(page, tmp_path):
    html = PAGES["bare minimum"].replace("</main>", "<img src=http://127.0.0.1:9/x.png></main>")
    page.open(write(tmp_path, html), width=390)
    assert "Content Security Policy" in " ".join(page.problems)


@needs_chromium
def test_a_page_that_is_too_wide_would_be_found_out(page, tmp_path):
    html = PAGES["bare minimum"].replace("</main>", "<div style='width:600px'>x</div></main>")
    page.open(write(tmp_path, html), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") > 390


@needs_chromium
def test_light_and_dark_follow_the_system(page, tmp_path):
    path = write(tmp_path, PAGES["three fractions"])
    colours = []
    for dark in (False, True):
        page.open(path, width=1280, dark=dark)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        colours.append(sum(map(int, re.findall(r"\d+", colour)[:3])) / 3)
    light, dark_one = colours
    assert light > 230
    assert dark_one < 40


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_bars_are_as_long_as_their_times(page, tmp_path, width):
    page.open(write(tmp_path, PAGES["three fractions"]), width=width)
    bars = page.evaluate(
        "[...document.querySelectorAll('.stack')].map(s => [s.clientWidth,"
        " ...[...s.children].map(c => c.getBoundingClientRect().width)])"
    )
    runs = report(1.0, 0.25, 0.1)["runs"]
    longest = runs[0]["stages"]["ttft"]["mean"]
    assert len(bars) == 3
    for (track, *segments), measured in zip(bars, runs, strict=True):
        expected = measured["stages"]["ttft"]["mean"] / longest * track
        assert sum(segments) == pytest.approx(expected, abs=1)
        assert segments[3] == pytest.approx(
            measured["stages"]["prefill"]["mean"] / longest * track, abs=0.5
        )


@needs_chromium
def test_texts_are_shown_as_they_are(page, tmp_path):
    page.open(write(tmp_path, PAGES["hostile texts"]), width=1280)
    shown = page.evaluate("document.querySelector('blockquote').textContent")
    assert shown == HOSTILE
    assert HOSTILE in page.evaluate("document.title")
    assert page.evaluate("document.images.length") == 1
    assert page.evaluate("document.querySelector('figcaption').textContent") == HOSTILE


@needs_chromium
def test_overlays_are_inside_the_file(page, tmp_path):
    page.open(write(tmp_path, PAGES["three fractions"]), width=390)
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[64, 48], [64, 48]]


def test_a_page_names_nothing_outside_of_itself():
    for html in (PAGES["three fractions"], PAGES["seven fractions, interrupted"]):
        assert not re.search(
            r"https?:|//|<script|<link(?! rel=\"icon\" href=\"data:)", outside(html)
        )


def outside(html: str) -> str:
    """The page without its pictures."""
    return re.sub(r"data:image/\w+;base64,[\w+/=]+", "", html)


@pytest.mark.parametrize("name", PAGES)
def test_no_number_on_a_page_is_infinite_nan_or_null(name):
    assert not re.search(r"\b(nan|inf|None|null|undefined)\b", outside(PAGES[name]))


@pytest.mark.parametrize("file", [b"", b"GIF89a", b"<svg/>"])
def test_an_overlay_that_is_no_png_or_jpeg_is_refused(file):
    with pytest.raises(ValueError, match="neither a PNG nor a JPEG"):
        render_html(report(1.0), {"keep 0.1": file})


def test_what_is_no_report_is_refused():
    with pytest.raises(ReportError, match="the report is not a benchmark report"):
        render_html({})
