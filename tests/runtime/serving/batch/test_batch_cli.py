"""``divprune-batch`` whole, in the process; test_cluster.py has what needs Ray."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime import Pipeline
from divprune.runtime.cli.batch import main
from tests.runtime.serving.serving_process import noise_png

pytest.importorskip("onnxruntime")

COMMAND = [sys.executable, "-m", "divprune.runtime.cli.batch"]
SECONDS = 240
PICTURES = 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 questions about four pictures, and two rows that cannot be answered."""
    folder = tmp_path_factory.mktemp("rows")
    for seed in range(PICTURES):
        (folder / f"{seed}.png").write_bytes(noise_png(seed))
    (folder / "broken.png").write_bytes(noise_png(0)[:200])
    records: list[dict[str, Any]] = [
        {"id": f"r{n}", "image": f"{n % PICTURES}.png", "prompt": f"Number {n % 10}?"}
        for n in range(120)
    ]
    records += [{"id": "broken", "image": "broken.png"}, {"id": "none", "image": "none.png"}]
    random.Random(0).shuffle(records)
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--max-new-tokens", "6", "--threads", "1", "--quiet"])


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """Every answer, each key once."""
    found = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    counts = Counter(record["id"] for record in found)
    assert set(counts.values()) == {1}, counts.most_common(3)
    return {record["id"]: record for record in found}


@pytest.fixture(scope="module")
def expected(rows: Path, engine_dir: Path) -> dict[str, str]:
    """What each row's question is answered alone, as ``divprune-run`` does."""
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    asked = [json.loads(line) for line in rows.open()]
    return {
        row["id"]: pipeline.generate(
            rows.parent / row["image"], row["prompt"], max_new_tokens=6, reuse=False
        ).result.text
        for row in asked
        if "prompt" in row
    }


def check(folder: Path, expected: dict[str, str]) -> None:
    found = answers(folder)
    assert {key: row["answer"] for key, row in found.items() if row["error"] is None} == expected
    assert set(found) - set(expected) == {"broken", "none"}
    assert "cannot be decoded" in found["broken"]["error"]
    assert "does not exist" in found["none"]["error"]


def test_answers_are_those_of_run_and_bad_pictures_are_rows(
    rows: Path, engine_dir: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    assert run(engine_dir, rows, tmp_path / "out") == 0
    check(tmp_path / "out", expected)
    row = answers(tmp_path / "out")["r0"]
    assert 0 < row["num_kept"] < row["num_image_tokens"]
    assert row["ttft_ms"] > 0


def test_run_again_asks_nothing_twice(
    rows: Path, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(engine_dir, rows, tmp_path / "out") == 0
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    loader = "divprune.runtime.serving.batch.run.Answerer"
    monkeypatch.setattr(loader, lambda _: pytest.fail("the model was loaded"))
    assert run(engine_dir, rows, tmp_path / "out") == 0
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_folder_of_pictures_to_parquet(rows: Path, engine_dir: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra batch is not installed")
    output = tmp_path / "answers.parquet"
    assert run(engine_dir, rows.parent, output, "--prompt", "Number 0?") == 0
    table = parquet.read_table(output / "part-00000.parquet").to_pylist()
    assert [row["id"] for row in table] == ["0.png", "1.png", "2.png", "3.png", "broken.png"]
    assert [row["error"] is None for row in table] == [True] * 4 + [False]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--image-column", "file"], "no column 'file'"),
        (["--key-column", "name"], "no column 'name'"),
        (["--prompt-column", "question"], "no column 'question'"),
        (["--keep", "0.9"], "--keep"),
        (["--keep", "half"], "--keep"),
        (["--workers", "0"], "--workers"),
        (["--workers", "2", "--cpus-per-worker=-1"], "--cpus-per-worker"),
        (["--gpus-per-worker", "nan"], "--gpus-per-worker"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_loaded(
    rows: Path,
    engine_dir: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(engine_dir), str(rows), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_answers_below_the_input_are_refused(
    rows: Path, engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    assert run(engine_dir, rows.parent, rows.parent / "deep" / "answers.parquet") == 2
    assert "is a folder of INPUT" in capsys.readouterr().err
    assert not (rows.parent / "deep").exists()


def test_output_of_another_run_is_refused(
    rows: Path, engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(engine_dir, rows, tmp_path / "out") == 0
    assert run(engine_dir, rows, tmp_path / "out", "--keep", "0.05") == 2
    assert "another run" in capsys.readouterr().err


def test_several_workers_without_ray_name_the_command(
    rows: Path,
    engine_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(engine_dir, rows, tmp_path / "out", "--workers", 2) == 2
    assert "pip install 'divprune-edge[batch]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [*COMMAND, *arguments, "--max-new-tokens", 6, "--threads", 1, "--quiet"]
    return subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return err


def count(folder: Path) -> int:
    log = folder / "answers.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def until_more(folder: Path, process: subprocess.Popen[str], more: int) -> None:
    """Wait until so many more rows are answered, or the run ends."""
    wanted = count(folder) + more
    while count(folder) < wanted and process.poll() is None:
        time.sleep(0.002)


def test_run_killed_at_random_moments_loses_and_doubles_nothing(
    rows: Path, engine_dir: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    dice = random.Random(1)
    for _ in range(6):
        process = start(engine_dir, rows, tmp_path / "out")
        until_more(tmp_path / "out", process, dice.randrange(1, 25))
        time.sleep(dice.random() * 0.01)
        process.kill()
        process.wait()
    finish(start(engine_dir, rows, tmp_path / "out"))
    check(tmp_path / "out", expected)


def test_interrupted_run_says_so_and_goes_on(
    rows: Path, engine_dir: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    process = start(engine_dir, rows, tmp_path / "out")
    until_more(tmp_path / "out", process, 5)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) in (0, 130)
    finish(start(engine_dir, rows, tmp_path / "out"))
    check(tmp_path / "out", expected)
