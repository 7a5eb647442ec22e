"""The workload of a benchmark: fractions, prompt and answer length, checked to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.backends import check_choice
from divprune.runtime.directory.keep import AutoKeep, parse_keep
from divprune.runtime.directory.limits import answer_limit, validate_max_new_tokens
from divprune.runtime.errors import OptionError
from divprune.runtime.generation.kept_tokens import KeepRule
from divprune.runtime.reports.bench.layout import format_keep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.directory.manifest import Manifest

__all__ = [
    "BenchOptions",
    "check_prompt_tokens",
    "choose_keeps",
    "common_limit",
    "pad_prompt",
]

_FILLER = " and"


@dataclass(frozen=True)
class BenchOptions:
    """Options of a benchmark, validated when made.

    Attributes:
        keeps: Fractions kept, and similarities to reach; None asks for the exported fraction.
            Keep 1.0 joins by itself.
        prompt: The question.
        prompt_tokens: Text tokens to pad it to.
        max_new_tokens: Upper limit of an answer.
        ignore_eos: Go on to that limit whatever the model says.
        warmup: Rounds that do not count.
        iters: Rounds that count.
        backend: Name of a backend; None takes the one the directory was exported for.
        device: ``cpu`` or ``cuda``; None takes the GPU with TensorRT, otherwise the CPU.
        threads: Threads inside one operator; None leaves it to the backend.
        residency: ``sequential`` has vision or LLM in memory, one at a time.
        probe: Measure bandwidth and FLOP rate for the prediction.
    """

    keeps: tuple[Keep, ...] | None = None
    prompt: str = "Describe the image."
    prompt_tokens: int | None = None
    max_new_tokens: int = 64
    ignore_eos: bool = False
    warmup: int = 3
    iters: int = 10
    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    residency: str = "concurrent"
    probe: bool = True

    def __post_init__(self) -> None:
        for keep in self.keeps or ():
            parse_keep(keep)
        validate_max_new_tokens(self.max_new_tokens)
        check_choice(self.backend, self.device, self.threads, self.residency)
        for option, value, lowest in (("--iters", self.iters, 1), ("--warmup", self.warmup, 0)):
            if value < lowest:
                raise OptionError(
                    f"{option} must be at least {lowest}",
                    expected=f"{lowest} or more",
                    found=value,
                )


def choose_keeps(
    manifest: Manifest,
    asked: Sequence[Keep] | None,
    num_image_tokens: int | None = None,
    cover: NDArray[np.float32] | None = None,
) -> tuple[tuple[Keep, ...], list[str]]:
    """What to measure, ascending by the tokens kept, and notes about it.

    Keep 1.0 joins wherever the engine directory has the baseline. What keeps the same number of
    tokens is measured once. How many a similarity to reach keeps is not known without ``cover``:
    those come first then.

    Args:
        manifest: Manifest of the engine directory.
        asked: Fractions and similarities; None asks for the exported fraction.
        num_image_tokens: Of the picture, before pruning; None takes those of the largest one.
        cover: float32 [K], ``selection_cover`` of the picture, where it has been encoded.

    Raises:
        OptionError: for a fraction that this directory cannot serve.
        UnsupportedError: for a similarity where the graph tells no cover.
    """
    selector = manifest.selector
    total = num_image_tokens or selector.num_image_tokens
    by_count: dict[int, Keep] = {}
    unknown: list[AutoKeep] = []
    notes = []
    for keep in asked or (selector.keep,):
        rule = KeepRule.of(manifest, keep)
        if isinstance(keep, AutoKeep) and cover is None:
            if keep not in unknown:
                unknown.append(keep)
            continue
        count = rule.count(total, cover)
        if by_count.setdefault(count, keep) != keep:
            same = format_keep(by_count[count])
            notes.append(f"keep {format_keep(keep)} is the same {count} tokens as {same}")
    if manifest.baseline or selector.num_kept == selector.num_image_tokens:
        by_count[total] = 1.0
    else:
        notes.append("exported without the baseline: nothing can be compared with keep 1.0")
    known = (by_count[count] for count in sorted(by_count))
    unknown.sort(key=lambda keep: keep.cover)
    return (*unknown, *known), notes


def common_limit(
    manifest: Manifest,
    keeps: Sequence[Keep],
    text_tokens: int,
    max_new_tokens: int,
    num_image_tokens: int | None = None,
) -> tuple[int, list[str]]:
    """New tokens that every fraction has room for, so that all of them do the same work.

    Args:
        manifest: Manifest of the engine directory.
        keeps: What it can serve.
        text_tokens: Tokens of the prompt beside the picture's.
        max_new_tokens: What was asked for.
        num_image_tokens: Of the picture, before pruning; None takes those of the largest one.

    Raises:
        PromptError: if the prompt does not fit with one of them.
    """
    limit = max_new_tokens
    total = num_image_tokens or manifest.selector.num_image_tokens
    counts = {KeepRule.of(manifest, keep).count(total) for keep in keeps}
    for count in sorted(counts, reverse=True):  # the longest prompt first: it has the least room
        limit = answer_limit(
            manifest,
            max_new_tokens=limit,
            prompt_tokens=text_tokens + count,
            num_visual=count,
            next_position=text_tokens + count,
        )
    if limit == max_new_tokens:
        return limit, []
    return limit, [f"{limit} new tokens instead of {max_new_tokens}: the cache has no more room"]


def check_prompt_tokens(manifest: Manifest, wanted: int | None) -> None:
    """Check that a prompt of that many tokens is not too long for any fraction.

    Raises:
        OptionError: before anything of that length is made.
    """
    if wanted is not None and wanted > manifest.max_prefill_len:
        raise OptionError(
            "--prompt-tokens is more than this directory takes",
            expected=f"at most {manifest.max_prefill_len}, visual tokens included",
            found=wanted,
            fix=f"--prompt-tokens {manifest.max_prefill_len // 2}, or leave it out",
        )


def pad_prompt(prompt: str, wanted: int, count_tokens: Callable[[str], int]) -> str:
    """Add filler words to a prompt until it takes ``wanted`` text tokens, or just less.

    Args:
        prompt: The question.
        wanted: Text tokens, with those of the chat template.
        count_tokens: Counts the text tokens of a question.

    Raises:
        OptionError: if the prompt takes more than that already.
    """
    base = count_tokens(prompt)
    if base > wanted:
        raise OptionError(
            "--prompt-tokens is less than the prompt takes",
            expected=f"at least {base}",
            found=wanted,
        )
    low, high = 0, wanted - base + 1  # a word is one token or more
    while high - low > 1:
        middle = (low + high) // 2
        fits = count_tokens(prompt + _FILLER * middle) <= wanted
        low, high = (middle, high) if fits else (low, middle)
    return prompt + _FILLER * low
