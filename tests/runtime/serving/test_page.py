"""The page: what it may load, and how it behaves in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.serving.page import content_security_policy
from tests.runtime.serving.client_tools import CLIENTS, node_modules, python_with, run
from tests.runtime.serving.serving_process import ServingProcess, noise_png, picture_part

PAGE = Path(__file__).parents[3] / "runtime" / "serving" / "page.html"


def test_page_loads_nothing_from_elsewhere_and_has_no_inline_handlers() -> None:
    html = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    assert not re.search(r"<\w[^>]*\s(on\w+|style)=", html)
    assert "innerHTML" not in html
    assert "eval(" not in html


def test_policy_has_a_hash_for_each_script_and_style_and_allows_no_others() -> None:
    policy = content_security_policy("<style>a</style><script>b</script>")
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", directives["script-src"])
    assert directives["script-src"] != directives["style-src"]
    assert directives["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert "*" not in policy


def test_page_is_small_and_compressed_on_request(server: ServingProcess) -> None:
    import gzip

    packed = server.get("/", **{"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == server.get("/").body == PAGE.read_bytes()
    assert len(packed.body) < 16 * 1024


@pytest.fixture(scope="module")
def visits(server: ServingProcess, tmp_path_factory: pytest.TempPathFactory) -> Any:
    python = python_with("playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if chromium is None:
        pytest.skip("there is no chromium on the path (apt-get install chromium)")
    axe = node_modules("axe-core") / "axe-core" / "axe.min.js"
    picture = f"data:image/png;base64,{base64.b64encode(noise_png(3)).decode()}"
    folder = tmp_path_factory.mktemp("screenshots")
    command = [python, CLIENTS / "page_client.py", chromium, server.url, picture, axe, folder]
    return json.loads(run(command))


def each(visits: Any) -> Any:
    assert set(visits) == {"wide", "phone", "narrow"}
    return visits.values()


def test_browser_has_nothing_to_complain_of_and_asks_nobody_else(visits: Any) -> None:
    for visit in each(visits):
        assert visit["complaints"] == []
        assert visit["foreign"] == []
        assert not visit["too_wide"]


def test_dropped_picture_is_asked_about_and_the_answer_is_the_servers(
    visits: Any, server: ServingProcess
) -> None:
    question = [picture_part(noise_png(3)), {"type": "text", "text": "What is this?"}]
    room = server.get("/v1/models").json["data"][0]["divprune"]["context_length"]
    there = server.chat(question, max_tokens=room // 4).answer  # the rest is for what follows
    for visit in each(visits):
        assert visit["before"]["caption"] == "90 \u00d7 60 pixels"
        assert visit["first"]["answer"].split() == there.split()
        assert "to the first token" in visit["first"]["figures"]
        assert "tokens prefilled" in visit["first"]["figures"]
        assert "patches left out" in visit["first"]["figures"]


def test_overlay_shows_the_kept_patches_and_follows_the_slider(
    visits: Any, server: ServingProcess
) -> None:
    about = server.get("/v1/models").json["data"][0]["divprune"]
    total, most = about["num_image_tokens"], about["num_kept"]
    for visit in each(visits):
        assert not visit["before"]["visible"]
        assert visit["first"]["visible"]
        assert 0 < visit["first"]["boxes"] <= most
        assert visit["first"]["caption"].startswith(f"{most} of {total} patches kept")
        fewer = max(1, most - 3)
        assert visit["preview"]["caption"].startswith(f"{fewer} of {total} patches kept")
        assert visit["second"]["caption"] == visit["preview"]["caption"]
        assert 0 < visit["second"]["boxes"] <= visit["first"]["boxes"]


def test_every_patch_is_asked_with_on_demand(visits: Any) -> None:
    for visit in each(visits):
        assert visit["everything"]["caption"].startswith("All ")
        assert not visit["everything"]["visible"]
        assert "patches left out 0 " in " ".join(visit["everything"]["figures"].split())


def test_conversation_goes_on_with_a_second_picture(visits: Any) -> None:
    for visit in each(visits):
        assert visit["pictures"] == 2
        assert visit["conversation"]["answer"]


def test_screen_readers_find_names_and_contrast(visits: Any) -> None:
    for visit in each(visits):
        assert visit["unnamed"] == []
