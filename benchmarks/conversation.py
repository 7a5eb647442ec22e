r"""What a second question about the same picture costs, beside the first.

    python benchmarks/conversation.py ENGINE_DIR [--keep 1.0] [--rounds 7] [--output FILE.json] \
        [--second "what is in it?"]

Each round asks a first question about a picture that nothing is known of, then a second one in the
same conversation, and the same conversation anew without the cache. Times are those of one
process, taken by turns; the ratio is that of each round.

The tokenizer of a checkpoint with random weights knows few words and spells the others: a second
question of its words has as few tokens as a trained tokenizer makes of the default one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from divprune.runtime import Pipeline, __version__
from divprune.runtime.inputs.image_loading import load_image

PICTURE = Path(__file__).with_name("picture.jpg")
QUESTIONS = ("What is in the picture?", "And what stands behind it?")


def ask(pipeline: Pipeline, messages: list, **options) -> dict:
    result = pipeline.chat(messages, max_new_tokens=8, ignore_eos=True, **options).result
    return {
        "ttft_ms": result.timings.ttft,
        "prefilled": result.prompt_tokens - result.cached_tokens,
        "prompt_tokens": result.prompt_tokens,
        "text": result.text,
        "token_ids": list(result.token_ids),
    }


def one_round(pipeline: Pipeline, picture, keep: float | None, question: str) -> dict:
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [{"role": "user", "content": asked}]
    first = ask(pipeline, messages, keep=keep, reuse=False)
    messages += [
        {"role": "assistant", "content": first["text"] or "nothing"},
        {"role": "user", "content": question},
    ]
    second = ask(pipeline, messages, keep=keep)
    anew = ask(pipeline, messages, keep=keep, reuse=False)
    if second["token_ids"] != anew["token_ids"]:
        raise SystemExit("the conversation's token ids are not those of a fresh run")
    return {"first": first, "second": second, "anew": anew}


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", type=float, help="default: the one of the export")
    parser.add_argument("--second", default=QUESTIONS[1], help="question (default: %(default)s)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    pipeline = Pipeline.from_dir(arguments.engine_dir, threads=arguments.threads)
    picture = load_image(str(PICTURE))
    options = picture, arguments.keep, arguments.second
    one_round(pipeline, *options)  # warms up
    rounds = [one_round(pipeline, *options) for _ in range(arguments.rounds)]
    report = {
        "kind": "conversation",
        "engine": Path(pipeline.manifest.model.id).name,
        "backend": pipeline.backend.name,
        "machine": platform.processor() or platform.machine(),
        "version": __version__,
        "keep": arguments.keep or pipeline.manifest.selector.keep,
        "rounds": len(rounds),
        "second_question": arguments.second,
        "prefilled": {name: rounds[0][name]["prefilled"] for name in ("first", "second", "anew")},
        "ttft_ms": {
            name: spread([each[name]["ttft_ms"] for each in rounds])
            for name in ("first", "second", "anew")
        },
        "second_over_first": spread(
            [each["second"]["ttft_ms"] / each["first"]["ttft_ms"] for each in rounds]
        ),
        "second_over_anew": spread(
            [each["second"]["ttft_ms"] / each["anew"]["ttft_ms"] for each in rounds]
        ),
    }
    text = json.dumps(report, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
