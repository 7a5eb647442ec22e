"""Exact match on validation scenes while training goes on.

Answers are checked token by token with the right ones before them. Greedy decoding gives the
right answer exactly where every one of these tokens is right.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from models.small_scenes.batches import Batch, pack_questions
from models.small_scenes.exam import ExamScene, make_exam
from models.small_scenes.forward import encode_patches
from models.small_scenes.losses import answer_logits, to_pixel_values
from models.small_scenes.patch_labels import IGNORE

__all__ = ["validate"]

_SCENES = 160
_CHUNK = 20
_LENGTH = 192  # fits all questions about a scene of eight figures


@torch.no_grad()
def validate(model: Any, opening: torch.Tensor) -> dict[str, float]:
    """Fraction of right answers by kind of question, and of all."""
    exam = make_exam("validation", _SCENES)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(exam), _CHUNK):
        scenes = exam[start : start + _CHUNK]
        for kind, correct in _check(model, scenes, opening):
            right[kind].append(correct)
            right["all"].append(correct)
    return {kind: round(float(np.mean(values)), 4) for kind, values in right.items()}


def _check(model: Any, scenes: list[ExamScene], opening: torch.Tensor) -> list[tuple[str, bool]]:
    batch = _as_batch(scenes)
    patches = encode_patches(model.model.vision_tower, to_pixel_values(batch))
    predicted = answer_logits(model, patches, batch, opening).argmax(-1).numpy()
    asked = batch.targets != IGNORE
    wrong = np.zeros(asked.shape, bool)
    wrong[asked] = predicted != batch.targets[asked]
    results = []
    for row, scene in enumerate(scenes):
        for index, question in enumerate(scene.questions):
            own = asked[row] & (batch.owner[row] == index)
            if not own.any():
                raise ValueError(f"{_LENGTH} text rows are too few for the questions of a scene")
            results.append((question.kind, not wrong[row][own].any()))
    return results


def _as_batch(scenes: list[ExamScene]) -> Batch:
    """The questions of ``scenes`` as a batch; it has no patch labels."""
    packed = [pack_questions(list(scene.questions), _LENGTH) for scene in scenes]
    ids, owner, positions, targets = (np.stack(column) for column in zip(*packed, strict=True))
    none, nothing = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32)
    pixels = np.stack([scene.pixels for scene in scenes])
    return Batch(pixels, none, none, none, nothing, nothing, ids, owner, positions, targets)
