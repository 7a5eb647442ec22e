"""The checkpoint in the repository: small, loadable, and it sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image

from models.small_scenes.evaluate import Transformers, exact_match
from models.small_scenes.exam import make_exam

FOLDER = Path(__file__).parents[2] / "models" / "small_scenes"
MAX_BYTES = 10_000_000
LEAST_PERCENT = 90.0  # the model card has the figure for 2,330 questions; here are few


@pytest.fixture(scope="module")
def model():
    return Transformers(FOLDER / "checkpoint")


def test_the_weights_are_small_enough_to_ship():
    assert (FOLDER / "checkpoint" / "model.safetensors").stat().st_size <= MAX_BYTES


def test_it_answers_questions_about_pictures_it_never_saw(model):
    result = exact_match(make_exam("test", 16, first=20_000), model.answer)
    assert result["questions"] > 100
    assert result["all"] >= LEAST_PERCENT


def test_it_is_lost_without_the_picture(model):
    exam = make_exam("test", 12, first=20_000)
    assert exact_match(exam, model.answer_blindly)["all"] < 50


def test_the_twenty_scenes_are_what_the_script_writes():
    lines = (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["image"] for record in records}) == 20
    exam = make_exam("test", 14, first=10_000) + make_exam("hard", 6, first=10_000)
    for number, item in enumerate(exam):
        name = f"scenes/{number:02}.png"
        with Image.open(FOLDER / name) as picture:
            assert picture.tobytes() == item.pixels.tobytes()
        asked = [(r["question"], r["answer"]) for r in records if r["image"] == name]
        assert asked == [(question.text, question.answer) for question in item.questions]
