"""Vision and LLM in memory one at a time: measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.cli.bench import main as bench_main
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import OptionError

pytest.importorskip("onnxruntime")

MIB = 2**20
# 96 MiB each in float32: 8 x 12 x 512 x 512 and 6 x 16 x 512 x 512 weights.
EVEN = {
    "vision_config": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 9,  # the last one is not used
        "num_attention_heads": 8,
        "image_size": 56,
        "patch_size": 14,
    },
    "text_config": {
        "vocab_size": 480,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 256,
    },
    "image_token_index": 470,
}


@pytest.fixture(scope="module")
def even_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export (fp32) whose vision graph and LLM are of the same size."""
    pytest.importorskip("torch", reason="exporting needs torch")
    from divprune.export.checkpoint.random import SHAPES, shapes, write_random_checkpoint
    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    folder = tmp_path_factory.mktemp("even")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SHAPES", {**SHAPES, "even": ("llava-1.5-7b", EVEN)})
        source = write_random_checkpoint(folder / "model", "even")
    output = folder / "engine"
    options = {"keep": 0.25, "dtype": "fp32", "verify": False}
    export_model(ExportOptions(model=str(source), output=output, **options))
    return output


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def in_a_new_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "divprune.runtime.cli.run", *map(str, arguments)]
    options = ["--max-new-tokens", "4", "--threads", "1", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc gives memory back")
def test_one_at_a_time_needs_the_memory_of_one_and_answers_the_same(even_dir, picture):
    together = in_a_new_process(even_dir, picture)
    in_turn = in_a_new_process(even_dir, picture, "--residency", "sequential")

    assert in_turn["token_ids"] == together["token_ids"]
    assert in_turn["kept_indices"] == together["kept_indices"]
    saved = together["memory_bytes"]["peak_rss"] - in_turn["memory_bytes"]["peak_rss"]
    assert saved > 60 * MIB
    # Loading the LLM is part of the answer.
    assert in_turn["timings_ms"]["ttft"] > in_turn["timings_ms"]["prefill"]


@pytest.fixture(scope="module")
def in_turn(engine_dir: Path) -> Pipeline:
    return Pipeline.from_dir(engine_dir, threads=1, residency="sequential")


def residents(pipeline: Pipeline) -> tuple[bool, bool]:
    """Whether vision and LLM are in memory."""
    found = pipeline.backend._residents
    return found._vision is not None, found._decoder is not None


def test_one_question_after_another_opens_what_it_needs(in_turn, engine_dir, picture):
    together = Pipeline.from_dir(engine_dir, threads=1)
    assert residents(together) == (True, True)
    for images, keep in (([picture], None), ([picture, picture], 0.05), ([picture], 1.0)):
        expected = together.generate(images, "What is this?", keep=keep, max_new_tokens=5)
        found = in_turn.generate(images, "What is this?", keep=keep, max_new_tokens=5)
        assert found.result.token_ids == expected.result.token_ids
        assert residents(in_turn) == (False, True)
        assert residents(together) == (True, True)


def test_a_picture_encoded_once_serves_several_questions(in_turn, engine_dir, picture):
    in_turn.forget()
    encoded = in_turn.encode_image(picture)
    assert residents(in_turn) == (True, False)
    together = Pipeline.from_dir(engine_dir, threads=1)
    for question in ("What is this?", "Where is it?"):
        expected = together.generate(picture, question, max_new_tokens=5).result
        assert in_turn.generate(encoded, question, max_new_tokens=5).result.token_ids == (
            expected.token_ids
        )
        assert residents(in_turn) == (False, True)


def test_a_picture_encoded_meanwhile_ends_the_generation_with_an_error(in_turn, picture):
    generation = in_turn.generate(picture, "What is this?", max_new_tokens=50)
    in_turn.forget()
    in_turn.encode_image(picture)
    with pytest.raises(RuntimeError, match="--residency sequential"):
        list(generation)
    assert in_turn.generate(picture, "What is this?", max_new_tokens=2).result.token_ids


def test_an_unknown_residency_is_refused(engine_dir):
    EngineDirectory.open(engine_dir)
    with pytest.raises(OptionError, match=r"(?s)unknown residency 'none'.*concurrent, sequential"):
        Pipeline.from_dir(engine_dir, residency="none")


def test_a_report_says_that_times_include_loading(engine_dir, capsys):
    options = ["--iters", "2", "--warmup", "0", "--max-new-tokens", "2", "--no-probe"]
    assert bench_main([str(engine_dir), *options, "--residency", "sequential"]) == 0
    assert "vision and prefill include loading them" in capsys.readouterr().out
