"""The API of a real server over a socket, on a tiny export."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime import Pipeline
from tests.runtime.serving.conftest import KEYS
from tests.runtime.serving.serving_process import (
    Reply,
    ServingProcess,
    ask,
    noise_png,
    picture_part,
    until,
)

QUESTION = [picture_part(noise_png(0)), {"type": "text", "text": "What is this?"}]


@pytest.fixture(scope="module")
def expected(engine_dir: Path) -> Any:
    """What the pipeline itself answers to ``QUESTION``."""
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    return pipeline.generate(noise_png(0), "What is this?", max_new_tokens=8).result


def test_whole_answer_is_the_pipelines_own(server: ServingProcess, expected: Any) -> None:
    reply = server.chat(QUESTION, max_tokens=8)
    assert reply.status == 200
    body = reply.json
    assert body["object"] == "chat.completion"
    assert body["model"] == server.model
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected.text,
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == expected.finish_reason


def test_usage_counts_what_was_prefilled_and_tells_what_was_pruned(
    server: ServingProcess, expected: Any
) -> None:
    usage = server.chat(QUESTION, max_tokens=8).json["usage"]
    (image,) = expected.images
    assert usage["prompt_tokens"] == expected.prompt_tokens
    assert usage["completion_tokens"] == len(expected.token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    details = usage["prompt_tokens_details"]
    assert details["image_tokens"] == image.num_kept
    assert details["pruned_image_tokens"] == image.num_image_tokens - image.num_kept
    assert details["text_tokens"] == expected.prompt_tokens - image.num_kept


def test_conversation_is_the_pipelines_own_and_its_beginning_is_not_computed_again(
    server: ServingProcess, engine_dir: Path
) -> None:
    def ours(question: str) -> dict[str, Any]:
        return {"role": "user", "content": question}

    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    sent: list[Any] = [{"role": "user", "content": [picture_part(noise_png(5)), QUESTION[1]]}]
    same: list[Any] = [
        {"role": "user", "content": [{"type": "image", "image": noise_png(5)}, QUESTION[1]]}
    ]
    for turn, question in enumerate(("And its colour?", "Are you sure?", "")):
        answer = server.chat(sent, max_tokens=6)
        expected = pipeline.chat(same, max_new_tokens=6, reuse=False).result
        assert answer.answer == expected.text
        details = answer.json["usage"]["prompt_tokens_details"]
        assert answer.json["usage"]["prompt_tokens"] == expected.prompt_tokens
        if turn:
            assert details["cached_tokens"] > details["image_tokens"]
        for messages in (sent, same):
            messages.append({"role": "assistant", "content": expected.text})
            messages.append(ours(question))


def test_text_alone_is_answered(server: ServingProcess, engine_dir: Path) -> None:
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    reply = server.chat(messages, max_tokens=6)
    assert reply.answer == pipeline.chat(messages, max_new_tokens=6).result.text
    assert reply.json["divprune"]["images"] == []
    assert reply.json["usage"]["prompt_tokens_details"]["image_tokens"] == 0


def test_automatic_keep_says_how_well_the_rest_is_covered(server: ServingProcess) -> None:
    images = server.chat(QUESTION, max_tokens=2, keep="auto:0.1").json["divprune"]["images"]
    assert images[0]["cover"] >= 0.1
    assert server.chat(QUESTION, keep="auto:2").error["code"] == "invalid_value"
    assert server.chat(QUESTION, keep="half").error["code"] == "invalid_value"


def test_caches_are_shared_by_the_requests_of_one_key_only(guarded_server: ServingProcess) -> None:
    question = [picture_part(noise_png(77)), {"type": "text", "text": "Whose is this?"}]
    template = 8  # tokens before the picture, which an earlier test of the key may have left

    def ask_with(key: str) -> tuple[str, int, int]:
        before = guarded_server.metric("picture_cache_hits_total", key=KEYS[0])
        reply = guarded_server.chat(question, key=key, max_tokens=6)
        hits = guarded_server.metric("picture_cache_hits_total", key=KEYS[0]) - before
        return (
            reply.answer,
            reply.json["usage"]["prompt_tokens_details"]["cached_tokens"],
            int(hits),
        )

    answer, cached, hits = ask_with(KEYS[0])
    assert cached <= template
    assert hits == 0
    again, cached, hits = ask_with(KEYS[0])
    assert again == answer
    assert cached > template
    assert hits == 1
    other, cached, hits = ask_with(KEYS[1])
    assert other == answer
    assert (cached, hits) == (0, 0)
    _, _, hits = ask_with(KEYS[0])
    assert hits == 1


def test_stream_has_the_events_of_openai_and_the_same_text(
    server: ServingProcess, expected: Any
) -> None:
    reply = server.chat(QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *middle, last, usage = reply.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert reply.answer == expected.text
    assert all(event["choices"][0]["finish_reason"] is None for event in (first, *middle))
    assert last["choices"][0]["finish_reason"] == expected.finish_reason
    assert last["choices"][0]["delta"] == {}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], len(expected.token_ids))
    assert {event["id"] for event in reply.events} == {first["id"]}


def test_stream_without_usage_does_not_speak_of_it(server: ServingProcess) -> None:
    events = server.chat(QUESTION, max_tokens=4, stream=True).events
    assert not any("usage" in event for event in events)


def test_kept_boxes_come_with_the_first_event_where_they_are_asked_for(
    server: ServingProcess, expected: Any
) -> None:
    first, *rest = server.chat(QUESTION, max_tokens=4, stream=True, kept_boxes=True).events
    (image,) = first["divprune"]["images"]
    assert image["order"] == list(expected.images[0].selection_order)
    assert len(image["boxes"]) == image["num_kept"] == expected.images[0].num_kept
    for left, top, right, bottom in filter(None, image["boxes"]):
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
    assert "boxes" not in json.dumps(rest)
    assert "boxes" not in server.chat(QUESTION, max_tokens=4).text


def test_smaller_keep_of_one_request_is_its_own(server: ServingProcess, expected: Any) -> None:
    smaller = server.chat(QUESTION, max_tokens=4, keep=0.05).json["divprune"]["images"][0]
    assert smaller["num_kept"] < expected.images[0].num_kept
    default = server.chat(QUESTION, max_tokens=4).json["divprune"]["images"][0]
    assert default["num_kept"] == expected.images[0].num_kept


def test_seed_repeats_a_draw(server: ServingProcess) -> None:
    def draw(seed: int | None) -> str:
        return server.chat(QUESTION, max_tokens=12, temperature=1.5, seed=seed).answer

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_text_ends_the_answer_and_is_not_in_it(
    server: ServingProcess, expected: Any, stream: bool
) -> None:
    assert len(expected.text) > 4
    stop = expected.text[2:4]
    reply = server.chat(QUESTION, max_tokens=8, stop=[stop, "never"], stream=stream)
    assert reply.answer == expected.text[: expected.text.index(stop)]
    last = reply.events[-1] if stream else reply.json
    assert last["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "body,code",
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[]", "invalid_value"),
        (ask([{"type": "text", "text": "\ud800"}]), "invalid_json"),
        (ask(QUESTION, **{"\ud800": 1}), "invalid_json"),
        (ask(QUESTION, keep=0.9), "invalid_value"),
        (ask([QUESTION[0], {"type": "text", "text": "word " * 3000}]), "context_length_exceeded"),
        (ask([picture_part(b"no picture"), QUESTION[1]]), "invalid_image"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_request_is_an_error_object_with_its_status(
    server: ServingProcess, body: bytes, code: str, stream: bool
) -> None:
    if stream and body.startswith(b'{"messages": ['):
        body = body[:-1] + b', "stream": true}'
    reply = server.request("POST", "/v1/chat/completions", body)
    assert (reply.status, reply.error["code"]) == (400, code), reply.text
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.headers["x-should-retry"] == "false"
    assert "/" not in reply.error["message"].replace("and/or", "")


def test_other_model_does_not_exist(server: ServingProcess) -> None:
    reply = server.chat(QUESTION, model="gpt-5")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert server.chat(QUESTION, model=server.model, max_tokens=1).status == 200
    assert server.get("/v1/models/gpt-5").status == 404
    assert server.get(f"/v1/models/{server.model}").json["id"] == server.model


def test_models_say_what_can_be_kept(server: ServingProcess) -> None:
    (model,) = server.get("/v1/models").json["data"]
    assert model["divprune"]["num_kept"] < model["divprune"]["num_image_tokens"]
    assert model["divprune"]["baseline"] is True


def test_body_beyond_the_limit_is_refused(server: ServingProcess) -> None:
    reply = server.request("POST", "/v1/chat/completions", b"x" * (2**20 + 1))
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    picture = picture_part(noise_png(1, (1100, 1000)))
    reply = server.request("POST", "/v1/chat/completions", ask([picture, QUESTION[1]]))
    assert reply.status == 413


def test_picture_beyond_the_limit_is_refused(server: ServingProcess) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (2000, 1000)).save(file, "PNG")
    reply = server.chat([picture_part(file.getvalue()), QUESTION[1]])
    assert (reply.status, reply.error["code"]) == (400, "invalid_image")


def test_unknown_path_and_method_are_error_objects(server: ServingProcess) -> None:
    assert server.get("/v1/nothing").error["code"] == "not_found"
    assert server.get("/v1/chat/completions").status == 405
    assert server.get("/..%2f..%2fetc/passwd").status == 404


def test_other_names_and_origins_are_refused(server: ServingProcess) -> None:
    assert server.get("/health", Host="evil.example").status == 403
    body = ask(QUESTION, max_tokens=1)
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    assert server.request("POST", "/v1/chat/completions", body, headers).status == 403
    assert "access-control-allow-origin" not in server.get("/health").headers
    preflight = server.request("OPTIONS", "/v1/chat/completions", None, headers)
    assert preflight.status == 403


def test_only_health_and_the_page_need_no_key(guarded_server: ServingProcess) -> None:
    server = guarded_server
    for path in ("/health", "/health/ready", "/"):
        assert server.get(path).status == 200
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        reply = server.get(path)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert server.chat(QUESTION, key="wrong").error["code"] == "invalid_api_key"
    assert server.chat(QUESTION, key=KEYS[1], max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_goes_away_stops_its_answer(server: ServingProcess, stream: bool) -> None:
    gone = server.metric("requests_total", '{status="499"}')
    tokens = server.metric("generated_tokens_total")
    body = ask(QUESTION, max_tokens=1000, stream=stream)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        )
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        until(lambda: server.metric("requests_running") == 1)
    until(lambda: server.metric("requests_running") == 0, 5)
    until(lambda: server.metric("requests_total", '{status="499"}') == gone + 1)
    assert server.metric("generated_tokens_total") == tokens
    assert server.chat(QUESTION, max_tokens=2).status == 200


def test_client_that_goes_away_before_its_body_is_complete_is_no_trouble(
    server: ServingProcess,
) -> None:
    gone = server.metric("requests_total", '{status="499"}')
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
        time.sleep(0.1)
    until(lambda: server.metric("requests_total", '{status="499"}') == gone + 1)
    assert server.metric("requests_waiting") == 0


def in_threads(functions: list[Callable[[], Reply]]) -> list[Reply]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(lambda function: function(), functions))


def test_full_queue_says_when_to_come_again(engine_dir: Path) -> None:
    with ServingProcess(engine_dir, "--max-queue", 2) as server:
        asking = [lambda: server.chat(QUESTION, max_tokens=60)] * 12
        replies = in_threads(asking)
        statuses = {reply.status for reply in replies}
        assert statuses == {200, 429}
        for reply in replies:
            if reply.status == 429:
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                assert reply.error["type"] == "rate_limit_error"
        assert server.metric("requests_total", '{status="200"}') == sum(
            reply.status == 200 for reply in replies
        )


def test_answers_do_not_mix_between_clients(server: ServingProcess) -> None:
    questions = [
        [picture_part(noise_png(seed)), {"type": "text", "text": f"number {seed}"}]
        for seed in range(6)
    ]
    alone = [server.chat(question, max_tokens=10).answer for question in questions]
    together = in_threads(
        [lambda q=question: server.chat(q, max_tokens=10) for question in questions] * 2
    )
    assert [reply.answer for reply in together] == alone * 2


def test_termination_finishes_what_was_accepted_and_refuses_the_rest(engine_dir: Path) -> None:
    import threading

    server = ServingProcess(engine_dir)
    replies: list[Reply] = []
    threads = [
        threading.Thread(target=lambda: replies.append(server.chat(QUESTION, max_tokens=150)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: server.metric("requests_waiting") + server.metric("requests_running") == 6)
    started = time.monotonic()
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 6
    assert time.monotonic() - started < 30


def test_what_takes_longer_than_the_time_of_grace_is_told(engine_dir: Path) -> None:
    import threading

    server = ServingProcess(engine_dir, "--grace", 0)
    replies: list[Reply] = []
    threads = [
        threading.Thread(
            target=lambda stream=stream: replies.append(
                server.chat(QUESTION, max_tokens=1000, stream=stream)
            )
        )
        for stream in (True, False, True, False)
    ]
    for thread in threads:
        thread.start()
    until(lambda: server.metric("requests_waiting") + server.metric("requests_running") == 4)
    server.stop()
    for thread in threads:
        thread.join()
    for reply in replies:
        if reply.status == 200:  # a stream that had begun
            assert reply.events[-1]["error"]["code"] == "shutting_down"
        else:
            assert (reply.status, reply.error["code"]) == (503, "shutting_down")
