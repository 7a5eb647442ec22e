"""Training batches, made beside the training in a process of their own.

Batch ``number`` of a stage depends on the seed alone, so a resumed run sees what the
uninterrupted one would have seen.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.small_scenes.checkpoint_files import PATCH_SIZE, make_tokenizer
from models.small_scenes.patch_labels import IGNORE, label_patches
from models.small_scenes.questions import Question, ask
from models.small_scenes.scenes import Scene, make_scene, render, scene_rng

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "PREFIX",
    "TEXT_LENGTH",
    "Batch",
    "BatchRequest",
    "make_batch",
    "pack_questions",
    "stream_batches",
]

PREFIX = ("USER:", " ASSISTANT:")  # around "<image>\nquestion", as the chat template writes it
TEXT_LENGTH = 144
_WEIGHTS = {  # what is learned last is asked most
    "count": 3.0,
    "colour": 0.6,
    "shape": 1.0,
    "size": 0.6,
    "presence": 1.2,
    "relation": 5.0,
    "position": 2.6,
}


@dataclass(frozen=True)
class BatchRequest:
    """What the pictures of a stage are like. ``first`` is the number of its first scene."""

    seed: int
    first: int
    size: int
    large: float = 0.45
    most: int = 8
    text: bool = True


@dataclass(frozen=True)
class Batch:
    """B pictures, their patch labels, and T text rows of questions each.

    pixels uint8 [B, H, W, 3]; shape, colour, size int64 [B, N]; centre float32 [B, N]; offset
    float32 [B, N, 2]; ids, owner, positions, targets int64 [B, T]. ``owner`` numbers the
    questions, ``positions`` count from the first row behind the picture, ``targets`` holds the
    next token where it belongs to an answer.
    """

    pixels: NDArray[np.uint8]
    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    size: NDArray[np.int64]
    centre: NDArray[np.float32]
    offset: NDArray[np.float32]
    ids: NDArray[np.int64]
    owner: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]


def make_batch(request: BatchRequest, number: int) -> Batch:
    """Batch ``number``: new scenes, each with a description and as many questions as fit."""
    rows = []
    for index in range(request.size):
        place = request.first + number * request.size + index
        rng = scene_rng(request.seed, "train", place)
        scene = make_scene(rng, "train", most=request.most, large=request.large)
        picture = render(scene, rng)
        labels = label_patches(scene, picture.owner, PATCH_SIZE)
        questions = _questions(scene, rng) if request.text else []
        rows.append((picture.pixels, *vars(labels).values(), *pack_questions(questions)))
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    return Batch(
        **{field.name: column for field, column in zip(fields(Batch), columns, strict=True)}
    )


def _questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    names = list(_WEIGHTS)
    chance = np.array(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())
    kinds = ["description", *rng.choice(names, size=16, p=chance)]
    asked = [ask(scene, str(kind), rng) for kind in kinds]
    return list(dict.fromkeys(question for question in asked if question is not None))


def pack_questions(
    questions: list[Question], length: int = TEXT_LENGTH
) -> tuple[NDArray[np.int64], ...]:
    """ids, owner, positions, targets, each [length], of the questions that fit."""
    ids = np.zeros(length, np.int64)
    owner = np.full(length, len(questions), np.int64)
    positions = np.zeros(length, np.int64)
    targets = np.full(length, IGNORE, np.int64)
    start = 0
    for index, question in enumerate(questions):
        asked, answer = _encode(question.text + PREFIX[1]), _encode(question.answer)
        end = start + len(asked) + len(answer)
        if end > length:
            continue
        ids[start:end] = asked + answer
        owner[start:end] = index
        positions[start:end] = np.arange(end - start)
        targets[end - len(answer) - 1 : end] = [*answer, _end_id()]
        start = end
    return ids, owner, positions, targets


@cache
def _encode(text: str) -> list[int]:
    ids: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@cache
def _tokenizer() -> Tokenizer:
    return make_tokenizer()


@cache
def _end_id() -> int:
    return int(_tokenizer().token_to_id("</s>"))


def stream_batches(request: BatchRequest, start: int, stop: int) -> Iterator[Batch]:
    """Batches ``start`` to ``stop`` - 1, a few of them made ahead in another process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(maxsize=6)
    worker = context.Process(target=_produce, args=(queue, request, start, stop), daemon=True)
    worker.start()
    try:
        for _ in range(start, stop):
            yield queue.get(timeout=600)
    finally:
        worker.terminate()
        worker.join()


def _produce(queue: Any, request: BatchRequest, start: int, stop: int) -> None:
    for number in range(start, stop):
        queue.put(make_batch(request, number))
