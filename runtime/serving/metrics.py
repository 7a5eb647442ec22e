"""Counters of a server in Prometheus' text format.

``prometheus_client`` would do the same for one more package, 50 ms of start-up and several MiB;
what is used of it here is this file.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

__all__ = ["CONTENT_TYPE", "Counter", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_PREFIX = "divprune_"


class Counter:
    """A number that only grows, for each value of a label."""

    def __init__(self, name: str, text: str, label: str | None = None) -> None:
        self._name, self._text, self._label = _PREFIX + name, text, label
        self._values: dict[str, float] = {} if label else {"": 0}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, label: str = "") -> None:
        """Count."""
        with self._lock:
            self._values[label] = self._values.get(label, 0) + amount

    def value(self, label: str = "") -> float:
        """The count so far."""
        return self._values.get(label, 0)

    def lines(self) -> Iterator[str]:
        """Lines of the text format."""
        yield from _head(self._name, self._text, "counter")
        with self._lock:
            values = sorted(self._values.items())
        for label, value in values:
            tail = f'{{{self._label}="{label}"}}' if self._label else ""
            yield (
                f"{self._name}{tail} {value:g}" if value % 1 else f"{self._name}{tail} {value:.0f}"
            )


class Histogram:
    """How often a duration in seconds fell below each of several bounds."""

    def __init__(self, name: str, text: str, bounds: Sequence[float] = _SECONDS) -> None:
        self._name, self._text, self._bounds = _PREFIX + name, text, tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count a duration."""
        with self._lock:
            self._counts[bisect_left(self._bounds, seconds)] += 1
            self._sum += seconds

    def lines(self) -> Iterator[str]:
        """Lines of the text format."""
        yield from _head(self._name, self._text, "histogram")
        with self._lock:
            counts, total = list(self._counts), self._sum
        seen = 0
        for bound, count in zip((*self._bounds, "+Inf"), counts, strict=True):
            seen += count
            yield f'{self._name}_bucket{{le="{bound}"}} {seen}'
        yield f"{self._name}_sum {total:.6f}"
        yield f"{self._name}_count {seen}"


class Metrics:
    """What a server counts.

    Attributes:
        requests: Finished requests by status; ``499`` is a client that went away.
        prompt_tokens: Rows of prompts, cached ones included.
        cached_tokens: Rows that were in the KV cache already.
        image_tokens: Visual tokens that the language model saw.
        pruned_tokens: Visual tokens that were removed.
        generated_tokens: Tokens of answers.
        encoded_ahead: Requests whose pictures were encoded while another was answered.
        ttft: Seconds from acceptance to first token.
        queued: Seconds from acceptance to the start of the work.
        vision: Seconds of the vision graph.
        token: Seconds a token after the first.
        seconds: From acceptance to the end of the answer.
    """

    def __init__(self) -> None:
        self.requests = Counter("requests_total", "Finished requests by HTTP status.", "status")
        self.prompt_tokens = Counter("prompt_tokens_total", "Prompt tokens, pruned ones left out.")
        self.cached_tokens = Counter(
            "cached_prompt_tokens_total", "Prompt tokens taken from the KV cache."
        )
        self.image_tokens = Counter("kept_image_tokens_total", "Visual tokens kept.")
        self.pruned_tokens = Counter("pruned_image_tokens_total", "Visual tokens pruned away.")
        self.generated_tokens = Counter("generated_tokens_total", "Tokens of answers.")
        self.encoded_ahead = Counter(
            "requests_encoded_ahead_total", "Requests whose pictures were encoded while waiting."
        )
        self.ttft = Histogram("time_to_first_token_seconds", "From acceptance to first token.")
        self.queued = Histogram("queue_seconds", "From acceptance to the start of the work.")
        self.vision = Histogram("vision_seconds", "Vision graph, selection included.")
        self.token = Histogram(
            "time_per_output_token_seconds", "Mean of each answer.", _TOKEN_SECONDS
        )
        self.seconds = Histogram("request_seconds", "From acceptance to the end of the answer.")
        self._read: list[tuple[str, str, str, Callable[[], float | None]]] = []

    def gauge(self, name: str, text: str, read: Callable[[], float | None]) -> None:
        """Add a number that is read whenever somebody asks; None leaves it out."""
        self._read.append(("gauge", _PREFIX + name, text, read))

    def counter(self, name: str, text: str, read: Callable[[], float | None]) -> None:
        """Add a number that only grows and is counted elsewhere."""
        self._read.append(("counter", _PREFIX + name, text, read))

    def render(self) -> str:
        """Everything in the text format."""
        lines: list[str] = []
        for metric in vars(self).values():
            if isinstance(metric, (Counter, Histogram)):
                lines.extend(metric.lines())
        for kind, name, text, read in self._read:
            if (value := read()) is not None:
                lines.extend((*_head(name, text, kind), f"{name} {value:.12g}"))
        return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
