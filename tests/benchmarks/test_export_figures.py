"""Figures of an export and of answers: a video on a tiny checkpoint, and a picture's size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anyres_checkpoints import write_anyres_checkpoint
from PIL import Image

from benchmarks.export_figures import main, random_checkpoint, write_question


def test_a_checkpoint_that_is_there_is_measured_with_a_video(tmp_path: Path, capsys: Any) -> None:
    model = write_anyres_checkpoint(tmp_path / "tiny", "next-video-llama-hub")
    output = tmp_path / "figures.json"
    words = [
        "--model",
        str(model),
        "--frames",
        "3",
        "--runs",
        "1",
        "--work",
        str(tmp_path / "work"),
    ]
    assert main([*words, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert (report["model"], report["asked"]) == ("tiny", "3 frames")
    assert report["export"]["peak_rss_bytes"] > report["export"]["bytes_on_disk"]
    all_of_them, a_tenth = report["run"]["keep 1.0"], report["run"]["keep 0.1"]
    assert all_of_them["num_kept"] == all_of_them["num_image_tokens"] > a_tenth["num_kept"]
    for run in report["run"].values():
        assert run["times_ms"]["ttft"]["min"] > run["times_ms"]["prefill"]["min"] > 0
        assert run["peak_rss_bytes"] > 0


def test_a_preset_or_shape_is_written_once(tmp_path: Path) -> None:
    path = random_checkpoint("llava-tiny", tmp_path)
    (path / "mark").touch()
    assert (random_checkpoint("llava-tiny", tmp_path) / "mark").exists()


def test_the_picture_has_the_size_that_is_asked_for(tmp_path: Path) -> None:
    (path,) = write_question(tmp_path, (70, 30), None)
    assert Image.open(path).size == (70, 30)


@pytest.mark.parametrize("size", ["70", "0x5", "70x", "axb"])
def test_a_size_that_is_none_is_refused(size: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--picture", size])
    assert "640x480" in capsys.readouterr().err
