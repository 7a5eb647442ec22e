"""The application: OpenAI's chat API, its health, its metrics, and a page.

request ─► access ─► body ─► place in the queue ─► decode pictures ─► queue ─► engine thread
                           └──────── a thread of the pool ────────┘      ◄─ pieces of text
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from divprune.runtime.directory.keep import parse_keep
from divprune.runtime.generation.kept_tokens import KeepRule
from divprune.runtime.memory import rss
from divprune.runtime.serving.access import Access
from divprune.runtime.serving.answers.engine import Engine
from divprune.runtime.serving.answers.job import ChatWork, Job
from divprune.runtime.serving.answers.queueing import FairQueue, Place
from divprune.runtime.serving.answers.responses import AnswerResponse, GoneResponse, error_response
from divprune.runtime.serving.answers.wire import AnswerFormat
from divprune.runtime.serving.errors import ApiError, from_exception, unknown_model
from divprune.runtime.serving.gate import Gate
from divprune.runtime.serving.metrics import CONTENT_TYPE, Metrics
from divprune.runtime.serving.page import page_response
from divprune.runtime.serving.requests.intake import ClientGoneError, parse_json, read_body
from divprune.runtime.serving.requests.media import decode_messages, read_media
from divprune.runtime.serving.requests.schema import ChatRequest, parse_chat_request

if TYPE_CHECKING:
    from starlette.requests import Request

    from divprune.runtime.pipeline import Pipeline
    from divprune.runtime.serving.options import ServerOptions

__all__ = ["ChatServer"]

T = TypeVar("T")
_DECODERS = 2
_FETCHERS = 8


@dataclass(frozen=True)
class _TakenIn:
    """A request that waits for its answer."""

    chat: ChatRequest
    place: Place[Job]
    job: Job


class ChatServer:
    """One pipeline behind an ASGI application.

    Args:
        pipeline: A loaded engine directory, which from now on belongs to the server.
        options: Limits and switches.

    Attributes:
        app: The ASGI application.
        metrics: What is counted.
    """

    def __init__(self, pipeline: Pipeline, options: ServerOptions) -> None:
        self._pipeline = pipeline
        self._options = options
        self._fingerprint = _fingerprint(pipeline)
        self._created = int(time.time())
        self._access = Access(options.api_keys, options.allowed_hosts)
        self._queue: FairQueue[Job] = FairQueue(options.max_queue, options.max_waiting_bytes)
        self._fetch = _fetcher(options)
        self._pool = ThreadPoolExecutor(_FETCHERS if self._fetch else _DECODERS, "divprune-media")
        self._draining = False
        self.metrics = _metrics(pipeline)
        self._engine = Engine(
            pipeline, self._queue, self.metrics, encode_ahead=options.encode_ahead
        )
        # In this order: a request that is taken out of the queue meanwhile is not counted twice.
        self.metrics.gauge("requests_running", "Answers being made.", lambda: self._engine.running)
        self.metrics.gauge("requests_waiting", "Requests in the queue.", lambda: len(self._queue))
        self.app = self._build()

    @property
    def alive(self) -> bool:
        """The engine thread is there to answer."""
        return self._engine.alive

    def drain(self) -> None:
        """Take nothing more; finish what was accepted, or tell it, within the time of grace."""
        self._draining = True
        self._engine.stop(self._options.grace_s)

    def _build(self) -> Starlette:
        routes = [
            Route("/", page_response),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
            Route("/health/ready", self._ready),
            Route("/metrics", self._metrics_page),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_error},
        )
        app.add_middleware(Gate, access=self._access, count=self.metrics.requests.add)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._engine.start()
        yield
        await asyncio.to_thread(self.drain)
        self._pool.shutdown(wait=False)

    async def _chat(self, request: Request) -> Response:
        try:
            return await self._accept(request)
        except ClientGoneError:
            return GoneResponse()
        except ApiError as error:
            return error_response(error)

    async def _accept(self, request: Request) -> Response:
        body = await read_body(request, self._options.max_body, self._options.body_timeout_s)
        loop = asyncio.get_running_loop()
        taking = self._pool.submit(self._take_in, body, request, loop)
        try:
            taken = await asyncio.wrap_future(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._put_back)
            raise
        except Exception as error:
            raise from_exception(error) from error
        answer = AnswerFormat(
            self._options.model_name, self._fingerprint, include_usage=taken.chat.include_usage
        )
        return AnswerResponse(
            taken.job,
            answer,
            self._describe(taken.job.work.messages, taken.chat.kept_boxes),
            stream=taken.chat.stream,
            release=lambda: self._queue.release(taken.place),
        )

    def _take_in(self, body: bytes, request: Request, loop: asyncio.AbstractEventLoop) -> _TakenIn:
        """Everything from the body to a job in the queue, in one turn of a thread beside the loop.

        Every change of threads costs a part of a millisecond before the first token.
        """
        chat, messages, media = self._read(body)
        owner = request.scope["divprune.owner"]
        client = f"{owner} {request.client.host if request.client else ''}"
        place = self._queue.reserve(client, sum(medium.num_bytes for medium in media))
        try:
            start = time.monotonic()
            decoded = decode_messages(messages, media)
            job = Job(
                self._work(chat, decoded, owner),
                deadline=time.monotonic() + self._options.timeout_s,
                loop=loop,
                arrived=request.scope["divprune.arrived"],
                decode_s=time.monotonic() - start,
            )
            self._queue.commit(place, job)
            self._engine.look_ahead()
        except BaseException:
            self._queue.release(place)
            raise
        return _TakenIn(chat, place, job)

    def _put_back(self, taking: Future[_TakenIn]) -> None:
        """Nobody is left who would wait for the job of a request."""
        if not taking.cancelled() and taking.exception() is None:
            taking.result().job.abandon()
            self._queue.release(taking.result().place)

    def _read(self, body: bytes) -> tuple[ChatRequest, list[dict[str, Any]], list[Any]]:
        chat = parse_chat_request(parse_json(body))
        if chat.model is not None and chat.model != self._options.model_name:
            raise unknown_model(chat.model, self._options.model_name)
        if chat.keep is not None:
            KeepRule.of(self._pipeline.manifest, parse_keep(chat.keep))
        return (chat, *read_media(chat.messages, self._options, self._fetch))

    def _work(self, chat: ChatRequest, messages: list[dict[str, Any]], owner: str) -> ChatWork:
        from divprune.runtime.generation.sampling import SamplingOptions

        keep = self._options.keep if chat.keep is None else chat.keep
        limit = self._options.max_tokens
        sampling = SamplingOptions(chat.temperature, chat.top_p, chat.seed)
        return ChatWork(
            messages, keep, min(chat.max_tokens or limit, limit), sampling, chat.stop, owner
        )

    def _describe(
        self, messages: list[dict[str, Any]], with_boxes: bool
    ) -> Callable[[Sequence[Any]], Awaitable[list[dict[str, Any]]]]:
        """A function from the pruning of all pictures to what a client is told about it."""
        from divprune.runtime.serving.answers.boxes import describe_pruning

        pictures = [
            part[part["type"]]
            for message in messages
            for part in message["content"]
            if part["type"] != "text"
        ]
        if with_boxes:  # which takes preparing every picture once more
            return lambda images: self._in_pool(describe_pruning, self._pipeline, pictures, images)
        return functools.partial(_at_once, describe_pruning, self._pipeline, None)

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, function, *arguments)
        except Exception as error:
            raise from_exception(error) from error

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_record()]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._options.model_name:
            return error_response(unknown_model(name, self._options.model_name))
        return JSONResponse(self._model_record())

    def _model_record(self) -> dict[str, Any]:
        manifest = self._pipeline.manifest
        selector = manifest.selector
        return {
            "id": self._options.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "divprune-edge",
            "divprune": {
                "selector": selector.name,
                "keep": self._options.keep if self._options.keep is not None else selector.keep,
                "exported_keep": selector.keep,
                "nested": selector.nested,
                "baseline": manifest.baseline,
                "auto": any(
                    tensor.name == "selection_cover" for tensor in manifest.graphs["vision"].outputs
                ),
                "num_image_tokens": selector.num_image_tokens,
                "num_kept": selector.num_kept,
                "max_prompt_tokens": manifest.max_prefill_len,
                "context_length": manifest.max_seq_len,
            },
        }

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        state = "draining" if self._draining else "ready"
        return JSONResponse({"status": state}, 503 if self._draining else 200)

    async def _metrics_page(self, _: Request) -> Response:
        return PlainTextResponse(self.metrics.render(), media_type=CONTENT_TYPE)


async def _at_once(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def _fingerprint(pipeline: Pipeline) -> str:
    """What answers with equal seeds have in common."""
    made_of = f"{pipeline.manifest} {pipeline.backend.name}"
    return "fp_" + hashlib.sha256(made_of.encode()).hexdigest()[:12]


def _fetcher(options: ServerOptions) -> Callable[[str], bytes] | None:
    if not options.allow_urls:
        return None
    from divprune.runtime.serving.requests.fetching import Fetcher

    return Fetcher(options.allow_urls, options.max_body)


def _metrics(pipeline: Pipeline) -> Metrics:
    metrics, cache = Metrics(), pipeline.picture_cache
    metrics.counter("picture_cache_hits_total", "Pictures found encoded.", lambda: cache.hits)
    metrics.counter("picture_cache_misses_total", "Pictures to encode.", lambda: cache.misses)
    metrics.gauge("picture_cache_bytes", "Features of pictures.", lambda: cache.num_bytes)
    metrics.gauge("resident_memory_bytes", "Resident memory of the process.", rss)
    return metrics


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "not_found" if error.status_code == 404 else "method_not_allowed"
    return error_response(ApiError(error.status_code, str(error.detail), code=kind))
