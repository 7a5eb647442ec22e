from __future__ import annotations

from dataclasses import replace

import pytest

from divprune.runtime.directory.manifest import FileRecord, GraphSpec, QuantInfo, TensorSpec
from divprune.runtime.reports.bench.prediction import Cost, predict, stage_costs
from divprune.runtime.reports.bench.report import STAGES, Prediction, Probe
from tests.runtime.example_manifest import example_manifest, with_changes
from tests.runtime.reports.bench.made_up_report import made_up_run, stat

N = 10
PROBE = Probe(bandwidth_gb_s=2.0, gflops=4.0)


@pytest.fixture
def manifest():
    """1000 parameters in the tower, 5000 in the LLM; 10 tokens, 4 kept, H 6, V 32, 2 layers."""
    tensor = TensorSpec("x", "float32", (1,))
    base = example_manifest()
    graphs = base.graphs | {"llm": GraphSpec("llm/model.onnx", 20, (tensor,), (tensor,))}
    sizes = {
        "vision/model.onnx": 400,
        "vision/model.onnx.data": 3600,
        "vision/selection.onnx": 77,
        "llm/model.onnx": 20_000,
    }
    files = {name: FileRecord("0" * 64, size) for name, size in sizes.items()}
    return replace(base, files=files, graphs=graphs)


@pytest.fixture
def run():
    return made_up_run(0.4, 4, 200.0)  # 24 rows of prompt, 8 new tokens


def test_bytes_and_operations_follow_the_table(manifest, run):
    costs = stage_costs(run, manifest, 1000, N)
    selection = 2 * 10 * 10 * 6
    assert costs == {
        "preprocess": Cost(1000 + 4 * 3 * 8 * 8, 0),
        "vision": Cost(4 * 1000, 2 * 1000 * 10 + selection),
        "selection": Cost(4 * (10 * 6 + 10 * 10 + 4 * 10), selection),
        "merge": Cost(2 * 24 * 6 * 4, 0),
        "prefill": Cost(
            4 * 5000 + 24 * 64,
            2 * (5000 - 32 * 6) * 24 + 2 * 32 * 6 + 2 * 2 * 6 * 24 * 24,
        ),
        "first_sample": Cost(4 * 32, 0),
        "decode_per_token": Cost(4 * 5000 + 28 * 64, 2 * 5000 + 4 * 2 * 6 * 28),
    }


def test_float16_files_have_twice_the_parameters_and_are_held_as_float32(manifest, run):
    half = stage_costs(run, with_changes(manifest, dtype="fp16"), 1000, N)
    full = stage_costs(run, manifest, 1000, N)
    assert half["vision"].num_bytes == 2 * full["vision"].num_bytes
    assert half["merge"].num_bytes == full["merge"].num_bytes / 2


@pytest.mark.parametrize(
    "cost, expected",
    [
        (Cost(8e6, 4e6), (4.0, "memory")),
        (Cost(2e6, 12e6), (3.0, "compute")),
        (Cost(2e6, 4e6), (1.0, "memory")),
    ],
)
def test_the_slower_of_moving_and_computing_is_the_bound(cost, expected):
    assert cost.roofline(PROBE) == expected


def test_every_measured_stage_has_its_share_of_the_median(manifest, run):
    predicted = predict(run, manifest, 1000, PROBE, N)
    assert predicted.keys() == set(STAGES)
    costs = stage_costs(run, manifest, 1000, N)
    for stage, cost in costs.items():
        ms, bound = cost.roofline(PROBE)
        median = getattr(run.stages, stage).p50
        assert predicted[stage] == Prediction(ms, bound, ms / median)


def test_ttft_sums_its_stages_and_is_bound_as_the_longest(manifest, run):
    predicted = predict(run, manifest, 1000, PROBE, N)
    parts = ("preprocess", "vision", "merge", "prefill", "first_sample")
    assert predicted["ttft"].ms == pytest.approx(sum(predicted[stage].ms for stage in parts))
    longest = max(parts, key=lambda stage: predicted[stage].ms)
    assert predicted["ttft"].bound == predicted[longest].bound == "compute"


def test_what_was_not_measured_is_not_predicted(manifest, run):
    merge = replace(stat(1.0), p50=0.0)
    stages = replace(run.stages, decode_per_token=None, selection=None, merge=merge)
    predicted = predict(replace(run, stages=stages), manifest, 1000, PROBE, N)
    assert not {"decode_per_token", "selection"} & predicted.keys()
    assert predicted["merge"].achieved is None


def test_quantised_graphs_are_left_out(manifest, run):
    quant = QuantInfo("int4-g32-sym", "rtn", 4, 32, symmetric=True)
    predicted = predict(run, with_changes(manifest, quant=quant), 1000, PROBE, N)
    assert predicted.keys() == {"preprocess", "selection", "merge", "first_sample"}
