"""``--encode-ahead``: pictures of the request that waits, while another is answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime import Pipeline
from tests.runtime.serving.serving_process import (
    Reply,
    ServingProcess,
    noise_png,
    picture_part,
    until,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def eager(engine_dir: Path) -> Iterator[ServingProcess]:
    with ServingProcess(engine_dir, "--encode-ahead") as process:
        yield process


def beside_a_long_answer(server: ServingProcess, content: list[Any]) -> Reply:
    """The answer to a request that came while another was being decoded."""
    long = threading.Thread(target=lambda: server.chat("Tell me more", max_tokens=400))
    long.start()
    until(lambda: server.metric("requests_running") == 1 or not long.is_alive())
    reply = server.chat(content, max_tokens=6)
    long.join()
    return reply


def test_picture_of_the_next_request_is_encoded_while_an_answer_is_decoded(
    eager: ServingProcess, engine_dir: Path
) -> None:
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    for seed in range(20):  # an answer may be over before the next request has come
        before = {name: eager.metric(f"picture_cache_{name}_total") for name in ("hits", "misses")}
        data = noise_png(seed)
        reply = beside_a_long_answer(eager, [picture_part(data), TEXT])
        expected = pipeline.generate(data, "What is this?", max_new_tokens=6, reuse=False).result
        assert reply.answer == expected.text
        if eager.metric("requests_encoded_ahead_total"):
            assert eager.metric("picture_cache_hits_total") == before["hits"] + 1
            assert eager.metric("picture_cache_misses_total") == before["misses"]
            return
    pytest.fail("no request was encoded ahead")


def test_what_cannot_be_encoded_is_told_by_its_own_answer(eager: ServingProcess) -> None:
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    for _ in range(3):
        reply = beside_a_long_answer(eager, [video, TEXT])
        assert (reply.status, reply.error["code"]) == (400, "unsupported")


def test_many_clients_get_their_own_answers(eager: ServingProcess) -> None:
    questions = [[picture_part(noise_png(100 + seed)), TEXT] for seed in range(6)]
    replies: dict[int, Reply] = {}

    def ask(place: int) -> None:
        replies[place] = eager.chat(questions[place % 6], max_tokens=30)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [eager.chat(question, max_tokens=30).answer for question in questions]
    assert [replies[place].answer for place in range(12)] == alone * 2
    assert eager.metric("requests_waiting") == 0
