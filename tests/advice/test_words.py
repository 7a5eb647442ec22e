"""Advice in words: what it says is done, and the tool asked again."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.advice.covered import WORDS
from tests.advice.tools import attempt

RUN = "divprune-run {engine} -q --threads 1 --max-new-tokens 2"
EXPORT = "divprune-export --output {folder}/new --keep 0.1"
EVAL = "divprune-eval {engine} -q --max-new-tokens 1"
PLAN = "divprune-plan --board cpu-8gb"

CASES = {
    # Name: (what is refused, what its advice makes of it).
    "overlay on the picture": (
        f"{RUN} {{picture}} --overlay {{picture}}",
        f"{RUN} {{picture}} --overlay {{folder}}/other.png",
    ),
    "overlay inside the engine": (
        f"{RUN} {{picture}} --overlay {{engine}}/kept.png",
        f"{RUN} {{picture}} --overlay {{folder}}/kept.png",
    ),
    "overlay in no folder": (
        f"{RUN} {{picture}} --overlay {{folder}}/none/kept.png",
        f"{RUN} {{picture}} --overlay {{folder}}/there.png",
    ),
    "a conversation and a prompt": (
        f"{RUN} --messages {{talk}} --prompt What?",
        f"{RUN} --messages {{talk}}",
    ),
    "messages of another form": (
        f"{RUN} --messages {{no_talk}}",
        f"{RUN} --messages {{talk}}",
    ),
    "a placeholder in the prompt": (
        f"{RUN} {{picture}} --prompt '<image> What?'",
        f"{RUN} {{picture}} --prompt 'What?'",
    ),
    "frames without a video": (
        f"{RUN} {{picture}} --num-frames 4 --fps 2",
        f"{RUN} {{picture}}",
    ),
    "a video for a model of pictures": (
        f"{RUN} --video {{frames}}",
        f"{RUN} {{frames}}/0.png {{frames}}/1.png",
    ),
    "text called a picture": (f"{RUN} {{text}}", f"{RUN} {{picture}}"),
    "a picture cut off": (f"{RUN} {{cut}}", f"{RUN} {{picture}}"),
    "numbers of 32 bits": (f"{RUN} {{deep}}", f"{RUN} {{picture}}"),
    "floats of no scale": (f"{RUN} {{floats}}", f"{RUN} {{scaled}}"),
    "a line that is no sample": (f"{EVAL} {{no_questions}}", f"{EVAL} {{questions}}"),
    "a log of other questions": (
        f"{EVAL} {{other_questions}} --output {{log}}",
        f"{EVAL} {{other_questions}} --output {{folder}}/log",
    ),
    "a directory without a model": (
        f"{EXPORT} --model {{frames}}",
        f"{EXPORT} --model {{checkpoint}}",
    ),
    "a checkpoint called like a preset": (f"{PLAN} llava-1.5-7b", f"{PLAN} ./llava-1.5-7b"),
}


@pytest.fixture(scope="module")
def places(
    engine_dir: Path, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("words")
    names = {
        **{name: f"{name}.json" for name in ("talk", "no_talk")},
        **{name: f"{name}.jsonl" for name in ("questions", "no_questions", "other_questions")},
        **{name: f"{name}.png" for name in ("picture", "text", "cut")},
        **{name: f"{name}.tiff" for name in ("deep", "floats", "scaled")},
        **{name: name for name in ("frames", "log")},
    }
    paths = {name: folder / file for name, file in names.items()}
    paths |= {"engine": engine_dir, "checkpoint": checkpoint("clip-llama-hub")}
    _write_pictures(paths)
    part = {"type": "image", "image": str(paths["picture"])}
    question = {"type": "text", "text": "What?"}
    paths["talk"].write_text(json.dumps([{"role": "user", "content": [part, question]}]))
    paths["no_talk"].write_text(json.dumps({"prompt": "What?"}))
    row = {"image": str(paths["picture"]), "question": "What?", "answer": "red"}
    paths["questions"].write_text(json.dumps(row) + "\n")
    paths["other_questions"].write_text(json.dumps({**row, "question": "Where?"}) + "\n")
    paths["no_questions"].write_text(json.dumps({**row, "question": 7}) + "\n")
    command = f"{EVAL} {paths['questions']} --output {paths['log']}".format(engine=engine_dir)
    assert attempt(shlex.split(command)).code == 0
    return paths


def _write_pictures(paths: dict[str, Path]) -> None:
    ramp = Image.linear_gradient("L").convert("RGB")
    ramp.save(paths["picture"])
    paths["text"].write_text("no picture")
    paths["cut"].write_bytes(paths["picture"].read_bytes()[:200])
    grey = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    Image.fromarray((grey * 1e5).astype(np.int32)).save(paths["deep"])
    Image.fromarray(grey * 1000).save(paths["floats"])
    Image.fromarray((grey * 255).astype(np.uint8)).save(paths["scaled"])
    paths["frames"].mkdir()
    for number in range(2):
        ramp.save(paths["frames"] / f"{number}.png")


@pytest.mark.parametrize("name", CASES)
def test_doing_what_the_words_say_mends_it(places, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(places["checkpoint"], "llava-1.5-7b")
    before, after = (
        shlex.split(command.format(**places, folder=tmp_path)) for command in CASES[name]
    )
    refused = attempt(before, whole=False)
    assert refused.code != 0, refused.message
    assert WORDS[name] in refused.keys, (refused.keys, refused.message)
    mended = attempt(after, whole=False)
    assert mended.code == 0, (refused.message, mended.message)


@pytest.mark.parametrize(
    ("words", "wrong", "right", "key"),
    [
        ("{picture} --prompt -", b"\xff", b"What?\n", "a question piped in"),
        ("-", None, None, "a picture piped in"),
    ],
)
def test_what_is_to_be_piped_in_is_taken(places, words, wrong, right, key):
    command = shlex.split(f"{RUN} {words}".format(**places))
    refused = attempt(command, wrong)
    assert refused.code == 2
    assert WORDS[key] in refused.keys, (refused.keys, refused.message)
    piped = places["picture"].read_bytes() if right is None else right
    assert attempt(command, piped).code == 0


def test_every_advice_in_words_has_its_case():
    assert {*CASES, "a question piped in", "a picture piped in"} == WORDS.keys()
