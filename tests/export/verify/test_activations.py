"""Towers whose activations are too large for float16 are found before a directory is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from divprune.export.checkpoint.source import resolve_model
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.verify.activations import Largest, check_half, watch_activations
from divprune.export.verify.vision import check_vision
from divprune.runtime.errors import DivPruneError, NumericalError

NAME = "siglip-qwen2-v4-tied"


def enlarge(checkpoint: Path, copy: Path, factor: float) -> Path:
    """One channel of a layer's output ``factor`` times as large: its weights fit float16."""
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
            continue
        tensors = load_file(file)
        for key in tensors:
            if key.endswith("vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight"):
                tensors[key][5] *= factor
        save_file(tensors, copy / file.name, metadata={"format": "pt"})
    return copy


def check(checkpoint: Path, dtype: str, directory: Path) -> None:
    plan = make_plan(
        ExportOptions(str(checkpoint), 0.1, dtype=dtype), resolve_model(str(checkpoint))
    )
    check_vision(plan, directory)


def test_an_overflow_is_refused_with_its_place_where_the_tower_is_in_fp16(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = enlarge(checkpoint(NAME), tmp_path / "large", 100_000)
    with pytest.raises(NumericalError, match=r"(?s)overflow fp16.*layers\.\d.*--dtype fp32"):
        check(path, "fp16", tmp_path)
    with pytest.raises(DivPruneError, match=r"model\.onnx"):  # beyond the check: there is no graph
        check(path, "fp32", tmp_path)


def test_the_largest_number_is_found_on_both_sides_of_a_part() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    torch.nn.init.constant_(module[0].weight, -1.0)
    with watch_activations(module) as largest:
        module(torch.tensor([[3.0, 4.0]]))
    assert (largest.value, largest.part) == (7.0, "0")
    with watch_activations(module) as largest:
        module(torch.tensor([[8.0, -7.0]]))
    assert (largest.value, largest.part) == (8.0, "0")
    module(torch.tensor([[80.0, 0.0]]))
    assert largest.value == 8.0


def test_numbers_near_the_end_of_float16_are_worth_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        check_half(Largest(16_000.0, "norm"))
    assert not caplog.records
    check_half(Largest(20_000.0, "norm"))
    assert "reach 20000 at norm" in caplog.text
    with pytest.raises(NumericalError, match="norm"):
        check_half(Largest(66_000.0, "norm"))
