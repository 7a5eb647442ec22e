"""Scenes, questions and labels of the small model: right answers, honest splits."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from models.small_scenes.backgrounds import HARD_BACKGROUNDS, PLAIN_BACKGROUNDS
from models.small_scenes.batches import TEXT_LENGTH, BatchRequest, make_batch, pack_questions
from models.small_scenes.checkpoint_files import PATCH_SIZE, make_tokenizer
from models.small_scenes.exam import make_exam
from models.small_scenes.patch_labels import IGNORE, label_patches
from models.small_scenes.questions import KINDS, NUMBERS, Question
from models.small_scenes.scenes import (
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    make_scene,
    render,
    scene_rng,
)

SPLITS = ("train", "validation", "test", "hard")


@pytest.fixture(scope="module")
def exam():
    return make_exam("test", 60) + make_exam("hard", 20)


def test_the_same_number_gives_the_same_picture_and_other_splits_another():
    pictures = []
    for split in (*SPLITS, "train"):
        rng = scene_rng(0, split, 7)
        pictures.append(render(make_scene(rng, split), rng).pixels)
    assert (pictures[0] == pictures[-1]).all()
    assert len({picture.tobytes() for picture in pictures}) == len(SPLITS)


def test_no_test_scene_is_a_training_scene():
    def figures(split):
        return {make_scene(scene_rng(0, split, n), split).figures for n in range(200)}

    seen = figures("train") | figures("validation")
    assert not seen & (figures("test") | figures("hard"))


def test_figures_neither_overlap_nor_share_their_x():
    for number in range(200):
        figures = make_scene(scene_rng(3, "hard", number), "hard").figures
        assert 6 <= len(figures) <= 8
        for left, right in itertools.pairwise(figures):
            assert right.x - left.x >= 5
        for index, one in enumerate(figures):
            for other in figures[index + 1 :]:
                assert math.dist((one.x, one.y), (other.x, other.y)) > one.radius + other.radius


def test_hard_backgrounds_are_never_seen_in_training():
    assert not set(HARD_BACKGROUNDS) & set(PLAIN_BACKGROUNDS)
    seen = {make_scene(scene_rng(0, "train", n), "train").background for n in range(200)}
    assert seen == set(PLAIN_BACKGROUNDS)


def _matching(scene: Scene, words: str):
    """Figures that fit a description like "small red circle" or "large object"."""
    wanted = set(words.split()) - {"object"}
    return [f for f in scene.figures if wanted <= {f.size, f.colour, f.shape}]


def _singular(noun: str) -> str:
    return {"crosses": "cross", "objects": "object"}.get(noun, noun.removesuffix("s"))


def _solve(scene: Scene, question: str) -> str:
    """Answer from the words of the question alone."""
    if match := re.fullmatch(r"What (colour|shape|size) is the (.*)\?", question):
        (figure,) = _matching(scene, match[2])
        return str(getattr(figure, match[1]))
    if match := re.fullmatch(r"How many (.*) are there\?", question):
        *colour, noun = match[1].split()
        return NUMBERS[len(_matching(scene, " ".join([*colour, _singular(noun)])))]
    if match := re.fullmatch(r"Is there a (.*)\?", question):
        return "yes" if _matching(scene, match[1]) else "no"
    if match := re.fullmatch(r"Where is the (.*)\?", question):
        (figure,) = _matching(scene, match[1])
        half = IMAGE_SIZE / 2
        row = "top" if figure.y < half else "bottom"
        return f"{row} {'left' if figure.x < half else 'right'}"
    if match := re.fullmatch(r"Is the (.*) (left of|right of|above|below) the (.*)\?", question):
        (one,), (other,) = _matching(scene, match[1]), _matching(scene, match[3])
        holds = {
            "left of": one.x < other.x,
            "right of": one.x > other.x,
            "above": one.y < other.y,
            "below": one.y > other.y,
        }[match[2]]
        return "yes" if holds else "no"
    assert question == "Describe the picture."
    return ", ".join(f"{f.size} {f.colour} {f.shape}" for f in scene.figures)


def test_answers_follow_from_the_words_of_the_question(exam):
    asked = [(item.scene, question) for item in exam for question in item.questions]
    assert {question.kind for _, question in asked} == set(KINDS)
    for scene, question in asked:
        assert _solve(scene, question.text) == question.answer, question


def test_the_tokenizer_knows_every_word_and_gives_it_back(exam):
    tokenizer = make_tokenizer()
    unknown = tokenizer.token_to_id("<unk>")
    for item in exam:
        for question in item.questions:
            ids = tokenizer.encode(question.answer, add_special_tokens=False).ids
            assert tokenizer.decode(ids) == question.answer
            assert unknown not in tokenizer.encode(question.text).ids


def test_patch_labels_are_those_of_the_figure_that_covers_the_patch():
    grid = IMAGE_SIZE // PATCH_SIZE
    for number in range(20):
        rng = scene_rng(5, "train", number)
        scene = make_scene(rng, "train")
        labels = label_patches(scene, render(scene, rng).owner, PATCH_SIZE)
        assert labels.centre.sum() == len(
            {(int(f.x // PATCH_SIZE), int(f.y // PATCH_SIZE)) for f in scene.figures}
        )
        for figure in scene.figures:
            place = int(figure.y // PATCH_SIZE) * grid + int(figure.x // PATCH_SIZE)
            assert labels.shape[place] == SHAPES.index(figure.shape) + 1
            assert labels.colour[place] == list(COLOURS).index(figure.colour)
            assert labels.size[place] == list(SIZES).index(figure.size)
            column, row = place % grid + 0.5, place // grid + 0.5
            found = labels.offset[place] + (column, row)
            np.testing.assert_allclose(found * PATCH_SIZE, (figure.x, figure.y), atol=1e-3)


def test_targets_are_the_answer_and_its_end():
    tokenizer = make_tokenizer()
    questions = [
        Question("size", "What size is the red star?", "large"),
        Question("position", "Where is the red star?", "top left"),
    ]
    ids, owner, positions, targets = pack_questions(questions)
    assert len(ids) == TEXT_LENGTH
    for index, question in enumerate(questions):
        own = owner == index
        answer = targets[own & (targets != IGNORE)]
        assert tokenizer.decode(answer.tolist(), skip_special_tokens=False) == (
            question.answer + "</s>"
        )
        assert positions[own].tolist() == list(range(own.sum()))
        assert tokenizer.decode(ids[own].tolist()).endswith(": " + question.answer)


def test_batches_do_not_depend_on_where_a_run_began():
    request = BatchRequest(seed=2, first=100, size=2)
    again = BatchRequest(seed=2, first=102, size=2)
    assert (make_batch(request, 1).pixels == make_batch(again, 0).pixels).all()
    assert (make_batch(request, 1).ids == make_batch(again, 0).ids).all()
