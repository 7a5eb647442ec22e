"""How the HTML report writes numbers, and what it calls the stages."""

from __future__ import annotations

from divprune.runtime.reports.bench.layout import format_ms

__all__ = [
    "NONE",
    "STAGE_NAMES",
    "TTFT_STAGES",
    "format_joules",
    "format_rate",
    "format_size",
    "format_time",
    "format_times",
    "format_watts",
]

STAGE_NAMES = {
    "preprocess": "Preprocess",
    "vision": "Vision",
    "selection": "Selection alone",
    "merge": "Merge",
    "prefill": "Prefill",
    "first_sample": "First token",
    "ttft": "Time to first token",
    "decode_per_token": "Decode, per token",
}
TTFT_STAGES = ("preprocess", "vision", "merge", "prefill", "first_sample")
NONE = "\N{EN DASH}"


def format_times(ratio: float) -> str:
    """How often one time holds another, with the digits that matter."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.95 else f"{ratio:.2f}x"


def format_time(ms: float) -> str:
    """Milliseconds, or seconds from ten on."""
    return f"{ms / 1000:.1f} s" if ms >= 10_000 else f"{format_ms(ms)} ms"


def format_rate(rate: float | None) -> str:
    """Something a second; a dash where it is not known."""
    return NONE if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def format_size(num_bytes: int) -> str:
    """Bytes in the largest binary unit that they fill."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{num_bytes} B"


def format_watts(watts: float) -> str:
    """Power."""
    return f"{watts:.1f} W"


def format_joules(joules: float) -> str:
    """Energy."""
    return f"{joules:,.0f} J" if joules >= 100 else f"{joules:.2f} J"
