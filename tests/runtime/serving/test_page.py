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
from tests.runtime.serving.conftest import KEYS
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
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if found is None:
        pytest.skip("there is no chromium on the path (apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def visits(server: ServingProcess, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    python = python_with("playwright")
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


@pytest.fixture(scope="module")
def inputs(
    guarded_server: ServingProcess, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    python = python_with("playwright")
    picture = tmp_path_factory.mktemp("picture") / "picture.png"
    picture.write_bytes(noise_png(3))
    command = [python, CLIENTS / "page_inputs_client.py", chromium]
    return json.loads(run([*command, guarded_server.url, KEYS[0], picture]))


def test_page_asks_for_a_key_and_says_which_one_is_wrong(inputs: Any) -> None:
    assert inputs["key"] == [False, True]
    # The browser itself reports answers with an error status.
    assert [each for each in inputs["complaints"] if "401" not in each] == []


def test_everything_is_reached_with_the_tabulator_key_in_the_order_of_the_page(
    inputs: Any,
) -> None:
    stops = [stop for stop in inputs["tab_stops"] if stop]
    order = ["theme", "file", "text", "add", "camera", "send"]
    assert [stop for stop in stops if stop in order][: len(order)] == order


def test_patches_are_numbered_and_shown_in_the_order_in_which_they_were_chosen(
    inputs: Any, guarded_server: ServingProcess
) -> None:
    question = [picture_part(noise_png(3)), {"type": "text", "text": "What is this?"}]
    reply = guarded_server.chat(question, key=KEYS[0], max_tokens=1, kept_boxes=True)
    (image,) = reply.json["divprune"]["images"]
    middles = [
        (place + 1, (box[0] + box[2]) * 90 / 2, (box[1] + box[3]) * 60 / 2)
        for place, box in enumerate(image["boxes"])
        if box is not None  # a token of this model stands for the whole picture
    ]
    for shown, expected in zip(inputs["numbers"], middles, strict=True):
        assert shown == pytest.approx(expected, abs=0.01)
    counts = [count for count, _ in inputs["reveal"]]
    assert all(is_beginning for _, is_beginning in inputs["reveal"])
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(middles)


def test_answer_is_not_hidden_behind_the_question_on_a_phone(inputs: Any) -> None:
    assert inputs["answer_in_sight"]


def test_automatic_keep_asks_again_with_its_bound(inputs: Any) -> None:
    assert inputs["keeps"][1:3] == ["auto:0.80", "auto:0.79"]
    assert "79 %" in inputs["automatic"]


def test_pictures_come_from_the_camera_and_the_clipboard_too(inputs: Any) -> None:
    assert inputs["camera_closed"]
    assert inputs["pictures"][:4] == [1, 1, 1, 3]


def test_escape_stops_an_answer(inputs: Any) -> None:
    assert inputs["stopped"].strip().lower().endswith(("stopped.", "(stopped)"))
