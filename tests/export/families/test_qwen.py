"""Qwen's towers against transformers, in torch and traced; configs that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

from divprune.export.families import class_of
from divprune.export.vision.attention import fuse_attention
from divprune.export.vision.fusions import fuse_norms, fuse_rotary
from divprune.export.vision.trace import TracedInput, trace_module
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families import VideoFrames, family_class
from divprune.runtime.families._qwen_vision import QwenVision

NAMES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
# Of 8 pixels a cell: windows of 2 x 2 cells that are full, ragged one way, or both.
SIZES = ((32, 32), (48, 80), (80, 48), (24, 40), (8, 64), (40, 16), (56, 56), (16, 16), (72, 24))
CASES = [(name, size) for name in NAMES for size in SIZES]


def config_of(name: str, **vision: Any) -> Any:
    common = {"depth": 4, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
    towers = {
        "qwen3_vl": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 2],
        },
        "qwen2_5_vl": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 200,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1] if name == "qwen3_vl" else [1, 1, 2],
        },
    }
    return transformers.AutoConfig.for_model(
        name, vision_config={**common, **towers[name], **vision}, text_config=text
    )


def preprocessor(name: str) -> dict[str, Any]:
    area = {"shortest_edge": 64, "longest_edge": 100_000}
    common = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": area}
    kind = "Qwen3VL" if name == "qwen3_vl" else "Qwen2VL"
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        **common,
        "video_processor": {"video_processor_type": f"{kind}VideoProcessor", **common},
    }


class Model:
    """A tower of transformers with random weights, and the same one of the export."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(NAMES.index(name))
        self.config = config_of(name)
        kind: Any = class_of(name)
        self.tower: Any = kind.build_tower(self.config.vision_config).eval()
        with torch.no_grad():
            for key, parameter in self.tower.named_parameters():
                is_norm = "norm" in key or "ln_q" in key
                scale = 1.0 if is_norm and key.endswith("weight") else 0.0
                parameter.copy_(scale + 0.2 * torch.randn(parameter.shape))
        self.family = class_of(name)(self.config)
        tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        runtime: Any = family_class(name).from_facts(
            self.family.facts() | tokens, preprocessor(name), None
        )
        self.runtime: QwenVision = runtime
        self.module = self.family.vision_module()
        state = {
            f"visual.{key}": value
            for key, value in self.tower.state_dict().items()
            if "rotary" not in key
        }
        self.state = state
        self.module.load_state_dict(state, assign=True, strict=True)

    def reference(self, prepared: Any) -> list[np.ndarray]:
        """Features and planes of transformers' tower."""
        steps, rows, columns = prepared.grid
        pixels = torch.from_numpy(prepared.inputs["pixel_values"])
        grid = torch.tensor([[steps, 2 * rows, 2 * columns]])
        with torch.no_grad():
            found = self.tower(pixels.reshape(-1, 3 * 2 * 4 * 4), grid_thw=grid)
        planes = getattr(found, "deepstack_features", None) or []
        return [each.numpy() for each in (found.pooler_output, *planes)]

    def features(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arguments = [torch.from_numpy(inputs[each.name]) for each in self.family.vision_inputs()]
        with torch.no_grad():
            found = self.module(*arguments)
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]


