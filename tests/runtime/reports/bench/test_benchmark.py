from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune.runtime import Pipeline
from divprune.runtime.backends.image_features import ImageFeatures
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import Manifest
from divprune.runtime.errors import DivPruneError, OptionError, PromptError
from divprune.runtime.generation import generation, stopwatch
from divprune.runtime.generation.generation_config import load_eos_token_ids
from divprune.runtime.reports.bench import benchmark as module
from divprune.runtime.reports.bench.benchmark import benchmark
from divprune.runtime.reports.bench.picture import BUILT_IN, built_in_picture, image_facts
from divprune.runtime.reports.bench.report import STAGES, Agreement, Ratio, Report, Stat
from divprune.runtime.reports.bench.sensors import open_jetson
from divprune.runtime.reports.bench.workload import BenchOptions
from tests.runtime.engine_copies import copy_engine
from tests.runtime.reports.bench.fake_jetson import make_jetson

pytest.importorskip("onnxruntime")

LETTER, OTHER_LETTER = 40, 41


@dataclass
class FakeMachine:
    """A backend and a selection that take exactly known times on a clock of their own.

    Vision 16 ms, selection 2 ms, 1 ms for each row of the LLM, 0 ms for everything else; with
    every answer all of it gets slower by the factor of the next ``drift``, over and over.
    """

    manifest: Manifest
    drift: tuple[float, ...] = (1.0,)
    eos: int | None = None
    eos_after: int = 10**9
    name: str = "fake"
    seconds: float = 0.0
    answers: int = 0
    rows_of_answers: list[int] = field(default_factory=list)
    steps: int = 0

    rows_at_once: int | None = None

    def take(self, ms: float) -> None:
        self.seconds += ms * self.drift[self.answers % len(self.drift)] / 1000

    def encode_image(self, inputs: Mapping[str, np.ndarray]) -> ImageFeatures:
        self.take(16)
        selector = self.manifest.selector
        shape = (selector.num_image_tokens, self.manifest.model.hidden_size)
        order = np.arange(selector.num_kept)
        features = np.zeros(shape, np.float32)
        return ImageFeatures(features, order, features[: selector.num_kept])

    def select(self, features: np.ndarray) -> np.ndarray:
        self.take(2)
        self.answers += 1
        return np.arange(self.manifest.selector.num_kept)

    def reset(self, rows: int = 0) -> int:
        self.steps = 0
        return rows

    def forward(
        self, inputs_embeds: np.ndarray, position_ids: np.ndarray, planes: Any = ()
    ) -> np.ndarray:
        rows = inputs_embeds.shape[1]
        if not self.steps:
            self.rows_of_answers.append(rows)
        self.take(rows)
        self.steps += 1
        logits = np.zeros(self.manifest.model.vocab_size, np.float32)
        full = self.rows_of_answers[-1] > self.manifest.selector.num_image_tokens
        third_differs = self.steps == 3 and not full
        token = OTHER_LETTER if third_differs else LETTER
        logits[self.eos if self.steps > self.eos_after else token] = 1
        return logits


@pytest.fixture(scope="module")
def directory(engine_dir: Path) -> EngineDirectory:
    return EngineDirectory.open(engine_dir)


@pytest.fixture
def on_fake_machine(directory: EngineDirectory, monkeypatch: pytest.MonkeyPatch):
    """A function that runs a benchmark on a ``FakeMachine``: its report and the machine."""

    def run(keep: float = 0.1, *, machine: dict | None = None, **options):
        fake = FakeMachine(directory.manifest, **(machine or {}))
        for place in (stopwatch, generation, module):
            monkeypatch.setattr(place, "perf_counter", lambda: fake.seconds)
        monkeypatch.setattr(module, "load_backend", lambda *_, **__: fake)
        monkeypatch.setattr(module, "load_selection", lambda *_, **__: fake.select)
        chosen = BenchOptions(keeps=(keep,), probe=False, **options)
        return benchmark(directory, chosen, built_in_picture(), BUILT_IN), fake

    return run


