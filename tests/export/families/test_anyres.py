"""The families with tiles: their vision modules make the features that transformers makes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from divprune.export.families.llava_next import LlavaNextFamily
from divprune.export.families.llava_next_video import LlavaNextVideoFamily
from divprune.export.families.llava_onevision import LlavaOnevisionFamily
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families.llava_next import LlavaNext
from divprune.runtime.families.llava_next_video import LlavaNextVideo
from divprune.runtime.families.llava_onevision import LlavaOnevision
from divprune.runtime.families.protocol import Prepared, VideoFrames
from tests.runtime.families.anyres_cases import (
    NEXT_GRIDS,
    NEXT_PROCESSOR,
    ONEVISION_GRIDS,
    ONEVISION_PROCESSOR,
    SIZES,
    noise,
)

TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 200}
TEXT |= {"num_attention_heads": 4}
CLIP = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 4, "hidden_size": 16}
CLIP |= {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "image_size": 20, "vision_use_head": False}
NEXT = {"vision_config": CLIP, "text_config": {"model_type": "llama", **TEXT}}
NEXT |= {"image_grid_pinpoints": NEXT_GRIDS}
ONEVISION = {"vision_config": SIGLIP, "text_config": {"model_type": "qwen2", **TEXT}}
ONEVISION |= {"image_grid_pinpoints": ONEVISION_GRIDS, "vision_aspect_ratio": "anyres_max_2"}

FAMILIES: Mapping[str, tuple[Any, Any, Any, dict[str, Any], dict[str, Any]]] = {
    "llava_next": (LlavaNextFamily, LlavaNext, transformers.LlavaNextConfig, NEXT, NEXT_PROCESSOR),
    "llava_next_video": (
        LlavaNextVideoFamily,
        LlavaNextVideo,
        transformers.LlavaNextVideoConfig,
        NEXT,
        NEXT_PROCESSOR,
    ),
    "llava_onevision": (
        LlavaOnevisionFamily,
        LlavaOnevision,
        transformers.LlavaOnevisionConfig,
        ONEVISION,
        ONEVISION_PROCESSOR,
    ),
}
WITH_VIDEO = ["llava_next_video", "llava_onevision"]


class Case:
    """One family on both sides, and transformers' model with the same random weights."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.export_class, self.runtime_class, make_config, content, processor = FAMILIES[name]
        self.config = make_config(**{**content, **changes})
        self.family = self.export_class(self.config)
        self.facts = {**self.family.facts(), "image_token": "<image>", "video_token": "<video>"}
        self.runtime = self.runtime_class.from_facts(self.facts, processor, 80)
        torch.manual_seed(0)
        self.model = transformers.AutoModelForImageTextToText.from_config(self.config).eval()
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)

    def module(self, *signals: str) -> torch.nn.Module:
        module: torch.nn.Module = self.family.vision_module(signals)
        values = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, parameter in (*module.named_parameters(), *module.named_buffers()):
            assert parameter.is_meta
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, values[name])
        return module

    def features(self, prepared: Prepared, size: tuple[int, int]) -> torch.Tensor:
        """Of transformers, from the same pixels."""
        pixels = torch.from_numpy(prepared.inputs["pixel_values"])[None]
        with torch.no_grad():
            if prepared.kind == "video":
                return self.model.get_video_features(pixels).pooler_output[0]
            sizes = torch.tensor([size[::-1]])
            return self.model.get_image_features(pixels, sizes).pooler_output[0]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def tensors(prepared: Prepared) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in prepared.inputs.items()}


def video(count: int) -> VideoFrames:
    return VideoFrames(tuple(noise((40, 30), seed) for seed in range(count)), fps=None)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_features_of_pictures_are_those_of_transformers(case: Case, size: tuple[int, int]) -> None:
    module = case.module()
    # Every grid of the checkpoint: the smaller ones that a limit leaves are not transformers'.
    unlimited = case.runtime_class.from_facts(case.facts, FAMILIES[case.family.name][4], None)
    prepared = unlimited.prepare_image(noise(size))
    with torch.no_grad():
        features = module(**tensors(prepared))
    torch.testing.assert_close(features, case.features(prepared, size), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 6, 8])
@pytest.mark.parametrize("name", WITH_VIDEO)
def test_features_of_videos_are_those_of_transformers(name: str, count: int) -> None:
    case = Case(name)
    prepared = case.runtime.prepare_video(video(count), count)
    with torch.no_grad():
        features = case.module()(**tensors(prepared))
    torch.testing.assert_close(features, case.features(prepared, (1, 1)), rtol=1e-5, atol=1e-5)


def test_several_feature_layers_stand_side_by_side() -> None:
    case = Case("llava_next", vision_feature_layer=[-2, 1])
    prepared = case.runtime.prepare_image(noise((48, 16)))
    with torch.no_grad():
        features = case.module()(**tensors(prepared))
    torch.testing.assert_close(features, case.features(prepared, (48, 16)), rtol=1e-5, atol=1e-5)
    assert case.family.tower.feature_size == 32


