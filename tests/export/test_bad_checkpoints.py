"""Checkpoints that cannot be carried, of every family: errors by name, before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyres_checkpoints import write_anyres_checkpoint
from qwen_checkpoints import write_qwen_checkpoint
from tiled_checkpoints import write_tiled_checkpoint

from checkpoints import write_tiny_checkpoint
from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime.errors import CheckpointError, UnsupportedError

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
VIDEOS, BOTH = "video_preprocessor_config.json", "processor_config.json"
CHECKPOINTS: dict[str, Callable[[Path, str], Path]] = {
    "clip-llama-hub": write_tiny_checkpoint,
    "next-llama-hub": write_anyres_checkpoint,
    "next-video-llama-hub": write_anyres_checkpoint,
    "onevision-qwen2-hub": write_anyres_checkpoint,
    "internvl-qwen2-hub": write_tiled_checkpoint,
    "smolvlm-llama": write_tiled_checkpoint,
    "idefics3-llama": write_tiled_checkpoint,
    "qwen2-hub-tied": write_qwen_checkpoint,
    "qwen25-hub": write_qwen_checkpoint,
    "qwen3-hub-tied": write_qwen_checkpoint,
}
# Settings that no graph carries: checkpoint, key of config.json, value, what the error names.
SETTINGS: list[tuple[str, str, Any, str]] = [
    ("clip-llama-hub", "vision_feature_layer", -9, "vision_feature_layer"),
    ("clip-llama-hub", "vision_config.hidden_act", "none", "KeyError: 'none'"),
    ("next-llama-hub", "vision_feature_select_strategy", "full", "strategy default"),
    ("next-llama-hub", "image_grid_pinpoints", [[16, 30]], "multiples of 16"),
    ("next-llama-hub", "image_grid_pinpoints", [16], "image_grid_pinpoints"),
    ("next-llama-hub", "image_grid_pinpoints", [[16, "32"]], "image_grid_pinpoints"),
    ("next-llama-hub", "image_grid_pinpoints", [[16, 10**12]], "image_grid_pinpoints"),
    ("next-llama-hub", "architectures", 7, "config.json has a value that does not fit"),
    ("next-video-llama-hub", "spatial_pool_mode", "max", "spatial_pool_mode average"),
    ("next-video-llama-hub", "spatial_pool_stride", 4, "spatial_pool_stride 2"),
    ("onevision-qwen2-hub", "vision_aspect_ratio", "pad", "vision_aspect_ratio"),
    ("internvl-qwen2-hub", "downsample_ratio", 0.3, "downsample_ratio"),
    ("internvl-qwen2-hub", "downsample_ratio", "half", "downsample_ratio"),
    ("internvl-qwen2-hub", "vision_config.image_size", [16], "vision_config.image_size"),
    ("internvl-qwen2-hub", "image_seq_length", 16, "image_seq_length"),
    ("smolvlm-llama", "scale_factor", 3, "scale_factor"),
    ("smolvlm-llama", "scale_factor", 10**12, "scale_factor"),
    ("idefics3-llama", "vision_config.image_size", [16, 16], "vision_config.image_size"),
    ("qwen2-hub-tied", "vision_config.spatial_merge_size", 3, "spatial_merge_size 2"),
    ("qwen2-hub-tied", "rope_scaling.mrope_section", [2, 3, 2], r"\[2, 3, 2\] with a sum of 7"),
    ("qwen2-hub-tied", "rope_scaling.mrope_section", [10**12, 3, 3], "mrope_section"),
    ("qwen2-hub-tied", "rope_scaling.mrope_section", [2, "3", 3], "mrope_section"),
    ("qwen2-hub-tied", "rope_scaling", None, "sections of the multimodal rotary"),
    ("qwen25-hub", "vision_config.spatial_merge_size", 4, "spatial_merge_size 2"),
    ("qwen25-hub", "rope_scaling.mrope_section", [2, 3, 4], r"\[2, 3, 4\] with a sum of 9"),
    ("qwen25-hub", "vision_config.fullatt_block_indexes", None, "fullatt_block_indexes"),
    ("qwen25-hub", "use_sliding_window", True, "use_sliding_window"),
    ("qwen3-hub-tied", "vision_config.spatial_merge_size", 1, "spatial_merge_size 2"),
    ("qwen3-hub-tied", "vision_config", 7, "config.json has a value that does not fit"),
    ("qwen3-hub-tied", "vision_config.deepstack_visual_indexes", None, "deepstack_visual_indexes"),
    ("qwen3-hub-tied", "vision_config.deepstack_visual_indexes", [2, 0], "in order"),
    ("qwen3-hub-tied", "vision_config.deepstack_visual_indexes", [0, 1, 2, 3], "more decoder"),
    ("qwen3-hub-tied", "text_config.rope_scaling.mrope_section", [0, 4, 4], "do not add up"),
]
SETTINGS += [
    ("clip-llama-hub", "image_token_index", 479, "image_token_index"),
    ("next-llama-hub", "image_token_index", 5, "image_token_index"),
    ("next-video-llama-hub", "image_token_index", 5, "image_token_index"),
    ("onevision-qwen2-hub", "image_token_index", 5, "image_token_index"),
    ("internvl-qwen2-hub", "image_token_id", 5, "image_token_id"),
    ("smolvlm-llama", "image_token_id", 5, "image_token_id"),
    ("qwen2-hub-tied", "image_token_id", 7, "image_token_id"),
    ("qwen3-hub-tied", "image_token_id", 3, "image_token_id"),
]
# Processors that do not make what the tower takes: checkpoint, file, key, value, what is named.
PROCESSORS: list[tuple[str, str, str, Any, str]] = [
    ("clip-llama-hub", IMAGES, "crop_size", {"height": 28, "width": 28}, r"found: +\(28, 28\)"),
    ("next-llama-hub", IMAGES, "size", {"shortest_edge": 24}, "16 x 16 pixels, the tower's"),
    ("next-llama-hub", IMAGES, "image_grid_pinpoints", [[16, 32]], "image_grid_pinpoints"),
    ("next-llama-hub", IMAGES, "image_grid_pinpoints", [16], "does not fit"),
    ("next-video-llama-hub", IMAGES, "image_grid_pinpoints", 7, "does not fit"),
    ("qwen2-hub-tied", IMAGES, "size", "large", "option size of Qwen2VLImageProcessor"),
    ("qwen25-hub", VIDEOS, "size", [1], "option size of Qwen2VLVideoProcessor"),
    ("next-video-llama-hub", IMAGES, "crop_size", None, r"found: +\(224, 224\)"),
    ("onevision-qwen2-hub", IMAGES, "size", {"height": 24, "width": 24}, "20 x 20 pixels"),
    ("onevision-qwen2-hub", IMAGES, "image_processor_type", "CLIPImageProcessor", "CLIP"),
    ("internvl-qwen2-hub", IMAGES, "size", {"height": 24, "width": 24}, "does not fit the vision"),
    ("internvl-qwen2-hub", IMAGES, "image_mean", None, "does not say image_mean"),
    ("internvl-qwen2-hub", IMAGES, "image_processor_type", "CLIPImageProcessor", "GotOcr2"),
    ("smolvlm-llama", IMAGES, "max_image_size", {"longest_edge": 24}, "max_image_size"),
    ("smolvlm-llama", IMAGES, "image_processor_type", "CLIPImageProcessor", "SmolVLMImage"),
    ("idefics3-llama", BOTH, "image_processor.max_image_size", {"longest_edge": 24}, "max_image"),
    ("qwen2-hub-tied", IMAGES, "merge_size", 3, "merge_size 2, from config.json"),
    ("qwen2-hub-tied", VIDEOS, "patch_size", 8, "Qwen2VLVideoProcessor and vision tower"),
    ("qwen25-hub", IMAGES, "patch_size", 8, "patch_size 4, from config.json"),
    ("qwen25-hub", VIDEOS, "video_processor_type", "SmolVLMVideoProcessor", "SmolVLMVideo"),
    ("qwen3-hub-tied", IMAGES, "temporal_patch_size", 1, "temporal_patch_size 2"),
    ("qwen3-hub-tied", VIDEOS, "merge_size", 4, "Qwen3VLVideoProcessor and vision tower"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by name, written once: copy before changing anything."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else CHECKPOINTS[name](path, name)

    return get


def change(path: Path, file: str, key: str, value: Any) -> None:
    """Set a value of a JSON file by its path of keys; None takes the key out."""
    content = json.loads((path / file).read_text())
    part = content
    *parents, last = key.split(".")
    for parent in parents:
        part = part[parent]
    part[last] = value
    if value is None:
        del part[last]
    (path / file).write_text(json.dumps(content))


def refuse(path: Path, message: str) -> None:
    """An export is refused and leaves nothing behind."""
    folder = path.parent
    options = ExportOptions(str(path), keep=0.3, output=folder / "engine")
    with pytest.raises((CheckpointError, UnsupportedError), match=f"(?s){message}"):
        export_model(options)
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize(("name", "key", "value", "message"), SETTINGS)
def test_a_setting_that_cannot_be_carried_out_is_refused_by_name(
    name: str,
    key: str,
    value: Any,
    message: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = Path(shutil.copytree(checkpoint(name), tmp_path / "checkpoint"))
    change(path, CONFIG, key, value)
    refuse(path, message)


@pytest.mark.parametrize(("name", "file", "key", "value", "message"), PROCESSORS)
def test_a_processor_that_disagrees_with_the_model_is_refused_by_name(
    name: str,
    file: str,
    key: str,
    value: Any,
    message: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = Path(shutil.copytree(checkpoint(name), tmp_path / "checkpoint"))
    change(path, file, key, value)
    refuse(path, message)
