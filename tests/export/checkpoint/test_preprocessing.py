"""Image processors that their config does not name are those of transformers, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoImageProcessor

from divprune.export.checkpoint.preprocessing import read_preprocessor_config
from divprune.runtime.errors import CheckpointError

MODEL_TYPES = (
    *("llava", "llava_next", "llava_next_video", "llava_onevision", "internvl"),
    *("smolvlm", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
)
IMAGES, NESTED = "preprocessor_config.json", "processor_config.json"
UNNAMED = {"do_resize": True, "do_rescale": True}


def plain(name: str) -> str:
    return name.removesuffix("Fast").removesuffix("Pil")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    return tmp_path


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_processor_without_a_type_is_the_one_of_the_model(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / IMAGES).write_text(json.dumps(UNNAMED))
    found = read_preprocessor_config(folder, AutoConfig.from_pretrained(folder))
    theirs = type(AutoImageProcessor.from_pretrained(folder)).__name__
    assert plain(found["image_processor_type"]) == plain(theirs)
    assert found.items() >= UNNAMED.items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (IMAGES, UNNAMED),
        (IMAGES, {**UNNAMED, "image_processor_type": None}),
        (IMAGES, {**UNNAMED, "image_processor_type": ""}),
        (IMAGES, {**UNNAMED, "feature_extractor_type": None}),
        (IMAGES, {**UNNAMED, "processor_class": "LlavaProcessor"}),
        (NESTED, {"image_processor": UNNAMED}),
        (NESTED, {"image_processor": {**UNNAMED, "image_processor_type": None}}),
    ],
)
def test_however_the_type_is_missing_it_is_the_one_of_the_model(
    folder: Path, name: str, content: object
) -> None:
    (folder / name).write_text(json.dumps(content))
    found = read_preprocessor_config(folder, AutoConfig.from_pretrained(folder))
    assert plain(found["image_processor_type"]) == "LlavaImageProcessor"


@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
def test_a_type_that_is_there_is_kept(folder: Path, key: str) -> None:
    (folder / IMAGES).write_text(json.dumps({**UNNAMED, key: "SiglipImageProcessor"}))
    found = read_preprocessor_config(folder, AutoConfig.from_pretrained(folder))
    assert found[key] == "SiglipImageProcessor"
    assert len(found) == len(UNNAMED) + 1


def test_a_model_without_a_processor_of_its_own_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / IMAGES).write_text(json.dumps(UNNAMED))
    with pytest.raises(CheckpointError, match="does not name its type"):
        read_preprocessor_config(folder, AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("content", ["[]", '"CLIPImageProcessor"', "3"])
def test_what_is_no_config_of_a_processor_is_refused(folder: Path, content: str) -> None:
    (folder / IMAGES).write_text(content)
    with pytest.raises(CheckpointError):
        read_preprocessor_config(folder, AutoConfig.from_pretrained(folder))
