"""Held-out pictures with one question of every kind that the scene allows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.small_scenes.questions import KINDS, Question, ask
from models.small_scenes.scenes import Scene, Split, make_scene, render, scene_rng

__all__ = ["EXAM_SEED", "ExamScene", "majority_answers", "make_exam"]

EXAM_SEED = 0  # of every figure reported, whatever the training's seed


@dataclass(frozen=True)
class ExamScene:
    """A scene, its picture uint8 [H, W, 3] and the questions about it."""

    scene: Scene
    pixels: NDArray[np.uint8]
    questions: tuple[Question, ...]


def make_exam(split: Split, scenes: int, *, first: int = 0) -> list[ExamScene]:
    """Scenes ``first`` to ``first + scenes`` - 1 of a split: about 7.6 questions each."""
    exam = []
    for number in range(first, first + scenes):
        rng = scene_rng(EXAM_SEED, split, number)
        scene = make_scene(rng, split)
        picture = render(scene, rng)
        asked = [ask(scene, kind, rng) for kind in KINDS]
        questions = tuple(question for question in asked if question is not None)
        exam.append(ExamScene(scene, picture.pixels, questions))
    return exam


def majority_answers(exam: list[ExamScene]) -> dict[str, str]:
    """The commonest answer to each kind of question."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for item in exam:
        for question in item.questions:
            counts[question.kind][question.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items() if answers}
