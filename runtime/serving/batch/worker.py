"""What answers rows: in this process, or in a process of its own on some machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import DivPruneError, printable

if TYPE_CHECKING:
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.serving.batch.table import Row

__all__ = ["Answerer", "WorkerOptions", "failed_answer"]


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker answers.

    Attributes:
        engine_dir: Path of the engine directory, the same on every machine.
        keep: Fraction of visual tokens kept, or ``auto:C``; None: as exported.
        max_new_tokens: Longest answer.
        sampling: How tokens are chosen; with a seed, every row draws from the same.
        backend: Name of a backend; None: what the directory was exported for.
        device: ``cpu`` or ``cuda``.
        threads: Threads inside one operator.
    """

    engine_dir: str
    keep: float | str | None
    max_new_tokens: int
    sampling: SamplingOptions
    backend: str | None = None
    device: str | None = None
    threads: int | None = None


class Answerer:
    """A loaded engine directory.

    Raises:
        DivPruneError: if it cannot be loaded.
    """

    def __init__(self, options: WorkerOptions) -> None:
        from divprune.runtime.pipeline import Pipeline

        self._options = options
        self._pipeline = Pipeline.from_dir(
            options.engine_dir,
            backend=options.backend,
            device=options.device,
            threads=options.threads,
        )

    def answer_all(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """An answer or an error for each row."""
        return [self.answer(row) for row in rows]

    def answer(self, row: Row) -> dict[str, Any]:
        """The answer; what is wrong with a row becomes its error."""
        if row.problem is not None:
            return failed_answer(row.key, row.problem)
        start = perf_counter()
        try:
            result = self._pipeline.generate(
                row.images,
                row.prompt,
                keep=self._options.keep,
                max_new_tokens=self._options.max_new_tokens,
                sampling=self._options.sampling,
            ).result
        except DivPruneError as error:
            return failed_answer(row.key, str(error))
        except Exception as error:  # one row must not end a run of a million
            return failed_answer(row.key, printable(f"{type(error).__name__}: {error}"))
        return {
            "id": row.key,
            "answer": result.text,
            "error": None,
            "finish_reason": result.finish_reason,
            "num_image_tokens": sum(image.num_image_tokens for image in result.images),
            "num_kept": sum(image.num_kept for image in result.images),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": len(result.token_ids),
            "ttft_ms": round(result.timings.ttft, 3),
            "total_ms": round(1000 * (perf_counter() - start), 3),
        }

    def pid(self) -> int:
        """The process this runs in; answers as soon as everything is loaded."""
        return os.getpid()


def failed_answer(key: str, error: str) -> dict[str, Any]:
    """The row of a question that was not answered."""
    return {"id": key, "answer": None, "error": error}
