from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.cli.bench import main
from divprune.runtime.reports.bench import benchmark
from divprune.runtime.reports.bench.report import Report
from tests.runtime.engine_copies import copy_engine, read_manifest

pytest.importorskip("onnxruntime")

COMMAND = [sys.executable, "-m", "divprune.runtime.cli.bench"]
SHORT = ("--iters", 2, "--warmup", 1, "--max-new-tokens", 3, "--no-probe", "--threads", 1)

# No file may grow beyond 1000 bytes: writing fails halfway, as on a disk that is full.
WITH_A_FULL_DISK = """
import resource, sys
from divprune.runtime import Pipeline
from divprune.runtime.cli.bench import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
raise SystemExit(main(sys.argv[1:]))
"""
needs_file_limit = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE"
)


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = run(*arguments)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    return err


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_tables_go_to_stdout_and_nothing_else_anywhere(engine_dir, capsys):
    assert run(engine_dir, *SHORT) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("keep 1.0", "keep 0.1", "TTFT", "speed-up", "taking turns", "built-in"):
        assert words in out


def test_json_is_the_report_and_nothing_else(engine_dir, picture, capsys):
    options = ("--keep", "0.1,0.05", "--image", picture, "--prompt", "What is this?", "--json")
    assert run(engine_dir, *SHORT, *options, "--max-seq-len", 128) == 0
    out, err = capsys.readouterr()
    report = Report.from_json(out, "stdout")
    assert err == ""
    assert [run.keep for run in report.runs] == [1.0, 0.1, 0.05]
    assert (report.work.image.source, report.work.prompt) == (str(picture), "What is this?")
    assert (report.work.warmup, report.work.iters, report.work.max_new_tokens) == (1, 2, 3)
    whole = read_manifest(engine_dir)
    assert report.engine.max_seq_len == 128
    assert {run.kv_cache_bytes * whole.max_seq_len for run in report.runs} == {
        whole.kv_cache_bytes * 128
    }


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.md", "a.html"])
def test_the_report_is_written_in_every_form(engine_dir, tmp_path, capsys, name):
    path = tmp_path / name
    assert run(engine_dir, *SHORT, "--output", path) == 0
    said = capsys.readouterr()
    assert "Times in ms" in said.out
    assert (f"written: {path}" in said.err) == ("-q" not in SHORT)
    content = path.read_text()
    if name == "a.json":
        assert len(Report.from_json(content, name).runs) == 2
    elif name == "a.csv":
        assert {row["keep"] for row in csv.DictReader(content.splitlines())} == {"1.0", "0.1"}
    elif name == "a.html":
        assert content.count("data:image/jpeg;base64,") == 1  # keep 0.1; 1.0 keeps everything
    else:
        assert "| TTFT | 1.0 |" in content


