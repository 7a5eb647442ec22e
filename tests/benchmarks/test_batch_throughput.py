from __future__ import annotations

import json

import pytest

pytest.importorskip("onnxruntime")

from benchmarks.batch_throughput import MARKS, main


def test_answers_are_compared_and_the_table_takes_its_place_in_a_document(engine_dir, tmp_path):
    output, document = tmp_path / "throughput.json", tmp_path / "scaling.md"
    document.write_text(f"# Before\n{MARKS[0]}\nan older table\n{MARKS[1]}\nAfter\n")
    words = ["--pictures", "20", "--rounds", "1", "--output", str(output), "--write", str(document)]
    assert main([str(engine_dir), *words, "--workers"]) == 0
    report = json.loads(output.read_text())
    assert report["answers_of_divprune_run"] == 20
    assert report["batch"]["own"]["pictures_per_s"] > 0
    text = document.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\nAfter\n")
    assert "an older table" not in text
    assert "| in its own process |" in text


def test_model_is_held_against_what_was_measured_and_a_fleet_is_reckoned_from_it(tmp_path, capsys):
    runs = {
        "1": {"pictures_per_s": 90.0, "start_s": 1.0, "wall_s": 9.0, "driver_cpu_ms": 1.0},
        "2": {"pictures_per_s": 144.0, "start_s": 1.0, "wall_s": 9.0, "driver_cpu_ms": 1.0},
    }
    report = {"cpu": "a CPU", "cores": 2, "load_average": 0.0, "pictures": 2000, "rounds": 3}
    report |= {"bare_ms": {"1": 10.0, "2": 12.5}, "batch": runs, "driver_bytes_a_row": 200}
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    assert main(["--table", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| Ray, 1 worker | 90.0 | 100.0 | +11.1 % | 100 % | 1.11 ms | 1.1 % |" in printed
    # Two cores hold two workers and the driver: 2 / (12.5 ms + 1 ms).
    assert "| Ray, 2 workers | 144.0 | 148.1 | +2.9 % | 80 % | 1.39 ms | 1.4 % |" in printed
    assert "| 1 s | 100 | 167 min | 1.6 % | 10.0 % | 1,000 | 6,250 |" in printed
