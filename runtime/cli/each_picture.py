"""One answer for each of many pictures; a picture that fails does not end the others."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import (
    DivPruneError,
    ImageError,
    NumericalError,
    PromptError,
    printable,
)

if TYPE_CHECKING:
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.pipeline import Pipeline

__all__ = ["answer_each"]

# What is wrong with one picture; anything else would be wrong with all of them.
_OF_ONE_PICTURE = (ImageError, NumericalError, PromptError)


def answer_each(
    arguments: argparse.Namespace, pipeline: Pipeline, sampling: SamplingOptions
) -> int:
    """Ask about one picture after the other.

    Returns:
        The exit code: 2 if a picture failed, which its line or a message on stderr says.
    """
    failed = 0
    for source in arguments.images:
        try:
            result: GenerationResult | DivPruneError = _answer(
                source, arguments, pipeline, sampling
            )
        except _OF_ONE_PICTURE as error:
            result = error
            failed += 1
        if arguments.jsonl:
            print(json.dumps(_line(source, result)), flush=True)
        elif isinstance(result, DivPruneError):
            print(f"error: {result}", file=sys.stderr)
        else:
            print(f"{printable(source)}: {result.text}", flush=True)
    if failed and not arguments.quiet:
        total = len(arguments.images)
        print(f"{total - failed} of {total} pictures answered, {failed} failed", file=sys.stderr)
    return 2 if failed else 0


def _answer(
    source: str, arguments: argparse.Namespace, pipeline: Pipeline, sampling: SamplingOptions
) -> GenerationResult:
    from divprune.runtime.inputs.image_loading import load_image
    from divprune.runtime.inputs.messages import question

    return pipeline.chat(
        question(arguments.prompt, [load_image(source)], arguments.system),
        keep=arguments.keep,
        max_new_tokens=arguments.max_new_tokens,
        sampling=sampling,
        stop=arguments.stop,
    ).result


def _line(source: str, result: GenerationResult | DivPruneError) -> dict[str, Any]:
    if isinstance(result, DivPruneError):
        return {"image": source, "error": str(result)}
    return {"image": source, **result.to_dict()}
