"""A manifest of no real directory, and a way to change one field deep inside a manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from divprune.runtime.directory.manifest import (
    SCHEMA_VERSION,
    FileRecord,
    GraphSpec,
    KVCacheSpec,
    Manifest,
    ModelInfo,
    SelectorInfo,
    TensorSpec,
    TowerInfo,
)

EXAMPLE_TOWER = TowerInfo(
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    num_positions=10,
    patch_size=2,
    num_channels=3,
    feature_size=8,
)


def example_manifest() -> Manifest:
    """4 of 10 tokens kept, with the baseline."""
    pixels = TensorSpec("pixel_values", "float32", (1, 3, 8, 8))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            "some/model",
            None,
            "llava",
            "clip",
            "llama",
            6,
            32,
            31,
            None,
            1,
            4096,
            2,
            16,
            EXAMPLE_TOWER,
            {},
        ),
        selector=SelectorInfo("divprune", 1, 0.4, 10, 4, "contiguous", True, False, False, {}),
        target="onnxruntime",
        dialect="ort",
        dtype="fp32",
        quant=None,
        vision_quant=None,
        prefill_quant=None,
        graphs={"vision": GraphSpec("vision/model.onnx", 20, (pixels,), (pixels,))},
        dims={},
        kv_cache=KVCacheSpec(2, 1, 4, "float32"),
        max_prefill_len=40,
        max_seq_len=50,
        max_weight_mib=None,
        baseline=True,
        verified=True,
        requires={"onnxruntime": "1.22"},
        tools={},
        files={"vision/model.onnx": FileRecord("0" * 64, 1)},
    )


def with_changes(manifest: Manifest, **changes: Any) -> Manifest:
    """Copy a manifest; ``selector__nested=False`` changes a field of a part of it."""
    for path, value in changes.items():
        part, _, field = path.partition("__")
        new = replace(getattr(manifest, part), **{field: value}) if field else value
        manifest = replace(manifest, **{part: new})
    return manifest


def with_cover(manifest: Manifest) -> Manifest:
    """The same with a vision graph that tells ``selection_cover``."""
    vision = manifest.graphs["vision"]
    cover = TensorSpec("selection_cover", "float32", (4,))
    graph = replace(vision, outputs=(*vision.outputs, cover))
    return with_changes(manifest, graphs={**manifest.graphs, "vision": graph})
