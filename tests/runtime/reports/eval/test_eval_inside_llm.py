"""``divprune-eval --compare`` with selectors that work inside the language model."""

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
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import OptionError
from divprune.runtime.reports.eval.plan import plan_runs

pytest.importorskip("onnxruntime")
pytest.importorskip("torch", reason="engine directories are exported here")

QUESTIONS = ("What is in the picture?", "Where is it?")
OPTIONS = ("--max-new-tokens", "4", "--threads", "1")


@pytest.fixture(scope="module")
def engines(checkpoint, tmp_path_factory) -> list[Path]:
    from divprune.export.export_model import ExportOptions, export_model

    folder = tmp_path_factory.mktemp("inside")
    model = str(checkpoint("clip-llama-v4-gqa2-full"))
    for name, chosen in (("greedyprune", {"keep": 0.5, "layer": 1}), ("vtw", {"layer": 1})):
        export_model(
            ExportOptions(
                model=model,
                dtype="fp32",
                selector=name,
                output=folder / name,
                verify=False,
                **chosen,
            )
        )
    return [folder / "greedyprune", folder / "vtw"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for number in range(40):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    samples = [
        {"id": f"{number}-{place}", "image": f"{number}.png", "question": question, "answer": "a"}
        for number in range(40)
        for place, question in enumerate(QUESTIONS)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, samples)))
    return path


def rows(folder: Path) -> list[dict]:
    report = json.loads((folder / "report.json").read_text())
    return [row | {"ttft_ms": None} for row in report["rows"]]


def test_one_command_compares_them_and_goes_on_after_a_kill(engines, data, tmp_path):
    def command(out: str) -> list[str]:
        words = [engines[0], data, "--compare", engines[1], "--keep", "0.5,0.2", *OPTIONS]
        return [*map(str, words), "--output", str(tmp_path / out)]

    code = "import sys; from divprune.runtime.cli.eval import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command("out")], stderr=subprocess.DEVNULL
    )
    log = tmp_path / "out" / "vtw.jsonl"  # the second of the two
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 5):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    before = {path: path.read_bytes() for path in log.parent.glob("*.jsonl")}
    before[log] = before[log][: before[log].rfind(b"\n") + 1]
    assert before[log].count(b"\n") - 1 < 80

    assert main([*command("out"), "--quiet"]) == 0
    assert all(path.read_bytes().startswith(content) for path, content in before.items())
    assert [
        log.with_stem(name).read_bytes().count(b"\n") - 1 for name in ("greedyprune", "vtw")
    ] == [
        3 * 80,
        80,
    ]
    assert main([*command("whole"), "--quiet"]) == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    found = [(row["engine"], row["keep"], row["layer"]) for row in rows(tmp_path / "out")]
    pruned = [("greedyprune", keep, 1) for keep in (1.0, 0.5, 0.2)]
    assert found == [*pruned, ("vtw", 0.0, 1)]


def test_what_keeps_nothing_alone_is_reported_and_drawn(engines, data, tmp_path):
    out = tmp_path / "out"
    assert main([str(engines[1]), str(data), "--output", str(out), "--limit", "6", *OPTIONS]) == 0
    whole, none = rows(out)
    pipeline = Pipeline.from_dir(engines[1], threads=1)
    layers, tokens = pipeline.manifest.kv_cache.num_layers, whole["num_image_tokens"]
    assert (none["num_kept"], none["layer_tokens"]) == (0, tokens / layers)
    assert (whole["num_kept"], whole["layer_tokens"]) == (tokens, tokens)
    texts = [json.loads(line) for line in (out / "vtw.jsonl").read_text().splitlines()[1:]]
    for record in texts:
        number, place = record["id"].split("-")
        keep = 1.0 if record["keep"] == 1.0 else None
        answer = pipeline.generate(
            data.parent / f"{number}.png", QUESTIONS[int(place)], keep=keep, max_new_tokens=4
        )
        assert record["text"] == answer.result.text
    assert (out / "chart.png").exists()


def test_what_keeps_nothing_joins_others_as_it_is_but_takes_no_fraction_alone(engines):
    greedyprune, vtw = map(EngineDirectory.open, engines)
    runs, notes = plan_runs([greedyprune, vtw], (0.5,))
    assert runs[1].keeps == (0.0,)
    assert runs[1].baseline == "greedyprune"
    assert "vtw takes no keep: it answers as it was exported" in notes
    with pytest.raises(OptionError, match="takes no --keep"):
        plan_runs([vtw], (0.5,))
