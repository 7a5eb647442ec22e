"""Random checkpoints: what transformers and the exporter read of them."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.checkpoint.random import (
    SHAPES,
    TensorSource,
    shape_config,
    shape_names,
    write_random_checkpoint,
)
from divprune.export.checkpoint.random import shapes as shapes_module
from divprune.export.checkpoint.random.__main__ import main
from divprune.export.checkpoint.random.families import files_of
from divprune.export.checkpoint.random.tensors import write_weights
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.families import class_of
from divprune.runtime.errors import OptionError

_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
_TOWER |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}
_QWEN_TEXT = {**_TEXT, "bos_token_id": 0, "eos_token_id": 2}
_QWEN_IDS = {"vision_start_token_id": 503, "vision_end_token_id": 504}
_QWEN_IDS |= {"image_token_id": 505, "video_token_id": 506}


def _rope(sections: list[int]) -> dict[str, Any]:
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | {"mrope_section": sections}
    }


SMALL = {
    "llava-next-video-7b": {
        "vision_config": _TOWER,
        "text_config": _TEXT,
        "image_token_index": 471,
        "video_token_index": 470,
    },
    "llava-onevision-0.5b": {
        "vision_config": _TOWER,
        "text_config": _QWEN_TEXT,
        "image_token_index": 470,
        "video_token_index": 471,
    },
    "internvl3-1b": {
        "vision_config": _TOWER,
        "text_config": _QWEN_TEXT,
        "image_token_id": 505,
    },
    "smolvlm2-2.2b": {
        "vision_config": {**_TOWER, "image_size": 24},
        "text_config": _TEXT,
        "image_token_id": 505,
    },
    "qwen2.5-vl-3b": {
        "vision_config": {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
        | {"out_hidden_size": 64, "patch_size": 4, "fullatt_block_indexes": [1, 3]},
        "text_config": {**_QWEN_TEXT, **_rope([2, 3, 3])},
        **_QWEN_IDS,
    },
    "qwen3-vl-8b": {
        "vision_config": {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
        | {"out_hidden_size": 64, "patch_size": 4, "deepstack_visual_indexes": [0, 2]}
        | {"num_position_embeddings": 16},
        "text_config": {**_QWEN_TEXT, **_rope([4, 2, 2])},
        **_QWEN_IDS,
    },
}
# As the hub counts them.
PARAMETERS = {
    "internvl3-2b": 2_088_957_440,
    "llava-1.5-7b": 7_063_427_072,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen3-vl-8b": 8_767_123_696,
    "smolvlm2-256m": 256_484_928,
}


@pytest.fixture(params=[*SMALL, "llava-tiny"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A shape that is a preset with small sizes."""
    if request.param in SMALL:
        small_shape = (request.param, SMALL[request.param])
        monkeypatch.setattr(shapes_module, "SHAPES", {**SHAPES, "small": small_shape})
        return "small"
    return str(request.param)


@pytest.mark.parametrize("layout", ["hub", "v5"])
def test_transformers_misses_nothing_and_finds_nothing_unknown(
    small: str, layout: Any, tmp_path: Path
) -> None:
    path = write_random_checkpoint(tmp_path, small, layout=layout, dtype="bf16", shard_size=50_000)
    assert len(list(path.glob("model-*.safetensors"))) > 1
    Checkpoint.open(path).validate()
    auto_model: Any = transformers.AutoModelForImageTextToText
    model, info = auto_model.from_pretrained(path, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_the_tokenizer_knows_every_id_and_the_special_tokens(small: str, tmp_path: Path) -> None:
    path = write_random_checkpoint(tmp_path, small)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    config = transformers.AutoConfig.from_pretrained(path)
    size = config.text_config.vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    for index, token in files_of(shape_config(small), "hub").fixed_tokens().items():
        assert tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"].count(index) == 1
    generation = json.loads((path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", shape_names())
def test_every_shape_can_be_exported_and_written(name: str) -> None:
    config = shape_config(name)
    family = class_of(config.model_type)(config)
    DecoderSpec.from_config(family.text_config, tied_head=family.tied_head)
    tokens = files_of(config, "hub").fixed_tokens()
    assert len({*tokens.values()}) == len(tokens)
    assert max(tokens) < config.text_config.vocab_size
    assert tokens[family.image_token_id] in ("<image>", "<|image_pad|>", "<IMG_CONTEXT>")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_as_many_weights_as_the_model_on_the_hub(name: str) -> None:
    shapes = expected_tensors(shape_config(name)).values()
    assert sum(math.prod(shape) for shape in shapes) == PARAMETERS[name]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    paths = [
        write_random_checkpoint(tmp_path / str(number), "llava-tiny", seed=seed)
        for number, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (load_file(path / "model.safetensors") for path in paths)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_a_tensor_is_never_held_whole(tmp_path: Path) -> None:
    big = TensorSource.random("big.weight", (64, 1024, 1024), seed=0)
    tracemalloc.start()
    write_weights(tmp_path, {"big.weight": big}, "bf16", shard_size=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "model.safetensors").stat().st_size > 128 * 2**20
    assert peak < 100 * 2**20


def test_weights_are_small_and_those_of_norms_lie_around_one() -> None:
    plain, norm = (
        np.concatenate([*TensorSource.random(name, (40, 500), seed=0).pieces()])
        for name in ("mlp.up_proj.weight", "input_layernorm.weight")
    )
    assert abs(plain.mean()) < 0.001
    assert abs(norm.mean() - 1) < 0.001
    assert max(plain.std(), norm.std()) < 0.021


def test_command_writes_a_checkpoint_and_replaces_nothing(tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "new"
    words = ["--model", "llava-tiny", "--output", str(output), "--dtype", "fp32"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert Checkpoint.open(output).dtype("lm_head.weight") == "F32"
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, found",
    [
        (["--model", "llava-tny"], "llava-tiny"),
        (["--model", "qwen3-vl-2b", "--layout", "v4"], "v5"),
    ],
)
def test_wrong_words_are_refused_with_those_that_there_are(
    words: list[str], found: str, tmp_path: Path, capsys: Any
) -> None:
    assert main([*words, "--output", str(tmp_path / "new")]) == 2
    assert found in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_type_without_a_maker_is_refused() -> None:
    from divprune.runtime.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="qwen2_5_vl"):
        files_of(transformers.AutoConfig.for_model("blip-2"), "hub")
    with pytest.raises(OptionError, match="qwen3-vl-2b"):
        shape_config("blip-2")
