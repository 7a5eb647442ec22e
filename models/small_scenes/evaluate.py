"""Exact match of a checkpoint in transformers: ``python -m models.small_scenes.evaluate``.

Greedy answers to held-out questions, made by ``generate`` with the saved processor, beside two
baselines: the same model without the picture, and the commonest answer to each kind of question.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.small_scenes.exam import ExamScene, majority_answers, make_exam
from models.small_scenes.questions import KINDS, Question
from models.small_scenes.scenes import Split

__all__ = ["Transformers", "exact_match", "format_table", "main"]

MAX_NEW_TOKENS = 40
_BATCH = 64
Answers = list[str]


def main() -> None:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=here / "checkpoint")
    parser.add_argument("--scenes", type=int, default=300, help="of each split")
    parser.add_argument("--output", type=Path, default=here / "results" / "transformers.json")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = evaluate(Transformers(options.checkpoint), options.scenes)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(format_table(report))


def evaluate(model: Transformers, scenes: int) -> dict[str, dict[str, float]]:
    """Exact match by column (split and how it was answered) and kind of question."""
    usual = majority_answers(make_exam("validation", scenes))
    report = {}
    splits: tuple[tuple[str, Split], ...] = (("plain", "test"), ("hard", "hard"))
    for label, split in splits:
        exam = make_exam(split, scenes)
        report[f"{label}"] = exact_match(exam, model.answer)
        report[f"{label}, no picture"] = exact_match(exam, model.answer_blindly)
        report[f"{label}, majority"] = exact_match(
            exam, lambda _, questions: [usual[question.kind] for question in questions]
        )
    return report


class Transformers:
    """A checkpoint with its processor, as any user of transformers would load it."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        self._processor: Any = AutoProcessor.from_pretrained(checkpoint)
        self._processor.tokenizer.padding_side = "left"
        self._model: Any = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()

    def answer(self, pictures: list[Image.Image], questions: list[Question]) -> Answers:
        """Greedy answers, each question about its picture."""
        inputs = self._processor(
            images=pictures,
            text=self._prompts(questions, see=True),
            padding=True,
            return_tensors="pt",
        )
        return self._generate(inputs)

    def answer_blindly(self, pictures: list[Image.Image], questions: list[Question]) -> Answers:
        """The same without the picture."""
        inputs = self._processor(
            text=self._prompts(questions, see=False), padding=True, return_tensors="pt"
        )
        return self._generate(inputs)

    def _prompts(self, questions: list[Question], *, see: bool) -> list[str]:
        picture = [{"type": "image"}] if see else []
        return [
            self._processor.apply_chat_template(
                [{"role": "user", "content": [*picture, {"type": "text", "text": question.text}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]

    @torch.no_grad()
    def _generate(self, inputs: Any) -> Answers:
        new = self._model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = new[:, inputs["input_ids"].shape[1] :]
        answers: Answers = self._processor.batch_decode(new, skip_special_tokens=True)
        return answers


def exact_match(
    exam: list[ExamScene], answer: Callable[[list[Image.Image], list[Question]], Answers]
) -> dict[str, float]:
    """Percent of right answers by kind, of all questions, and how many there were."""
    pairs = [
        (Image.fromarray(item.pixels), question) for item in exam for question in item.questions
    ]
    # The long answers together: a batch decodes until its last answer ends.
    pairs.sort(key=lambda pair: pair[1].kind)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(pairs), _BATCH):
        chunk = pairs[start : start + _BATCH]
        questions = [question for _, question in chunk]
        given = answer([picture for picture, _ in chunk], questions)
        for question, text in zip(questions, given, strict=True):
            right[question.kind].append(text.strip() == question.answer)
    result = {kind: 100 * float(np.mean(right[kind])) for kind in KINDS if right[kind]}
    everything = [correct for values in right.values() for correct in values]
    return result | {"all": 100 * float(np.mean(everything)), "questions": len(everything)}


def format_table(report: dict[str, dict[str, float]]) -> str:
    """The report as a Markdown table: a row for each way of answering, kinds of question across."""
    columns = ["all", *KINDS]
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row, result in report.items():
        cells = [f"{result[kind]:.1f}" if kind in result else "" for kind in columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