@pytest.mark.parametrize(
    "options, message",
    [
        (("--iters", "0"), "--iters must be at least 1"),
        (("--warmup", "-1"), "--warmup must be at least 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("--keep", "10"), "--keep 0.1 if 10 % was meant"),
        (("--keep", "0.1;0.2"), "--keep is not a list of fractions"),
        (("--keep", ""), "--keep is not a list of fractions"),
        (("--backend", "torch"), "unknown backend"),
        (("--threads", "0"), "--threads is no number"),
        (("--output", "a.txt"), "the ending names no format"),
        (("--output", "no/such/folder/a.json"), "cannot be written"),
    ],
)
def test_a_bad_option_is_refused_before_any_file_is_opened(capsys, options, message):
    assert message in refused(capsys, "no/such/engine", *options)


def test_a_keep_above_the_exported_is_refused_before_anything_is_loaded(
    engine_dir, capsys, monkeypatch
):
    monkeypatch.delattr(benchmark, "benchmark")
    assert "larger than what this engine" in refused(capsys, engine_dir, "--keep", "0.1,0.5")


def test_keep_1_without_the_baseline_is_refused(engine_dir, tmp_path, capsys):
    copy = copy_engine(engine_dir, tmp_path / "e", baseline=False)
    assert "without the baseline" in refused(capsys, copy, "--keep", "1.0,0.1")


def test_a_picture_and_an_engine_that_are_not_there_are_refused(engine_dir, tmp_path, capsys):
    assert "none.png" in refused(capsys, engine_dir, "--image", tmp_path / "none.png")
    assert "there is no engine directory" in refused(capsys, tmp_path / "none")


def test_a_prompt_that_does_not_fit_is_refused(engine_dir, capsys):
    options = ("--no-probe", "--prompt-tokens", 5000)
    assert "--prompt-tokens is more than this" in refused(capsys, engine_dir, *options)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal and SIGINT")
def test_ctrl_c_prints_and_writes_what_was_measured_so_far(engine_dir, tmp_path):
    output = tmp_path / "a.json"
    options = ["--iters", "100000", "--warmup", "0", "--max-new-tokens", "2", "--no-probe"]
    command = [*COMMAND, str(engine_dir), *options, "--threads", "1", "--output", str(output)]
    terminal, end = os.openpty()
    shown = bytearray()
    reader = Thread(target=read_all, args=(terminal, shown))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        reader.start()
        while b"answer 3 of 200000" not in shown and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    reader.join()
    os.close(terminal)
    assert process.returncode == 130, shown
    assert b"TTFT" in shown  # the live table
    assert shown.endswith(b"interrupted: the report has what was measured until then\r\n")
    assert "INTERRUPTED" in out
    report = Report.from_json(output.read_text(), "a.json")
    assert report.interrupted
    assert 1 <= report.runs[0].stages.ttft.n < 100_000


@needs_file_limit
@pytest.mark.parametrize("name", ["a.json", "a.html"])
def test_a_full_disk_loses_the_file_but_not_the_measurement(engine_dir, tmp_path, name):
    output = tmp_path / name
    output.write_text("the one before")
    command = [sys.executable, "-c", WITH_A_FULL_DISK, str(engine_dir), *map(str, SHORT)]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"error: --output {output} cannot be written" in done.stderr
    assert "File too large" in done.stderr
    for words in ("keep 1.0", "keep 0.1", "TTFT", "speed-up", "tokens prefilled"):
        assert words in done.stdout
    assert output.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def read_all(terminal: int, shown: bytearray) -> None:
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while data := os.read(terminal, 4096):
            shown += data


def test_help_imports_no_heavy_library():
    program = (
        "import sys\n"
        "from divprune.runtime.cli.bench import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'PIL', 'tokenizers', 'jinja2', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_two_runs_of_the_same_engine_can_be_compared(engine_dir, tmp_path, capsys):
    from divprune.runtime.cli import compare

    for name in ("a.json", "b.json"):
        assert run(engine_dir, *SHORT, "--output", tmp_path / name) == 0
    capsys.readouterr()
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {entry["keep"] for entry in stages} == {1.0, 0.1}


def test_a_similarity_takes_its_turn_with_the_tokens_it_keeps(target_dir, picture, capsys):
    engine = target_dir("onnxruntime", keep=0.5)
    cover = Pipeline.from_dir(engine, threads=1).encode_image(picture).features.cover
    # About what the third choice reaches.
    asked = f"auto:{cover[2]:.4f}"
    count = int(np.flatnonzero(cover >= np.float32(f"{cover[2]:.4f}"))[0]) + 1
    options = ("--keep", f"0.5,{asked}", "--image", picture, "--json")
    assert run(engine, *SHORT, *options) == 0
    report = Report.from_json(capsys.readouterr().out, "stdout")
    assert [str(run.asked) for run in report.runs] == ["1.0", "0.5", asked]
    auto = report.runs[-1]
    assert (auto.num_kept, auto.keep) == (count, count / report.engine.num_image_tokens)
    assert auto.ratios["ttft"].median > 0
    assert report.work.keeps == (1.0, 0.5, asked)


@pytest.mark.parametrize("value", ["auto:0", "auto:1.01", "0.1,auto:nan", "auto:x"])
def test_a_similarity_out_of_range_is_refused(value, tmp_path, capsys):
    assert "auto:" in refused(capsys, tmp_path / "missing", "--keep", value)
