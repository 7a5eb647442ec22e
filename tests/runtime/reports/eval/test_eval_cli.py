"""``divprune-eval`` on real engines: answers, intervals, interruptions and bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.cli.eval import main
from tests.runtime.engine_copies import copy_engine

pytest.importorskip("onnxruntime")

QUESTIONS = ("What is in the picture?", "Where is it?", "How many are there?")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def truth(engine_dir: Path, pictures: list[Path]) -> dict[tuple[int, str], str]:
    """What the pipeline itself answers at keep 1.0."""
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    return {
        (number, question): pipeline.generate(
            path, question, keep=1.0, max_new_tokens=5
        ).result.text
        for number, path in enumerate(pictures)
        for question in QUESTIONS
    }


@pytest.fixture
def data(tmp_path: Path, pictures: list[Path], truth: dict[tuple[int, str], str]) -> Path:
    """Questions whose right answers are those at keep 1.0; pictures out of order."""
    samples = [
        {
            "id": f"{number}-{question.split()[0]}",
            "image": str(pictures[number]),
            "question": question,
            "answer": truth[number, question],
            "type": question.split()[0],
        }
        for question in QUESTIONS
        for number in range(4)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, samples)))
    return path


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--max-new-tokens", "5", "--threads", "1", "--quiet"])


def read(folder: Path) -> dict[float, dict]:
    report = json.loads((folder / "report.json").read_text())
    return {row["keep"]: row for row in report["rows"]}


def log_lines(folder: Path) -> list[dict]:
    (log,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()][1:]


def test_scores_are_those_of_the_pipeline_with_one_vision_run_a_picture(
    engine_dir, data, tmp_path, pictures, truth, capsys, monkeypatch
):
    from divprune.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

    seen = []
    encode = OnnxRuntimeBackend.encode_image
    monkeypatch.setattr(
        OnnxRuntimeBackend, "encode_image", lambda self, x: seen.append(1) or encode(self, x)
    )
    out = tmp_path / "out"
    assert run(engine_dir, data, "--keep", "0.1,0.05", "--output", out) == 0
    assert len(seen) == 4
    rows = read(out)
    assert list(rows) == [1.0, 0.1, 0.05]
    assert rows[1.0]["score"]["value"] == 1.0
    pipeline = Pipeline.from_dir(engine_dir, threads=1)
    right = [
        pipeline.generate(pictures[n], q, keep=0.05, max_new_tokens=5).result.text == answer
        for (n, q), answer in truth.items()
    ]
    assert rows[0.05]["score"]["value"] == pytest.approx(np.mean(right))
    assert rows[0.05]["difference"]["value"] == pytest.approx(np.mean(right) - 1)
    assert set(rows[0.1]["categories"]) == {"What", "Where", "How"}
    assert rows[0.1]["macs"] < rows[1.0]["macs"]
    assert (out / "chart.png").exists()
    assert "exact match" in capsys.readouterr().out


def test_a_killed_run_goes_on_and_ends_with_the_same_report(engine_dir, data, tmp_path, pictures):
    samples = [json.loads(line) for line in data.read_text().splitlines()]
    many = [sample | {"id": f"{i}-{sample['id']}"} for i in range(40) for sample in samples]
    data.write_text("\n".join(map(json.dumps, many)))
    out = tmp_path / "out"
    command = ["-c", "from divprune.runtime.cli.eval import main; main()", engine_dir, data]
    command += ["--output", out, "--max-new-tokens", "5", "--threads", "1"]
    process = subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.DEVNULL)
    log = out / f"{engine_dir.name}.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 100):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    before = log.read_bytes()
    done = before.count(b"\n") - 1
    log.write_bytes(before[:-7])  # as if the kill had come within a write

    assert run(engine_dir, data, "--output", out) == 0
    assert log.read_bytes().startswith(before[: before[:-7].rfind(b"\n") + 1])
    records = log_lines(out)
    assert 0 < done < len(records) == 2 * len(many)
    assert len({(record["id"], record["keep"]) for record in records}) == len(records)
    whole = tmp_path / "whole"
    assert run(engine_dir, data, "--output", whole) == 0
    for keep, row in read(whole).items():
        again = read(out)[keep]
        assert row | {"ttft_ms": 0} == again | {"ttft_ms": 0}


def test_a_finished_run_is_reported_again_without_loading_anything(
    engine_dir, data, tmp_path, monkeypatch
):
    assert run(engine_dir, data, "--output", tmp_path / "out") == 0
    monkeypatch.setattr(Pipeline, "__init__", None)
    assert run(engine_dir, data, "--output", tmp_path / "out", "--metric", "relaxed-match") == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["metric"] == "relaxed-match"


def test_a_further_fraction_asks_only_what_is_missing(engine_dir, data, tmp_path):
    out = tmp_path / "out"
    assert run(engine_dir, data, "--limit", "5", "--output", out) == 0
    assert len(log_lines(out)) == 10
    assert run(engine_dir, data, "--limit", "6", "--keep", "0.1,0.05", "--output", out) == 0
    assert len(log_lines(out)) == 18


def test_two_engine_directories_stand_in_one_table(engine_dir, data, tmp_path, capsys):
    other = copy_engine(engine_dir, tmp_path / "other")
    arguments = (
        engine_dir,
        data,
        "--compare",
        other,
        "--keep",
        "0.1",
        "--output",
        tmp_path / "out",
    )
    assert run(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["engine"], row["keep"]) for row in report["rows"]] == [
        (engine_dir.name, 1.0), (engine_dir.name, 0.1), ("other", 0.1)
    ]  # fmt: skip
    first, second = report["rows"][1:]
    assert first["score"] == second["score"]
    assert first["difference"] == second["difference"]


def test_answers_of_another_engine_or_with_other_options_are_not_mixed_in(
    engine_dir, data, tmp_path, capsys
):
    out = tmp_path / "out"
    assert run(engine_dir, data, "--output", out) == 0
    assert main([str(engine_dir), str(data), "--output", str(out), "--max-new-tokens", "6"]) == 2
    assert "max_new_tokens differs" in capsys.readouterr().err
    data.write_text(data.read_text() + "\n")
    assert run(engine_dir, data, "--output", out) == 2
    assert "data_sha256 differs" in capsys.readouterr().err
    assert run(engine_dir, data, "--output", out, "--force") == 0


def test_one_bad_sample_is_reported_and_the_others_stand(
    engine_dir, data, tmp_path, pictures, capsys
):
    samples = [json.loads(line) for line in data.read_text().splitlines()]
    missing, torn = tmp_path / "missing.png", tmp_path / "torn.png"
    torn.write_bytes(pictures[0].read_bytes()[:200])
    samples[0]["image"], samples[1]["image"] = str(missing), str(torn)
    samples[2]["question"] = "word " * 2000
    data.write_text("\n".join(map(json.dumps, samples)))
    out = tmp_path / "out"
    command = [engine_dir, data, "--output", out, "--max-new-tokens", "5", "--threads", "1"]
    assert main([*map(str, command)]) == 2
    shown = capsys.readouterr().err
    assert "6 answers failed; the others stand" in shown
    for reason in ("missing.png does not exist (2)", "the prompt is too long (2)"):
        assert reason in shown
    assert "24/24" in shown
    assert "failed=6" in shown
    rows = read(out)
    assert [(row["answers"], row["errors"]) for row in rows.values()] == [(9, 3), (9, 3)]
    errors = [record["error"] for record in log_lines(out) if "error" in record]
    for text in ("missing.png does not exist", "torn.png", "the prompt is too long"):
        assert sum(text in error for error in errors) == 2

    missing.write_bytes(pictures[0].read_bytes())
    assert run(engine_dir, data, "--output", out) == 2
    assert read(out)[1.0]["answers"] == 10
    assert len(log_lines(out)) == 24 + 6


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no samples"), ('{"image": "a.png"\n', "line 1 is no sample")],
)
def test_bad_data_is_refused_before_anything_is_written(
    engine_dir, tmp_path, capsys, content, message
):
    data = tmp_path / "bad.jsonl"
    data.write_text(content)
    assert run(engine_dir, data, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(engine_dir, data, capsys):
    assert run(engine_dir, data, "--output", data) == 2
    assert "cannot be written" in capsys.readouterr().err