def assert_all_finite(value: object) -> None:
    """Every number anywhere in a report is finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            assert_all_finite(item)
    elif isinstance(value, float):
        assert math.isfinite(value)


def approx_stat(stat: Stat, **expected: float) -> None:
    for name, value in expected.items():
        assert getattr(stat, name) == pytest.approx(value, rel=1e-9), name


def test_every_stage_is_timed_exactly(on_fake_machine, directory):
    report, _ = on_fake_machine(max_new_tokens=5, warmup=1, iters=3)
    total = directory.manifest.selector.num_image_tokens
    for run, visual in zip(report.runs, (total, directory.manifest.selector.num_kept), strict=True):
        rows = report.work.text_tokens + visual
        assert run.prompt_tokens == rows
        expected = {
            "preprocess": 0, "vision": 16, "selection": 2, "merge": 0, "prefill": rows,
            "first_sample": 0, "ttft": 16 + rows, "decode_per_token": 1,
        }  # fmt: skip
        for stage, ms in expected.items():
            stat = getattr(run.stages, stage)
            approx_stat(stat, mean=ms, p50=ms, p90=ms, p99=ms, min=ms, max=ms)
            assert stat.std == pytest.approx(0, abs=1e-9)
            assert stat.n == (12 if stage == "decode_per_token" else 3)
        assert run.prefill_tokens_per_s == pytest.approx(1000)
        assert run.decode_tokens_per_s == pytest.approx(1000)


def test_statistics_over_rounds_that_differ(on_fake_machine):
    # Two answers a round share a factor; the warm-up is a hundred times slower.
    factors = (100.0, 100.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0)
    report, _ = on_fake_machine(machine={"drift": factors}, max_new_tokens=3, warmup=1, iters=3)
    for run in report.runs:
        vision = run.stages.vision
        approx_stat(vision, mean=32, p50=32, p90=44.8, p99=47.68, min=16, max=48, std=16)
        approx_stat(run.stages.decode_per_token, mean=2, p50=2, min=1, max=3, std=math.sqrt(0.8))
    # The machine got three times slower, the ratio of prefill did not change at all.
    full, pruned = report.runs
    ratio = full.prompt_tokens / pruned.prompt_tokens
    assert astuple(pruned.ratios["prefill"]) == pytest.approx((ratio, ratio, ratio))
    assert astuple(pruned.ratios["vision"]) == pytest.approx((1, 1, 1))
    assert full.ratios == {}


def test_stages_of_no_time_have_no_ratio(on_fake_machine):
    report, _ = on_fake_machine(max_new_tokens=2, warmup=0, iters=2)
    assert report.runs[1].ratios.keys() == {"vision", "prefill", "ttft", "decode_per_token"}
    assert_all_finite(report.to_dict())


def test_fractions_take_turns_and_begin_with_the_fewest_tokens(on_fake_machine):
    report, fake = on_fake_machine(max_new_tokens=2, warmup=1, iters=2)
    full, pruned = (run.prompt_tokens for run in report.runs)
    assert fake.rows_of_answers == [pruned, full, full, pruned, pruned, full]


def test_answers_are_compared_with_keep_1(on_fake_machine):
    report, _ = on_fake_machine(max_new_tokens=5, warmup=0, iters=1)
    full, pruned = report.runs
    assert full.agreement is None
    assert pruned.agreement == Agreement(equal_prefix=2, same_text=False)
    assert full.text != pruned.text


def test_cache_bytes_count_what_was_fed(on_fake_machine, directory):
    report, _ = on_fake_machine(max_new_tokens=5, warmup=0, iters=1)
    spec = directory.manifest.kv_cache
    for run in report.runs:
        # Five new tokens: four of them were fed back.
        assert run.live_kv_bytes == spec.bytes_per_token * (run.prompt_tokens + 4)
        assert run.kv_cache_bytes == spec.bytes_per_token * directory.manifest.max_seq_len


def test_one_round_of_one_token_has_no_infinite_number(on_fake_machine):
    report, _ = on_fake_machine(max_new_tokens=1, warmup=0, iters=1)
    for run in report.runs:
        assert run.new_tokens == 1
        assert run.stages.decode_per_token is None
        assert run.decode_tokens_per_s is None
        assert "decode_per_token" not in run.ratios
        assert run.stages.vision.std is None
    assert_all_finite(report.to_dict())
    assert Report.from_json(report.to_json(), "a") == report


def test_an_answer_that_ends_early_counts_the_tokens_it_has(on_fake_machine, directory):
    eos = load_eos_token_ids(directory.file("generation_config.json"))[0]
    machine = {"eos": eos, "eos_after": 2}
    report, _ = on_fake_machine(machine=machine, max_new_tokens=6, warmup=0, iters=2)
    for run in report.runs:
        assert (run.new_tokens, run.finish_reason) == (3, "stop")
        assert run.stages.decode_per_token.n == 4
    at_once, _ = on_fake_machine(
        machine=machine | {"eos_after": 0}, max_new_tokens=6, warmup=0, iters=2
    )
    for run in at_once.runs:
        assert (run.new_tokens, run.stages.decode_per_token) == (1, None)
    assert_all_finite(at_once.to_dict())


def test_eos_can_be_ignored(on_fake_machine, directory):
    eos = load_eos_token_ids(directory.file("generation_config.json"))[0]
    machine = {"eos": eos, "eos_after": 2}
    report, _ = on_fake_machine(
        machine=machine, max_new_tokens=6, warmup=0, iters=1, ignore_eos=True
    )
    assert [(run.new_tokens, run.finish_reason) for run in report.runs] == [(6, "length")] * 2
    assert report.work.ignore_eos


def test_ctrl_c_reports_the_rounds_so_far(on_fake_machine, monkeypatch):
    original = FakeMachine.encode_image

    def interrupted(self, pixel_values):
        if self.answers == 5:
            raise KeyboardInterrupt
        return original(self, pixel_values)

    monkeypatch.setattr(FakeMachine, "encode_image", interrupted)
    report, _ = on_fake_machine(max_new_tokens=2, warmup=1, iters=9)
    assert report.interrupted
    assert sorted(run.stages.vision.n for run in report.runs) == [1, 2]
    assert report.runs[1].ratios["vision"].median == pytest.approx(1)


def test_ctrl_c_before_the_first_answer_that_counts_is_passed_on(on_fake_machine, monkeypatch):
    original = FakeMachine.encode_image

    def interrupted(self, pixel_values):
        if self.answers == 1:
            raise KeyboardInterrupt
        return original(self, pixel_values)

    monkeypatch.setattr(FakeMachine, "encode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on_fake_machine(max_new_tokens=2, warmup=1, iters=9)


def test_answers_that_change_between_rounds_are_noted(on_fake_machine, monkeypatch):
    original = FakeMachine.forward

    def fickle(self, inputs_embeds, position_ids, planes=()):
        logits = original(self, inputs_embeds, position_ids)
        return np.roll(logits, self.answers)

    monkeypatch.setattr(FakeMachine, "forward", fickle)
    report, _ = on_fake_machine(max_new_tokens=2, warmup=0, iters=2)
    assert "keep 1.0: the answers of different rounds differ" in report.notes


def test_power_of_a_jetson_is_reported(on_fake_machine, monkeypatch, tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, {"VDD_IN": (5000, 2000)}))
    monkeypatch.setattr(module, "open_jetson", lambda: jetson)
    report, _ = on_fake_machine(max_new_tokens=5, warmup=1, iters=2)
    for run in report.runs:
        assert (run.power.mean_w, run.power.max_w) == (10, 10)
        # Vision takes 16 ms, every row 1 ms, and four tokens after the first 1 ms each.
        seconds = (16 + run.prompt_tokens + 4) / 1000
        assert run.power.joules_per_answer == pytest.approx(10 * seconds)
    assert "power is that of VDD_IN, about every 100 ms" in report.notes
    assert Report.from_json(report.to_json(), "a") == report


def test_unified_memory_of_a_jetson_is_reported(on_fake_machine, monkeypatch, tmp_path):
    jetson = open_jetson(make_jetson(tmp_path, {}))
    monkeypatch.setattr(module, "open_jetson", lambda: jetson)
    monkeypatch.setattr(module, "open_nvml", lambda: None)
    report, _ = on_fake_machine(max_new_tokens=2, warmup=0, iters=1, device="cuda")
    for run in report.runs:
        assert (run.peak_device_bytes, run.power) == (5000 * 1024, None)
    assert any("unified" in note for note in report.notes)


@pytest.fixture(scope="module")
def real_report(directory: EngineDirectory) -> Report:
    options = BenchOptions(
        keeps=(0.1, 0.05), max_new_tokens=4, warmup=1, iters=3, threads=1, prompt_tokens=60
    )
    return benchmark(directory, options, built_in_picture(), BUILT_IN)


def test_real_stage_times_sum_to_ttft(real_report):
    for run in real_report.runs:
        stages = run.stages
        parts = (stages.preprocess, stages.vision, stages.merge, stages.prefill)
        total = sum(stat.mean for stat in parts) + stages.first_sample.mean
        assert total == pytest.approx(stages.ttft.mean, rel=1e-6)
        assert all(stat.n == 3 for stat in parts)
        assert 0 < stages.selection.mean < stages.ttft.mean


def test_a_real_report_is_complete(real_report, directory):
    assert [run.keep for run in real_report.runs] == [1.0, 0.1, 0.05]
    assert real_report.work.keeps == (1.0, 0.1, 0.05)
    assert 50 <= real_report.work.text_tokens <= 60
    assert real_report.work.image == image_facts(BUILT_IN, built_in_picture())
    assert real_report.device.threads == 1
    assert real_report.engine.backend.startswith("onnxruntime ")
    assert {"python", "onnxruntime", "numpy"} <= real_report.tool.keys()
    assert not real_report.interrupted
    for run in real_report.runs:
        assert len(run.kept_indices) == run.num_kept
        assert run.prompt_tokens == real_report.work.text_tokens + run.num_kept
        assert run.peak_host_bytes > 2**20
        assert run.peak_device_bytes is None
        assert run.predicted.keys() == set(STAGES)
    assert_all_finite(real_report.to_dict())
    assert Report.from_json(real_report.to_json(), "a") == real_report


def test_answers_are_those_of_the_pipeline(real_report, directory):
    plain = Pipeline.from_dir(directory.path, threads=1)
    for run in real_report.runs:
        result = plain.generate(
            built_in_picture(), real_report.work.prompt, keep=run.keep, max_new_tokens=4
        ).result
        assert (run.text, run.kept_indices) == (result.text, result.images[0].kept_indices)


def test_the_selection_alone_is_what_the_vision_graph_selects(directory):
    from divprune.runtime.backends import load_backend, load_selection

    where = {"device": "cpu", "threads": 1}
    loaded = Pipeline(directory, load_backend(None, directory, **where))
    features = loaded.image_features(built_in_picture())
    order = load_selection(None, directory, **where)(features)
    result = loaded.generate(built_in_picture(), "What?", max_new_tokens=1).result
    assert sorted(order.tolist()) == list(result.images[0].kept_indices)


def test_without_the_baseline_nothing_is_compared(directory, tmp_path):
    copy = copy_engine(directory.path, tmp_path / "e", baseline=False)
    options = BenchOptions(max_new_tokens=2, warmup=0, iters=1, threads=1, probe=False)
    report = benchmark(EngineDirectory.open(copy), options, built_in_picture(), BUILT_IN)
    assert [run.keep for run in report.runs] == [0.1]
    assert (report.runs[0].ratios, report.runs[0].agreement) == ({}, None)
    assert any("without the baseline" in note for note in report.notes)
    assert any("no warm-up" in note for note in report.notes)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"iters": 0}, OptionError),
        ({"warmup": -1}, OptionError),
        ({"max_new_tokens": 0}, OptionError),
        ({"threads": 0}, OptionError),
        ({"keeps": (0.0,)}, OptionError),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        BenchOptions(**options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"keeps": (0.5,)}, OptionError, "--keep is larger than"),
        ({"prompt_tokens": 3}, OptionError, "--prompt-tokens is less than the prompt takes"),
        ({"prompt": "word " * 3000}, PromptError, "the prompt is too long"),
        ({"prompt": " "}, PromptError, "the question is empty"),
    ],
)
def test_work_that_cannot_be_done_is_refused_before_measuring(directory, options, error, message):
    shown: list[object] = []
    chosen = BenchOptions(probe=False, threads=1, **options)
    with pytest.raises(DivPruneError, match=message) as caught:
        benchmark(directory, chosen, built_in_picture(), BUILT_IN, lambda *_: shown.append(1))
    assert type(caught.value) is error
    assert shown == []


def speed_up(directory: EngineDirectory) -> Ratio:
    """TTFT of keep 1.0 over that of keep 0.1, of one whole benchmark."""
    options = BenchOptions(
        keeps=(0.1,), max_new_tokens=1, warmup=3, iters=25, threads=1, probe=False, prompt_tokens=60
    )
    report = benchmark(directory, options, built_in_picture(), BUILT_IN)
    return report.runs[1].ratios["ttft"]


def overlap(first: Ratio, second: Ratio) -> bool:
    return first.low <= second.high and second.low <= first.high


def test_repeated_runs_agree_within_the_printed_spread(directory):
    first, second = speed_up(directory), speed_up(directory)
    assert overlap(first, second), (first, second)


def test_the_spread_tells_another_engine_from_the_same_one_again(on_fake_machine, monkeypatch):
    def ratio(*drift: float) -> Ratio:
        report, _ = on_fake_machine(machine={"drift": drift}, max_new_tokens=1, warmup=0, iters=20)
        return report.runs[1].ratios["ttft"]

    first, again = ratio(1.0, 1.2, 0.9, 1.1, 0.8), ratio(0.9, 1.0, 1.1, 1.2, 1.0, 0.8, 1.0)
    assert first != again
    assert overlap(first, again)
    original = FakeMachine.forward

    def slow_where_pruned(self, inputs_embeds, position_ids, planes=()):
        if inputs_embeds.shape[1] < self.manifest.selector.num_image_tokens:
            self.take(100)
        return original(self, inputs_embeds, position_ids)

    monkeypatch.setattr(FakeMachine, "forward", slow_where_pruned)
    assert not overlap(first, ratio(1.0, 1.2, 0.9, 1.1, 0.8))
