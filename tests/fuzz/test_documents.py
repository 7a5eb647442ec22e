"""A short form of what ``python -m tests.fuzz.documents`` does for as long as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from original_checkpoints import write_original
from PIL import Image

from divprune.runtime.cli.bench import main as bench
from tests.fuzz import documents
from tests.fuzz.documents import KINDS, Workplace, fuzz, try_one

SECONDS = 2.0  # of each kind
SEED = 20_261


@pytest.fixture(scope="module")
def place(
    engine_dir: Path,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("fuzz")
    picture, report = folder / "picture.png", folder / "report.json"
    Image.linear_gradient("L").convert("RGB").save(picture)
    options = ("--iters", "1", "--warmup", "0", "--no-probe", "-q", "--max-new-tokens", "2")
    assert bench([str(engine_dir), "--output", str(report), *options]) == 0
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVPRUNE_CACHE_DIR", str(folder / "cache"))
        source = checkpoint("clip-llama-v4-gqa2-full")
        original = write_original(folder / "original", source, pickled=True)
        yield Workplace(engine_dir, source, original, report, picture, folder / "work")


@pytest.mark.parametrize("kind", KINDS)
def test_no_tool_is_broken_by_a_damaged_document(place: Workplace, kind: str):
    counts, findings = fuzz(place, SEED, seconds=SECONDS, kinds=(kind,))
    assert counts[kind] > 0
    assert not findings, findings[0].what


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (lambda *_: iter([1]), "exit codes"),
        (lambda *_: iter(_sleep()), "longer than"),
        (lambda *_: iter(_fill()), "MB"),
    ],
)
def test_a_traceback_a_hang_and_much_memory_are_found(place, monkeypatch, document, said):
    monkeypatch.setitem(documents.KINDS, "bad", document)
    monkeypatch.setattr(documents, "SLOWEST", 1)
    monkeypatch.setattr(documents, "MOST_BYTES", 50_000_000)
    assert said in (try_one(place, "bad", "0/bad/0") or "")


def test_the_same_seed_makes_the_same_document():
    damaged = [documents.damage_json({"a": [1, {"b": "c"}]}, Random("7")) for _ in range(2)]
    assert damaged[0] == damaged[1]


def _sleep() -> Iterator[int]:
    time.sleep(5)
    yield 0


def _fill() -> Iterator[int]:
    yield len(bytearray(b"x") * 100_000_000) * 0
