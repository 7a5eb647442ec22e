"""The one thread that answers: jobs from the queue, one after the other, on one pipeline."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

from divprune.runtime.generation.generation import InterruptedAnswerError
from divprune.runtime.memory import release_freed_memory
from divprune.runtime.serving.answers.ahead import Ahead
from divprune.runtime.serving.errors import ApiError, draining, from_exception

if TYPE_CHECKING:
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.pipeline import Pipeline
    from divprune.runtime.serving.answers.job import Job
    from divprune.runtime.serving.answers.queueing import FairQueue
    from divprune.runtime.serving.metrics import Metrics

__all__ = ["Engine"]

_IDLE_S = 10.0


class Engine:
    """Owns a pipeline: nothing else may touch it once the thread runs.

    Args:
        pipeline: A loaded engine directory.
        queue: Where jobs come from.
        metrics: What is counted.
        encode_ahead: Encode pictures of the next job while an answer is being decoded.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        queue: FairQueue[Job],
        metrics: Metrics,
        *,
        encode_ahead: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._queue = queue
        self._metrics = metrics
        self._current: Job | None = None
        self._ahead = Ahead(pipeline, queue, metrics.encoded_ahead) if encode_ahead else None
        self._thread = threading.Thread(target=self._run, name="divprune-engine", daemon=True)

    @property
    def running(self) -> bool:
        """An answer is being made; one that its client may have in full by now is not."""
        job = self._current
        return job is not None and not job.finished

    @property
    def alive(self) -> bool:
        """The thread has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        if self._ahead is not None:
            self._ahead.start()

    def look_ahead(self) -> None:
        """A job has been put into the queue."""
        if self._ahead is not None:
            self._ahead.look()

    def stop(self, grace_s: float) -> None:
        """Finish what was accepted; what is not done after ``grace_s`` is told so."""
        self._queue.close()
        if self._ahead is not None:
            self._ahead.end()
        self._thread.join(grace_s)
        for job in [*self._queue.drain(), self._current]:
            if job is not None:
                job.finish(None, draining())
        self._thread.join(grace_s)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._current = job
            if self._ahead is not None:
                self._ahead.wait_for(job)
            try:
                self._answer(job)
            finally:
                if self._ahead is not None:
                    self._ahead.decode_ends()
                self._current = None
                del job  # pictures are large, and the next job may be long in coming

    def _next(self) -> Job | None:
        """The next job, however long it takes to come; None at the end."""
        if (job := self._queue.take(_IDLE_S)) is None:
            release_freed_memory()  # what answers left behind is the system's while nobody asks
            job = self._queue.take()
        return job

    def _answer(self, job: Job) -> None:
        job.started = monotonic()
        self._metrics.queued.add(job.started - job.accepted)
        try:
            result = self._generate(job)
        except Exception as error:
            job.finish(None, from_exception(error))
            return
        self._queue.note_duration(monotonic() - job.started)
        if result is not None:
            self._count(job, result)
        job.finish(result, None if result else ApiError(499, "the client went away"))

    def _generate(self, job: Job) -> GenerationResult | None:
        """The result; None if nobody waits for it any more."""
        work = job.work
        try:
            generation = self._pipeline.chat(
                work.messages,
                keep=work.keep,
                max_new_tokens=work.max_tokens,
                sampling=work.sampling,
                stop=work.stop,
                scope=work.scope,
                interrupted=lambda: job.abandoned or job.finished,
            )
            job.begin(generation.prefill)
            if self._ahead is not None:
                self._ahead.decode_begins()
            for piece in generation:
                job.push(piece)
            return generation.result
        except InterruptedAnswerError:
            return None

    def _count(self, job: Job, result: GenerationResult) -> None:
        metrics, now = self._metrics, monotonic()
        kept = sum(image.num_kept for image in result.images)
        metrics.prompt_tokens.add(result.prompt_tokens)
        metrics.cached_tokens.add(result.cached_tokens)
        metrics.image_tokens.add(kept)
        metrics.pruned_tokens.add(sum(image.num_image_tokens for image in result.images) - kept)
        metrics.generated_tokens.add(len(result.token_ids))
        if job.first_token is not None:
            metrics.ttft.add(job.first_token - job.accepted)
        if result.images:
            metrics.vision.add(result.timings.vision / 1000)
        if (per_token := result.timings.decode_per_token) is not None:
            metrics.token.add(per_token / 1000)
        metrics.seconds.add(now - job.accepted)
