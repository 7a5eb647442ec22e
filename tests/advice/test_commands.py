"""Advice that is an option or a command: it is read from the message and followed as it stands."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.advice.covered import COMMANDS
from tests.advice.tools import assert_gave, attempt, follow
from tests.runtime.engine_copies import copy_engine

RUN = "divprune-run {engine} {picture} -q --threads 1 --max-new-tokens 2"
EXPORT = "divprune-export --model {checkpoint} --output {output} --keep 0.1 --dtype fp32"
BENCH = "divprune-bench {engine} --iters 1 --warmup 0 --no-probe -q --max-new-tokens 2"

CASES = {
    "temperature": f"{RUN} --temperature -1",
    "top-p": f"{RUN} --temperature 1 --top-p 2",
    "seed": f"{RUN} --temperature 1 --seed -1",
    "top-k": f"{RUN} --temperature 1 --top-k -1",
    "min-p": f"{RUN} --temperature 1 --min-p 2",
    "repetition": f"{RUN} --repetition-penalty 0",
    "sampling without temperature": f"{RUN} --top-p 0.9",
    "stop": f"{RUN} --stop ''",
    "threads": f"{RUN} --threads 0",
    "percent": f"{RUN} --keep 10",
    "keep above the exported": f"{RUN} --keep 0.5",
    "no baseline": "divprune-run {no_baseline} {picture} -q --threads 1 --keep 1.0",
    "longer cache": f"{RUN} --max-seq-len 9999",
    "numbers without overlay": f"{RUN} --overlay-numbers",
    "numbers of everything": f"{RUN} --keep 1.0 --overlay kept.png --overlay-numbers",
    "empty question": "divprune-run {engine} {picture} -q --prompt '  '",
    "prefill of int8": f"{EXPORT} --quant int8 --prefill-quant int8",
    "prefill inside the LLM": f"{EXPORT} --selector fastv --layer 1 --prefill-quant int8",
    "int8 for TensorRT": f"{EXPORT} --quant int8 --target tensorrt",
    "tau of divprune": f"{EXPORT} --tau 0.5",
    "seed of divprune": f"{EXPORT} --seed 3",
    "method of no int4": f"{EXPORT} --quant-method mse",
    "no baseline of itself": "divprune-export --model {checkpoint} --keep 1.0 --no-baseline"
    " --output {output}",
    "no keep": "divprune-export --model {checkpoint} --output {output}",
    "positions inside the LLM": f"{EXPORT} --selector fastv --layer 1 --positions contiguous",
    "layer beyond the last": f"{EXPORT} --selector fastv --layer 99",
    "groups that do not divide": f"{EXPORT} --quant int4-g128",
    "size of fixed pictures": f"{EXPORT} --max-image-tokens 10",
    "no room": f"{EXPORT} --max-seq-len 40",
    "window": "divprune-export --model {window} --output {output} --keep 0.1",
    "overflow": "divprune-export --model {large} --output {output} --keep 0.1",
    "preset of plan": "divprune-plan lava-1.5-7b",
    "board": "divprune-plan {checkpoint} --board orin-nano-8",
    "plan int8 for TensorRT": "divprune-plan {checkpoint} --quant int8 --target tensorrt",
    "bench prompt": f"{BENCH} --prompt-tokens 1000000",
    "bench keep": f"{BENCH} --keep 0.5",
    "quantised twice": "divprune-export --model {packed} --keep 0.1 --quant int4 --output {output}",
    "quantised twice in a plan": "divprune-plan {packed} --quant int4-g128",
    "positions of three axes": "divprune-export --model {qwen} --keep 0.1 --output {output}"
    " --positions contiguous",
    "a grid without a corner": "divprune-export --model {cornerless} --keep 0.1"
    " --selector downsample --output {output}",
    "no class token": "divprune-export --model {siglip} --keep 0.1 --selector prumerge"
    " --output {output}",
    "eval metric": "divprune-eval {engine} {questions} -q --metric yes-no-f1 --max-new-tokens 1",
}


@pytest.fixture(scope="module")
def places(
    engine_dir: Path,
    any_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("advice")
    source = any_checkpoint("clip-llama-hub")
    picture, questions = folder / "picture.png", folder / "questions.jsonl"
    Image.linear_gradient("L").convert("RGB").save(picture)
    row = {"image": str(picture), "question": "What?", "answer": "red"}
    questions.write_text(json.dumps(row) + "\n")
    return {
        "engine": engine_dir,
        "checkpoint": source,
        "picture": picture,
        "questions": questions,
        "no_baseline": copy_engine(engine_dir, folder / "no-baseline", baseline=False),
        "packed": any_checkpoint("packed"),
        "qwen": any_checkpoint("qwen25-hub"),
        "cornerless": any_checkpoint("siglip-qwen3-v5"),
        "siglip": any_checkpoint("siglip-qwen2-v4-tied"),
        "window": _with_window(any_checkpoint("clip-mistral-hub-gqa1"), folder / "window"),
        "large": _with_large_weight(source, folder / "large"),
    }


def _with_window(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config["text_config"]["sliding_window"] = 100
    (target / "config.json").write_text(json.dumps(config))
    return target


def _with_large_weight(source: Path, target: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.endswith("patch_embedding.weight"):
                tensor[:] = 1e5
        save_file(tensors, file)
    return target


@pytest.mark.parametrize("name", CASES)
def test_the_advised_option_or_command_works(places, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(CASES[name].format(**places, output=tmp_path / "engine"))
    refused = attempt(words, whole=False)
    assert_gave(refused, COMMANDS[name])
    mended = attempt(follow(words, refused), whole=False)
    assert mended.code == 0, (refused.message, mended.message)


def test_every_case_has_the_advice_that_it_follows():
    assert CASES.keys() == COMMANDS.keys()
