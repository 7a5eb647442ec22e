"""Predictions: against recorded measurements, real files, and what must hold between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from divprune.configs.device import load_device
from divprune.runtime.backends.tensorrt.build.memory_limit import build_peak, workspace_bytes
from divprune.runtime.directory.manifest import TowerInfo
from divprune.runtime.families.dimensions import ModelDimensions, TextDimensions
from divprune.runtime.reports.plan.fit import cheapest_fit, estimate, spare_bytes, swap_to_build
from divprune.runtime.reports.plan.settings import PlanSettings
from divprune.runtime.reports.plan.source import find_model
from divprune.runtime.reports.plan.weights import llm_weights, stored_bytes, vision_weights

MEASURED = Path(__file__).parents[4] / "benchmarks" / "results" / "plan-accuracy.json"
RUNS = json.loads(MEASURED.read_text())["runs"]
TOLERANCE = 0.1
MIB, GIB = 1 << 20, 1 << 30
CPU = PlanSettings("onnxruntime", 0.1, 2048)
SEVEN = find_model("llava-1.5-7b").dimensions


def recorded_model(record: dict) -> ModelDimensions:
    parts = {"tower": TowerInfo(**record["tower"]), "text": TextDimensions(**record["text"])}
    return ModelDimensions(**record | parts)


def name_of(run: dict) -> str:
    return f"{run['shape']}{''.join(run['options'])}-{run['settings']['keep']}"


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_prediction_is_within_a_tenth_of_the_recorded_peak(run) -> None:
    """benchmarks/plan_accuracy.py measured it; this fails when the predictor moves away."""
    needs = estimate(recorded_model(run["dimensions"]), PlanSettings(**run["settings"]))
    assert abs(needs.host_peak / run["measured_bytes"] - 1) <= TOLERANCE


def test_recorded_runs_cover_precisions_fractions_and_shapes() -> None:
    settings = [run["settings"] for run in RUNS]
    assert {each["keep"] for each in settings} == {0.1, 1.0}
    assert {(each["quant"] or each["dtype"])[:4] for each in settings} == (
        {"fp16", "fp32", "int4", "int8"}
    )
    assert len({run["shape"] for run in RUNS}) >= 2
    sizes = [run["measured_bytes"] for run in RUNS]
    assert max(sizes) > 10 * min(sizes)


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_stored_weights_are_as_large_as_the_recorded_files(run) -> None:
    """Vectors, which the plan leaves out, and small tensors in the graph's own file are little."""
    model, settings = recorded_model(run["dimensions"]), PlanSettings(**run["settings"])
    for graph, weights in (("llm", llm_weights), ("vision", vision_weights)):
        size = run["weight_files"][f"{graph}/model.onnx.data"]
        assert stored_bytes(weights(model, settings)) == pytest.approx(size, rel=0.01)


def test_sequential_residency_needs_the_larger_part_and_not_the_sum() -> None:
    together = estimate(SEVEN, replace(CPU, quant="int4"))
    apart = estimate(SEVEN, replace(CPU, quant="int4", residency="sequential"))
    saved = together.host_peak - apart.host_peak
    assert saved == pytest.approx(together.vision_weights + together.activations, rel=0.01)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "tensorrt-rtx", "jetpack6"])
def test_less_of_anything_never_needs_more(target) -> None:
    settings = PlanSettings(target, 1.0, 4096)
    changes = ({"keep": 0.1}, {"max_seq_len": 1024}, {"quant": "int4"}, {"residency": "sequential"})
    shared = {"shared": True}
    whole = estimate(SEVEN, settings).run_peak(**shared)
    for change in changes:
        assert estimate(SEVEN, replace(settings, **change)).run_peak(**shared) < whole


def test_the_cache_counts_as_far_as_it_is_filled() -> None:
    full = estimate(SEVEN, CPU).kv_cache
    assert full == 2048 * 2 * 32 * 4096 * 2
    assert estimate(SEVEN, replace(CPU, filled_slots=512)).kv_cache == full // 4
    assert estimate(SEVEN, replace(CPU, filled_slots=9999)).kv_cache == full


def test_weights_that_awq_packed_leave_the_output_layer_in_float() -> None:
    packed = replace(SEVEN, packed=replace(CPU, quant="int4-g128").scheme())
    head = {weight.matrix.name: weight.scheme for weight in llm_weights(packed, CPU)}
    assert head["lm_head"] is None
    assert str(head["q_proj"]) == "int4-g128-sym"


def test_one_change_is_preferred_to_two_and_the_free_one_to_all_others() -> None:
    settings = PlanSettings("onnxruntime", 0.1, 4096, quant="int4")
    device = load_device("cpu-16gb")
    needs = estimate(SEVEN, settings)
    nearly = replace(device, system_mib=device.memory_mib - needs.host_peak // MIB + 100)
    change = cheapest_fit(SEVEN, settings, nearly)
    assert change is not None
    assert change.flags == ("--max-seq-len 768",)
    assert spare_bytes(change.estimate, nearly) >= 0


def test_nothing_fits_a_device_that_is_far_too_small() -> None:
    device = replace(load_device("cpu-8gb"), memory_mib=1024, system_mib=700)
    assert cheapest_fit(SEVEN, CPU, device) is None


def test_on_a_card_the_hosts_memory_does_not_count() -> None:
    card = load_device("rtx-4090")
    needs = estimate(SEVEN, PlanSettings("tensorrt-rtx", 0.1, 2048, quant="int4"))
    assert spare_bytes(needs, card) == card.available_bytes - needs.device_peak
    assert swap_to_build(needs, card) == 0


def test_building_on_a_board_may_need_swap_where_running_fits() -> None:
    board = load_device("orin-nano-8gb")
    needs = estimate(SEVEN, PlanSettings("jetpack6", 0.1, 2048, quant="int4"))
    assert spare_bytes(needs, board) > 0
    assert swap_to_build(needs, board) == needs.build_peak - board.available_bytes > 0


@pytest.mark.parametrize("engine, measured", [(591, 1909), (158, 885)])
def test_the_builders_peak_is_not_underrated(engine, measured) -> None:
    """MiB: the larger engine and VmHWM of divprune-build, as docs/memory.md has them."""
    assert measured <= build_peak(engine * MIB) / MIB <= 1.25 * measured


def test_workspace_shrinks_with_the_engine_and_keeps_to_its_bounds() -> None:
    sizes = [workspace_bytes(8 * GIB, engine, shared=True) for engine in (0, GIB, 2 * GIB, 9 * GIB)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 128 * MIB
    assert workspace_bytes(80 * GIB, GIB, shared=False) == 4 * GIB


def test_a_prefill_graph_is_the_decoder_once_more_in_int8() -> None:
    one = estimate(SEVEN, replace(CPU, quant="int4"))
    two = estimate(SEVEN, replace(CPU, quant="int4", prefill_quant="int8"))
    numbers = sum(matrix.size * matrix.count for matrix in SEVEN.text.matrices())
    assert two.llm_weights - one.llm_weights == pytest.approx(numbers, rel=0.06)
