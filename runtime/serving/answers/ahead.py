"""Encode the pictures of the request that comes next while an answer is being decoded.

Where decoding leaves a processor idle this shortens the next answer's wait by the vision graph;
where it does not, the answer that is being made pays for it. So it is switched on by hand.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.pipeline import Pipeline
    from divprune.runtime.serving.answers.job import Job
    from divprune.runtime.serving.answers.queueing import FairQueue
    from divprune.runtime.serving.metrics import Counter

__all__ = ["Ahead"]

log = logging.getLogger(__name__)


class Ahead:
    """A thread beside the engine's: at most one request is encoded ahead, and only during a decode.

    Args:
        pipeline: The engine's.
        queue: Where the next job waits.
        encoded: Counts jobs whose pictures were encoded ahead.
    """

    def __init__(self, pipeline: Pipeline, queue: FairQueue[Job], encoded: Counter) -> None:
        self._pipeline = pipeline
        self._queue = queue
        self._encoded = encoded
        self._changed = threading.Condition()
        self._decoding = False
        self._ended = False
        self._in_hand: Job | None = None
        self._thread = threading.Thread(target=self._run, name="divprune-ahead", daemon=True)

    def start(self) -> None:
        """Begin to look at the queue."""
        self._thread.start()

    def end(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def look(self) -> None:
        """A job has been put into the queue."""
        with self._changed:
            self._changed.notify_all()

    def decode_begins(self) -> None:
        """Engine: from now on tokens are decoded."""
        with self._changed:
            self._decoding = True
            self._changed.notify_all()

    def decode_ends(self) -> None:
        """Engine: the answer is complete, or nobody wants it."""
        with self._changed:
            self._decoding = False

    def wait_for(self, job: Job) -> None:
        """Engine: this job is next; if it is being encoded, that is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_hand is not job)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._pipeline.encode_ahead(job.work.messages, scope=job.work.scope)
                self._encoded.add()
            except Exception as error:  # its own turn will say what is wrong, to its client
                log.debug("a request could not be encoded ahead: %s", error)
            finally:
                with self._changed:
                    self._in_hand = None
                    self._changed.notify_all()
                del job  # pictures are large, and the next job may be long in coming

    def _next(self) -> Job | None:
        """The job to encode; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._choose())
            return None if self._ended else self._in_hand

    def _choose(self) -> bool:
        job = self._queue.peek() if self._decoding else None
        if job is None or job.seen_ahead or not job.work.has_media:
            return False
        job.seen_ahead = True
        self._in_hand = job
        return True
