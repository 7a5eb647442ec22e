"""Sizes of models with tiles from config.json alone are those of the model that is exported."""

from __future__ import annotations

import pytest
from anyres_checkpoints import ANYRES_CHECKPOINTS, anyres_config

from divprune.export.families import class_of
from divprune.runtime.errors import CheckpointError
from divprune.runtime.families import family_class, read_dimensions
from tests.runtime.families.anyres_cases import NEXT_PROCESSOR, ONEVISION_PROCESSOR

pytest.importorskip("transformers", reason="its configurations are the reference")


@pytest.mark.parametrize("name", ANYRES_CHECKPOINTS)
def test_tower_and_tokens_are_those_of_the_export(name: str) -> None:
    config = anyres_config(ANYRES_CHECKPOINTS[name])
    read = read_dimensions(name, config.to_dict())
    export = class_of(config.model_type)(config)
    processor = ONEVISION_PROCESSOR if "onevision" in name else NEXT_PROCESSOR
    facts = {**export.facts(), "image_token": "<image>", "video_token": "<video>"}
    family = family_class(export.name).from_facts(facts, processor, None)
    assert read.tower == export.tower
    assert read.num_image_tokens == family.dims()["tokens"].maximum
    assert read.typical_image_tokens == family.count_tokens(640, 480)


def test_a_config_that_leaves_the_defaults_out_is_read_with_them() -> None:
    content = anyres_config(ANYRES_CHECKPOINTS["onevision-qwen2-hub"]).to_dict()
    defaults = ("vision_feature_layer", "vision_feature_select_strategy")
    short = {key: content[key] for key in content if key not in defaults}
    assert read_dimensions("a model", short) == read_dimensions("a model", content)


@pytest.mark.parametrize("grids", [None, [], [[16]], "many", [[16, 8]], [[8, 16], [16, 16]]])
def test_grids_that_are_none_are_refused(grids: object) -> None:
    content = anyres_config(ANYRES_CHECKPOINTS["next-llama-hub"]).to_dict()
    with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
        read_dimensions("broken", {**content, "image_grid_pinpoints": grids})


@pytest.mark.parametrize("left_out", ["image_size", "patch_size"])
def test_a_default_that_does_not_fit_the_rest_is_refused(left_out: str) -> None:
    content = anyres_config(ANYRES_CHECKPOINTS["next-llama-hub"]).to_dict()
    del content["vision_config"][left_out]
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_dimensions("broken", content)
