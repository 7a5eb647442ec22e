"""Advice in words: what it says is done, and the tool asked again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.reports.eval.log import SampleLog
from tests.advice.covered import WORDS
from tests.advice.tools import assert_gave, attempt, refused

RUN = "divprune-run {engine} -q --threads 1 --max-new-tokens 2"
EXPORT = "divprune-export --output {folder}/new --keep 0.1"
TINY = "divprune-export --keep 0.1 --model {checkpoint}"
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
    "an output that is there": (
        f"{TINY} --output {{log}}",
        f"{TINY} --output {{folder}}/new",
    ),
    "an output that is no export": (
        f"{TINY} --output {{frames}} --force",
        f"{TINY} --output {{folder}}/new",
    ),
    "an output below a file": (
        f"{TINY} --output {{text}}/engine",
        f"{TINY} --output {{folder}}/new",
    ),
    "a directory in another encoding": (
        f"{RUN} {{picture}}".replace("{engine}", "{odd}"),
        f"{RUN} {{picture}}",
    ),
    "a prompt in another encoding": (
        f"{RUN} {{picture}} --prompt caf\udce9",
        f"{RUN} {{picture}} --prompt café",
    ),
    "a prompt that is too long": (
        f"{RUN} {{picture}} --prompt '{'word ' * 600}'",
        f"{RUN} {{picture}} --prompt 'word'",
    ),
    "an overlay too wide for its format": (
        f"{RUN} {{wide}} --overlay {{folder}}/kept.webp",
        f"{RUN} {{wide}} --overlay {{folder}}/kept.png",
    ),
    "a picture that is one line": (f"{RUN} {{line}}", f"{RUN} {{picture}}"),
    "two directories of one name": (
        f"{EVAL} {{same}} {{questions}}",
        f"{EVAL} {{renamed}} {{questions}}",
    ),
    "a keep that nobody serves": (
        f"{EVAL} {{renamed}} {{questions}} --keep 0.1,0.5",
        f"{EVAL} {{questions}}",
    ),
    "a log that is none": (
        f"{EVAL} {{questions}} --output {{no_log}}",
        f"{EVAL} {{questions}} --output {{no_log}} --force",
    ),
    "a cache too small for a picture": (
        "divprune-plan {checkpoint} --keep 1.0 --max-seq-len 20",
        "divprune-plan {checkpoint} --keep 1.0 --max-seq-len 120",
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
        **{name: f"{name}.png" for name in ("picture", "text", "cut", "wide", "line")},
        **{name: f"{name}.tiff" for name in ("deep", "floats", "scaled")},
        **{name: name for name in ("frames", "log", "no_log", "renamed")},
        "same": f"same/{engine_dir.name}",
        "odd": os.fsdecode(b"odd\xff"),
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
    for name in ("same", "renamed"):
        shutil.copytree(engine_dir, paths[name])
    paths["odd"].mkdir()
    paths["no_log"].mkdir()
    (paths["no_log"] / f"{engine_dir.name}.jsonl").write_text("notes of mine\n")
    command = f"{EVAL} {paths['questions']} --output {paths['log']}".format(engine=engine_dir)
    assert attempt(shlex.split(command)).code == 0
    return paths


def _write_pictures(paths: dict[str, Path]) -> None:
    ramp = Image.linear_gradient("L").convert("RGB")
    ramp.save(paths["picture"])
    ramp.resize((17000, 40)).save(paths["wide"])
    ramp.resize((60000, 1)).save(paths["line"])
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
    refusal = attempt(before, whole=False)
    assert_gave(refusal, WORDS[name])
    mended = attempt(after, whole=False)
    assert mended.code == 0, (refusal.message, mended.message)


@pytest.mark.parametrize(
    ("words", "wrong", "right", "key"),
    [
        ("{picture} --prompt -", b"\xff", b"What?\n", "a question piped in"),
        ("-", None, None, "a picture piped in"),
    ],
)
def test_what_is_to_be_piped_in_is_taken(places, words, wrong, right, key):
    command = shlex.split(f"{RUN} {words}".format(**places))
    assert_gave(attempt(command, wrong), WORDS[key])
    piped = places["picture"].read_bytes() if right is None else right
    assert attempt(command, piped).code == 0


def test_a_log_in_use_is_waited_for(tmp_path):
    path = tmp_path / "a.jsonl"
    with SampleLog(path, {}):
        assert_gave(refused(lambda: SampleLog(path, {})), WORDS["a log in use"])
    with SampleLog(path, {}):
        pass


def test_every_advice_in_words_has_its_case():
    assert {*CASES, "a question piped in", "a picture piped in", "a log in use"} == WORDS.keys()