def test_the_traced_graph_takes_any_number_of_crops_and_tokens(case: Case) -> None:
    module = case.module()
    example = case.runtime.prepare_image(noise((32, 32)))
    inputs = case.family.vision_inputs()
    assert [each.name for each in inputs] == list(example.inputs)
    shapes = [{i: d for i, d in enumerate(each.shape) if isinstance(d, str)} for each in inputs]
    program = torch.onnx.export(
        module,
        tuple(tensors(example).values()),
        dynamo=True,
        dynamic_shapes=tuple(
            {axis: torch.export.Dim(name, min=1) for axis, name in shape.items()}
            for shape in shapes
        ),
        input_names=[each.name for each in inputs],
        verbose=False,
    )
    assert program is not None
    file = io.BytesIO()
    program.save(file)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(file.getvalue())
    pictures = [case.runtime.prepare_image(noise(size)) for size in [(48, 16), (3, 2), (30, 40)]]
    if case.family.name in WITH_VIDEO:
        pictures += [case.runtime.prepare_video(video(count), count) for count in (1, 2)]
    for prepared in pictures:
        (features,) = session.run(None, dict(prepared.inputs))
        with torch.no_grad():
            expected = module(**tensors(prepared))
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_is_a_tensor_of_the_checkpoint(case: Case) -> None:
    canonical = case.family.canonical_name
    stored = {canonical(name): value.shape for name, value in case.model.state_dict().items()}
    module = {
        canonical(name): value.shape
        for name, value in case.family.vision_module().named_parameters()
    }
    assert module.items() <= stored.items()
    assert "image_newline" in module
    decoder = ("language_model.", "lm_head.")
    assert stored.keys() - module.keys() == {name for name in stored if name.startswith(decoder)}


@pytest.mark.parametrize(
    "stored, name",
    [
        ("image_newline", "image_newline"),
        ("model.image_newline", "image_newline"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_layouts_of_the_hub_and_of_transformers_5_have_one_name(
    case: Case, stored: str, name: str
) -> None:
    expected = f"language_model.{name}" if name.startswith("layers.") else name
    assert case.family.canonical_name(stored) == expected


def test_signals_are_gathered_like_the_tokens_and_zero_at_newlines(case: Case) -> None:
    prepared = case.runtime.prepare_image(noise((30, 40)))
    names = sorted(case.family.signals)
    with torch.no_grad():
        features, *signals = case.module(*names)(**tensors(prepared))
        alone = case.module()(**tensors(prepared))
    torch.testing.assert_close(features, alone)
    rows = prepared.inputs["token_rows"].reshape(prepared.num_tokens, -1)[:, 0]
    is_newline = torch.from_numpy(rows == rows.max())
    assert is_newline.any()
    for name, signal in zip(names, signals, strict=True):
        assert len(signal) == prepared.num_tokens, name
        assert not signal[is_newline].any(), name
        assert signal[~is_newline].reshape(-1).abs().max() > 0, name


def test_the_projector_alone_makes_the_features_of_patches() -> None:
    case = Case("llava_next")
    prepared = case.runtime.prepare_image(noise((30, 40)))
    projector = case.family.projector_module()
    assert all("multi_modal_projector" in name for name, _ in projector.named_parameters())
    values = dict(case.model.named_parameters())
    projector.load_state_dict(
        {name: values[name] for name, _ in projector.named_parameters()}, assign=True
    )
    with torch.no_grad():
        features, patches = case.module("patch_features")(**tensors(prepared))
        rows = torch.from_numpy(prepared.inputs["token_rows"])
        is_patch = rows != rows.max()
        torch.testing.assert_close(projector(patches[is_patch]), features[is_patch])


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("llava_next", {"vision_feature_select_strategy": "full"}, "strategy default"),
        ("llava_onevision", {"vision_feature_select_strategy": "default"}, "strategy full"),
        ("llava_next", {"image_grid_pinpoints": [[16, 30]]}, "multiples of 16"),
        ("llava_next", {"text_config": {"model_type": "granite", **TEXT}}, "Granite Vision"),
        ("llava_next_video", {"spatial_pool_mode": "max"}, "max, 2"),
        ("llava_next_video", {"spatial_pool_stride": 4}, "average, 4"),
        ("llava_onevision", {"vision_aspect_ratio": "pad"}, "anyres_max_N"),
        ("llava_next", {"vision_config": {"model_type": "pixtral"}}, "clip_vision_model"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    export_class, _, make_config, content, _ = FAMILIES[name]
    with pytest.raises(UnsupportedError, match=message):
        export_class(make_config(**{**content, **changes}))


def test_another_architecture_is_refused_by_name() -> None:
    content = {"model_type": "llava_next", **NEXT}
    with pytest.raises(UnsupportedError, match="LlavaOnevisionForConditionalGeneration"):
        LlavaNextFamily.check(
            {**content, "architectures": ["LlavaOnevisionForConditionalGeneration"]}
        )
    LlavaNextFamily.check({**content, "architectures": ["LlavaNextForConditionalGeneration"]})
