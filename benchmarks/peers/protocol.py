"""What ``compare.py`` and the workers say to each other: one JSON object a line.

A worker runs in its runtime's own environment. It loads, prints ``{"ready": …}``, and answers
each request with the times of one answer; what it cannot do it leaves out. Standard library
only: the environments share nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["TEXT_TOKENS", "Request", "now", "peak_rss", "serve", "summarise_steps"]

TEXT_TOKENS = 60  # beside the picture: 636 positions with 576 visual tokens, 118 with 58


@dataclass(frozen=True)
class Request:
    """One answer about one picture of noise.

    Attributes:
        side: Of the picture, in pixels.
        image_tokens: Visual tokens that the model makes of it.
        kept_tokens: How many of them the language model sees.
        new_tokens: Length of the answer.
    """

    side: int
    image_tokens: int
    kept_tokens: int
    new_tokens: int

    @property
    def prunes(self) -> bool:
        """Whether some of the picture's tokens are dropped."""
        return self.kept_tokens < self.image_tokens

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self))


def serve(facts: dict[str, Any], answer: Callable[[Request], dict[str, float]]) -> None:
    """Answer requests until standard input ends.

    Args:
        facts: What is said of the runtime: its name, version, and what was loaded.
        answer: From a request to ``vision``, ``prefill``, ``ttft`` in seconds,
            ``decode_tokens_per_s`` and ``prompt_tokens``.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not disturb the conversation
    print(json.dumps({"ready": facts}), file=out, flush=True)
    for line in sys.stdin:
        result = answer(Request(**json.loads(line)))
        print(json.dumps(result | {"peak_rss": peak_rss()}), file=out, flush=True)


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def summarise_steps(started: float, stamps: list[float]) -> dict[str, float]:
    """Prefill time and decode rate from the times at which the tokens were there."""
    after_first = stamps[-1] - stamps[0]
    return {
        "prefill": stamps[0] - started,
        "decode_tokens_per_s": (len(stamps) - 1) / after_first if len(stamps) > 1 else 0.0,
    }


def now() -> float:
    """Seconds of a clock that only goes forward."""
    return time.perf_counter()
