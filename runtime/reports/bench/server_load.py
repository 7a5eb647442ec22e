"""Measure a server of OpenAI's chat API, ours or another, from the outside.

Every request has a picture of its own, so that no server answers from a cache of pictures, and
times are those of a client: from the first byte sent to the first piece of text, retries after 429
included. What waited in the server's queue is told apart where the server says so.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError, OptionError
from divprune.runtime.reports.bench.statistics import describe

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.reports.bench.report import Stat

__all__ = ["LoadOptions", "LoadRow", "measure_server", "parse_clients", "render_load"]

_TIMEOUT_S = 600
_BUSY = (429, 503)
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class LoadOptions:
    """What is asked, and of whom.

    Attributes:
        url: Where the server is, with or without ``/v1``.
        clients: Clients at once, measured one number after the other.
        prompt: The question.
        max_new_tokens: Longest answer.
        warmup: Requests of each client that do not count.
        iters: Requests of each client that count.
        model: Its name; None takes the first that the server lists.
        api_key: Sent where there is one.
    """

    url: str
    clients: tuple[int, ...] = (1, 4, 16)
    prompt: str = "Describe the image."
    max_new_tokens: int = 64
    warmup: int = 1
    iters: int = 10
    model: str | None = None
    api_key: str | None = None

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(
                "--serve takes the address of a server",
                expected="such as http://127.0.0.1:8000",
                found=self.url,
            )


@dataclass(frozen=True)
class _Sample:
    ttft_ms: float
    tpot_ms: float | None
    queue_ms: float | None
    tokens: int
    prompt_tokens: int | None
    refused: int


@dataclass(frozen=True)
class LoadRow:
    """What a number of clients saw.

    Attributes:
        clients: How many there were.
        requests: Answers that were complete.
        failures: Requests that were not, by reason.
        refused: Times a client was told to come again.
        ttft_ms: From a client's first try to its first piece of text.
        tpot_ms: Each token after the first.
        queue_ms: What the server says it waited; None where it does not say.
        tokens_per_second: Of all clients together.
        requests_per_second: The same.
        prompt_tokens: Median, as the server counts them.
    """

    clients: int
    requests: int
    failures: dict[str, int]
    refused: int
    ttft_ms: Stat | None
    tpot_ms: Stat | None
    queue_ms: Stat | None
    tokens_per_second: float
    requests_per_second: float
    prompt_tokens: int | None

    def to_dict(self) -> dict[str, Any]:
        """Fields as ``--json`` prints them."""
        return asdict(self)


def parse_clients(text: str) -> tuple[int, ...]:
    """Numbers of clients from ``1,4,16``.

    Raises:
        OptionError: for anything else.
    """
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise OptionError(
            "--clients is not a list of numbers", expected="such as 1,4,16", found=text
        )
    return numbers


def measure_server(
    options: LoadOptions,
    image: Image.Image,
    progress: Callable[[str], None] = lambda _: None,
) -> list[LoadRow]:
    """One row for each number of clients.

    Raises:
        BackendError: if no server is there, or it answers nothing at all.
    """
    server = _Server(options)
    model = options.model or server.first_model()
    rows = []
    for clients in options.clients:
        progress(f"{clients} client{'s' if clients > 1 else ''}")
        rows.append(_measure(server, options, model, image, clients))
    return rows


def render_load(rows: Sequence[LoadRow]) -> str:
    """A table of rows, times in ms."""
    head = ("clients", "answers", "TTFT p50", "p90", "p99", "TPOT p50", "queue p50", "tokens/s",
            "refused", "failed")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        ttft = row.ttft_ms
        times = (ttft.p50, ttft.p90, ttft.p99) if ttft else (None,) * 3
        tpot, queue = (stat.p50 if stat else None for stat in (row.tpot_ms, row.queue_ms))
        figures = [_shown(value) for value in (*times, tpot, queue, row.tokens_per_second)]
        failed = sum(row.failures.values())
        lines.append((str(row.clients), str(row.requests), *figures, str(row.refused), str(failed)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = (
        "  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(table) + "\n"


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _measure(
    server: _Server, options: LoadOptions, model: str, image: Image.Image, clients: int
) -> LoadRow:
    tally = _Tally()
    gate = threading.Barrier(clients + 1)

    def work(client: int) -> None:
        for number in range(options.warmup):
            tally.run(server, _body(options, model, image, client, -1 - number), counts=False)
        gate.wait()
        for number in range(options.iters):
            tally.run(server, _body(options, model, image, client, number), counts=True)

    threads = [
        threading.Thread(target=work, args=(client,), daemon=True) for client in range(clients)
    ]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return tally.row(clients, time.perf_counter() - start)


@dataclass
class _Tally:
    samples: list[_Sample] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, server: _Server, body: bytes, *, counts: bool) -> None:
        try:
            sample = server.ask(body)
        except (OSError, http.client.HTTPException, _FailedError, ValueError) as error:
            reason = str(error) or type(error).__name__
            with self.lock:
                self.failures[reason] = self.failures.get(reason, 0) + 1
            return
        if counts:
            with self.lock:
                self.samples.append(sample)

    def row(self, clients: int, seconds: float) -> LoadRow:
        samples = self.samples
        if not samples and self.failures:
            raise BackendError("the server gave no answer", found=next(iter(self.failures)))
        prompts = sorted(sample.prompt_tokens for sample in samples if sample.prompt_tokens)
        return LoadRow(
            clients=clients,
            requests=len(samples),
            failures=dict(self.failures),
            refused=sum(sample.refused for sample in samples),
            ttft_ms=describe([sample.ttft_ms for sample in samples]),
            tpot_ms=describe([sample.tpot_ms for sample in samples if sample.tpot_ms is not None]),
            queue_ms=describe(
                [sample.queue_ms for sample in samples if sample.queue_ms is not None]
            ),
            tokens_per_second=sum(sample.tokens for sample in samples) / seconds,
            requests_per_second=len(samples) / seconds,
            prompt_tokens=prompts[len(prompts) // 2] if prompts else None,
        )


class _FailedError(Exception):
    """A request that came to nothing."""


class _Server:
    """Asks over HTTP, one connection a request."""

    def __init__(self, options: LoadOptions) -> None:
        parts = urllib.parse.urlsplit(options.url)
        self._secure = parts.scheme == "https"
        self._address = parts.netloc
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if options.api_key:
            self._headers["Authorization"] = f"Bearer {options.api_key}"

    def first_model(self) -> str:
        try:
            connection = self._connect()
            connection.request("GET", f"{self._path}/models", headers=self._headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise BackendError(
                    "the server lists no models", found=_message(response.status, body)
                )
            return str(json.loads(body)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError) as error:
            raise BackendError(
                "no server of OpenAI's API answers there",
                expected=f"a list of models at {self._address}{self._path}/models",
                found=str(error) or type(error).__name__,
                fix="divprune-serve ENGINE_DIR",
            ) from error

    def ask(self, body: bytes) -> _Sample:
        start, refused = time.perf_counter(), 0
        while True:
            connection = self._connect()
            try:
                connection.request("POST", f"{self._path}/chat/completions", body, self._headers)
                response = connection.getresponse()
                if response.status == 200:
                    return _read(response, start, refused)
                told = response.read()
                if response.status not in _BUSY or time.perf_counter() - start > _TIMEOUT_S:
                    raise _FailedError(_message(response.status, told))
                refused += 1
                time.sleep(min(_LONGEST_WAIT_S, float(response.getheader("Retry-After") or 1)))
            finally:
                connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._address, timeout=_TIMEOUT_S)


def _read(response: http.client.HTTPResponse, start: float, refused: int) -> _Sample:
    first = last = None
    pieces = 0
    usage: dict[str, Any] = {}
    queue_ms = None
    for event in _events(response):
        if "error" in event:
            raise _FailedError(str(event["error"].get("message", event["error"])))
        usage = event.get("usage") or usage
        timings = (event.get("divprune") or {}).get("timings_ms") or {}
        queue_ms = timings.get("queue", queue_ms)
        if any((choice.get("delta") or {}).get("content") for choice in event.get("choices", ())):
            last = time.perf_counter()
            first = first or last
            pieces += 1
    end = time.perf_counter() if last is None else last
    tokens = int(usage.get("completion_tokens", pieces))
    first = end if first is None else first
    return _Sample(
        ttft_ms=1000 * (first - start),
        tpot_ms=1000 * (end - first) / (tokens - 1) if tokens > 1 and pieces > 1 else None,
        queue_ms=queue_ms,
        tokens=tokens,
        prompt_tokens=usage.get("prompt_tokens"),
        refused=refused,
    )


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := response.readline():
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)
    raise _FailedError("the stream ended without [DONE]")


def _message(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


def _body(options: LoadOptions, model: str, image: Image.Image, client: int, number: int) -> bytes:
    """A request whose picture differs from all others in its first pixel."""
    picture = image.copy()
    picture.putpixel((0, 0), (client % 256, number % 256, (client >> 8) % 256))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": options.prompt},
    ]
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": options.max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
