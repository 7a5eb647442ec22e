"""Weights that are lent to a tower for its linear layers one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from divprune.export.checkpoint.source import resolve_model
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.verify.reference import lend_weights, load_weights


@pytest.mark.parametrize("name", ["clip-llama-hub", "siglip-qwen2-v4-tied"])
def test_a_tower_answers_the_same_and_keeps_no_linear_layer(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    path = str(checkpoint(name))
    plan = make_plan(ExportOptions(path, 0.1), resolve_model(path))
    inputs = [torch.from_numpy(value) for value in plan.example_inputs().values()]
    whole, lent = plan.family.vision_module([]), plan.family.vision_module([])
    load_weights(whole, plan.weights)
    with torch.no_grad(), lend_weights(lent, plan.weights):
        found = lent(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(found, whole(*inputs), rtol=0, atol=0)
    linear = [part for part in lent.modules() if type(part) is torch.nn.Linear]
    assert linear
    assert all(part.weight.is_meta for part in linear)