@pytest.fixture(scope="module")
def model() -> Any:
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            made[name] = Model(name)
        return made[name]

    return get


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def check(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 2e-5) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize(("name", "size"), CASES)
def test_features_are_those_of_transformers(model: Any, name: str, size: tuple[int, int]) -> None:
    qwen = model(name)
    prepared = qwen.runtime.prepare_image(picture(*size))
    assert prepared.grid == (1, size[1] // 8, size[0] // 8)
    check(qwen.features(prepared.inputs), qwen.reference(prepared))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_frames_of_a_video_do_not_see_each_other(model: Any, name: str, count: int) -> None:
    qwen = model(name)
    frames = tuple(picture(40, 24, seed) for seed in range(count))
    prepared = qwen.runtime.prepare_video(VideoFrames(frames, fps=1.0), num_frames=count)
    check(qwen.features(prepared.inputs), qwen.reference(prepared))


class Weights:
    """What a trace needs to know of a checkpoint."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype


def trace(qwen: Model) -> Any:
    import onnx_ir as ir

    example = qwen.runtime.prepare_image(picture(40, 24)).inputs
    inputs = [
        TracedInput(each.name, each.shape, each.dtype, example[each.name].shape)
        for each in qwen.family.vision_inputs()
    ]
    names = ["image_features", *qwen.family.vision_outputs()]
    weights: Any = Weights(ir.DataType.FLOAT)
    model = trace_module(qwen.family.vision_module(), inputs, names, weights)
    for value in model.graph.initializers.values():
        if value.const_value is None:
            assert value.name is not None
            value.const_value = ir.tensor(qwen.state[value.name].numpy(), name=value.name)
    return model


def run(model: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnx_ir as ir

    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, dict(inputs))
    return found


def is_of_rows(node: Any) -> bool:
    """Whether a node computes with rows of the tower, rather than with sizes."""
    dtype = node.outputs[0].dtype
    return dtype is not None and dtype.name == "FLOAT" and node.outputs[0].shape.rank() > 2


@pytest.mark.parametrize("name", NAMES)
def test_one_traced_graph_takes_pictures_of_any_size_and_videos(model: Any, name: str) -> None:
    qwen = model(name)
    graph = trace(qwen)
    assert "If" not in {node.op_type for node in graph.graph}
    media = [qwen.runtime.prepare_image(picture(*size)) for size in SIZES]
    frames = tuple(picture(40, 24, seed) for seed in range(6))
    media.append(qwen.runtime.prepare_video(VideoFrames(frames, fps=1.0), num_frames=6))
    for prepared in media:
        check(run(graph, prepared.inputs), qwen.reference(prepared))
    assert fuse_attention(graph.graph) == qwen.config.vision_config.depth
    assert "Softmax" not in {node.op_type for node in graph.graph}
    assert fuse_rotary(graph) == 2 * qwen.config.vision_config.depth
    # Qwen2.5-VL alone has RMSNorm: two a layer and one before the merger.
    assert fuse_norms(graph) == (9 if name == "qwen2_5_vl" else 0)
    assert not {"Pow", "Concat"} & {node.op_type for node in graph.graph if is_of_rows(node)}
    for prepared in media:
        check(run(graph, prepared.inputs), qwen.reference(prepared))


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("qwen3_vl", {"spatial_merge_size": 4}, "spatial_merge_size"),
        ("qwen2_vl", {"spatial_merge_size": 1}, "spatial_merge_size"),
        ("qwen3_vl", {"patch_size": [4, 8]}, "patch_size"),
        ("qwen3_vl", {"hidden_size": 36}, "head dimension"),
        ("qwen3_vl", {"deepstack_visual_indexes": [2, 0]}, "deepstack_visual_indexes"),
        ("qwen3_vl", {"deepstack_visual_indexes": [1, 9]}, "deepstack_visual_indexes"),
        ("qwen3_vl", {"num_position_embeddings": 15}, "num_position_embeddings"),
        ("qwen2_5_vl", {"window_size": 4}, "window_size"),
        ("qwen2_5_vl", {"fullatt_block_indexes": [7]}, "fullatt_block_indexes"),
    ],
)
def test_a_tower_that_cannot_be_carried_out_is_refused_by_name(
    name: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        class_of(name)(config_of(name, **settings))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("qwen3_vl", {"architectures": ["Qwen3VLMoeForConditionalGeneration"]}, "Qwen3VLMoe"),
        ("qwen3_vl", {"vision_config": {"depth": 4}}, "deepstack_visual_indexes"),
        ("qwen2_5_vl", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen2_5_vl", {"text_config": {"use_sliding_window": True}}, "use_sliding_window"),
    ],
)
def test_a_config_that_cannot_be_carried_out_is_refused_by_name(
    name: str, content: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        class_of(name).check(content)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "language_model.embed_tokens.weight"),
        ("model.language_model.norm.weight", "language_model.norm.weight"),
        ("language_model.norm.weight", "language_model.norm.weight"),
        ("model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_every_layout_has_one_canonical_name(key: str, expected: str) -> None:
    for name in NAMES:
        assert class_of(name).canonical_name(key) == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_sees_the_tower_that_is_exported(name: str) -> None:
    content = config_of(name).to_dict()
    flat = {**content, **content["text_config"], "text_config": None}
    exported = class_of(name)(config_of(name)).tower
    for each in (content, flat):
        planned = family_class(name).read_dimensions("tiny", each)
        assert planned.tower == exported
        assert planned.text.num_layers == 4
        assert planned.text.hidden_size == 32
        assert planned.text.head_dim == 8
