"""The training script from nothing to a checkpoint that transformers loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


def _train(root, work, output, *options):
    command = [
        sys.executable,
        "-m",
        "models.small_scenes.train",
        "--smoke",
        "--threads",
        "1",
        "--work",
        str(work),
        "--output",
        str(output),
        *options,
    ]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)


def test_an_interrupted_run_goes_on_and_writes_a_checkpoint_that_answers(root, tmp_path):
    import torch
    from transformers import LlavaForConditionalGeneration

    from models.small_scenes.evaluate import Transformers, exact_match
    from models.small_scenes.exam import make_exam

    work, output = tmp_path / "work", tmp_path / "checkpoint"
    _train(root, work, tmp_path / "unfinished", "--until", "answers")
    before = torch.load(work / "state.pt", weights_only=True)["model"]
    _train(root, work, output)

    records = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records if "loss" in r] == [
        "large figures",
        "patches",
        "answers",
        "together",
    ]
    assert any("resumed" in record for record in records)
    assert all(record["loss"] > 0 for record in records if "loss" in record)
    assert {path.name for path in output.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "generation_config.json",
        "chat_template.jinja",
    }
    after = LlavaForConditionalGeneration.from_pretrained(output, dtype=torch.float32)
    weight = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(after.state_dict()[weight], before[weight])

    result = exact_match(make_exam("test", 2), Transformers(output).answer)
    assert result["questions"] > 8
