"""The main job from end to end: export a checkpoint, ask about pictures it has never seen.

    python demo/demo.py

The checkpoint is the small trained model of ``models/small_scenes``. Each of its twenty example
scenes gets one question, answered with all visual tokens and with a tenth of them.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from divprune.runtime import Pipeline

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "small_scenes"
ENGINE = ROOT / "build" / "demo" / "engine"
OVERLAY = ROOT / "build" / "demo" / "kept.png"
KEEPS = (1.0, 0.1)


@dataclass(frozen=True)
class Question:
    """One line of ``questions.jsonl``."""

    image: str
    question: str
    answer: str
    type: str


@dataclass(frozen=True)
class Answer:
    """What the engines said; ``ttft`` in ms."""

    text: str
    ttft: float
    num_kept: int


def main() -> int:
    """Export once, ask everything with both fractions, show one picture's kept patches."""
    source = ("--model", MODEL / "checkpoint", "--keep", "0.1")
    run("divprune-export", *source, "--output", ENGINE, "--force")
    pipeline = Pipeline.from_dir(ENGINE)
    questions = read_questions()
    ask(pipeline, questions[0], 1.0)  # the first run of a graph is slower than the rest
    answers = [tuple(ask(pipeline, question, keep) for keep in KEEPS) for question in questions]
    print_table(list(zip(questions, answers, strict=True)))
    scene = MODEL / questions[0].image
    run("divprune-run", ENGINE, scene, "--prompt", questions[0].question, "--overlay", OVERLAY)
    print(f"The kept patches of {scene.name}: {OVERLAY.relative_to(ROOT)}")
    return 0


def read_questions() -> list[Question]:
    """All questions of the example scenes."""
    lines = (MODEL / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def ask(pipeline: Pipeline, question: Question, keep: float) -> Answer:
    """One answer with that fraction of the visual tokens."""
    image = MODEL / question.image
    result = pipeline.generate(image, question.question, keep=keep, max_new_tokens=64).result
    return Answer(result.text.strip(), result.timings.ttft, result.images[0].num_kept)


def print_table(rows: list[tuple[Question, tuple[Answer, ...]]]) -> None:
    """One question a scene, then how many of all questions were answered right."""
    tokens = [f"{answer.num_kept} tokens" for answer in rows[0][1]]
    columns = "".join(f"{column:<16}{'TTFT':>7}  " for column in tokens)
    print(f"{'question':<58}{'truth':<16}{columns}".rstrip())
    for question, (full, pruned) in one_a_scene(rows):
        words = f"{Path(question.image).stem} {question.question}"
        print(
            f"{words:<58}{question.answer:<16}{full.text[:15]:<16}{full.ttft:>4.0f} ms"
            f"  {pruned.text[:15]:<16}{pruned.ttft:>4.0f} ms"
        )
    print()
    for place, keep in enumerate(KEEPS):
        answers = [answers[place] for _, answers in rows]
        right = sum(
            answer.text == question.answer
            for (question, _), answer in zip(rows, answers, strict=True)
        )
        time = median(answer.ttft for answer in answers)
        print(
            f"keep {keep}: {answers[0].num_kept} visual tokens, {right} of {len(rows)} questions "
            f"right, median TTFT {time:.0f} ms"
        )
    print()


def one_a_scene(
    rows: list[tuple[Question, tuple[Answer, ...]]],
) -> Iterator[tuple[Question, tuple[Answer, ...]]]:
    """A question of each scene, of another kind from scene to scene; no long descriptions."""
    scenes = sorted({question.image for question, _ in rows})
    for number, scene in enumerate(scenes):
        own = [row for row in rows if row[0].image == scene and row[0].type != "description"]
        yield own[number % len(own)]


def run(tool: str, *arguments: str | Path) -> None:
    """Show a command as a user would type it, run it, and stop if it fails."""
    words = [str(a.relative_to(ROOT)) if isinstance(a, Path) else a for a in arguments]
    print(f"$ {tool} {shlex.join(words)}", flush=True)
    program = Path(sys.executable).with_name(tool)
    done = subprocess.run([program, *words], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
