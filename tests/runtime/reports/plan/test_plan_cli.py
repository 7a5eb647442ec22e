"""``divprune-plan`` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from divprune.configs import list_presets
from divprune.configs.device import list_devices
from divprune.runtime.cli.plan import main
from divprune.runtime.directory.manifest import DimRange
from divprune.runtime.reports.plan.gain import predict_gain
from divprune.runtime.reports.plan.source import dimensions_of
from tests.runtime.engine_copies import copy_engine, read_manifest
from tests.runtime.example_manifest import EXAMPLE_TOWER, example_manifest, with_changes

SECONDS, TRIES = 1.0, 5


def plan(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_it_answers_within_a_second_from_the_preset_alone() -> None:
    """The best of several tries: a busy machine slows some of them down."""
    command = Path(sys.executable).with_name("divprune-plan")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    best = float("inf")
    for _ in range(TRIES):
        start = time.perf_counter()
        done = subprocess.run(
            [command, "llava-1.5-7b", "--board", "orin-nano-8gb"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        best = min(best, time.perf_counter() - start)
        if best <= SECONDS:
            break
    assert best <= SECONDS
    assert "does not fit" in done.stdout
    assert "cheapest change that runs: --quant int4" in done.stdout


def test_the_cheapest_change_really_fits(capsys) -> None:
    before = plan(capsys, "llava-1.5-7b", "--board", "cpu-8gb")
    assert before["fits"] is False
    flags = " ".join(before["change"]["flags"]).split()
    after = plan(capsys, "llava-1.5-7b", "--board", "cpu-8gb", *flags)
    assert after["fits"] is True
    assert after["keeps"][1]["peak_bytes"] == before["change"]["peak_bytes"]


@pytest.mark.parametrize("board", ["orin-nano-8gb", "orin-nx-16gb", "agx-orin-32gb"])
def test_what_is_said_to_fit_a_board_is_built_there_without_swap(capsys, board) -> None:
    before = plan(capsys, "llava-1.5-7b", "--board", board)
    assert before["fits"] is False
    flags = " ".join(before["change"]["flags"]).split()
    after = plan(capsys, "llava-1.5-7b", "--board", board, *flags)
    assert after["fits"] is True
    assert after["keeps"][1]["swap_to_build_bytes"] == 0
    if before["change_with_swap"] is not None:
        assert before["change_with_swap"]["swap_to_build_bytes"] > 0


@pytest.mark.parametrize("options", [(), ("--residency", "sequential", "--quant", "int4")])
@pytest.mark.parametrize("board", ["orin-nano-8gb", "rtx-3060", "cpu-8gb"])
def test_the_rows_add_up_to_the_peak(capsys, board, options) -> None:
    if board != "cpu-8gb":
        options = options[2:]  # TensorRT has both engines in memory
    assert main(["llava-1.5-7b", "--board", board, *options]) == 0
    _, table, *_ = capsys.readouterr().out.split("\n\n")
    parts, _ = table.split("peak while running")
    numbers = [
        [int(n.replace(",", "")) for n in line.split()[-2:]] for line in parts.splitlines()[1:]
    ]
    peak = [int(n.replace(",", "")) for n in table.split("peak while running")[1].split()[:2]]
    sums = [sum(column) for column in zip(*numbers, strict=True)]
    assert sums == pytest.approx(peak, abs=4)  # each is rounded to a MiB


def test_both_fractions_are_shown_and_the_smaller_one_needs_less(capsys) -> None:
    found = plan(capsys, "llava-1.5-7b", "--board", "agx-orin-64gb", "--keep", "0.25")
    assert [each["num_kept"] for each in found["keeps"]] == [576, 144]
    baseline, pruned = found["keeps"]
    assert pruned["prefill_scratch_bytes"] < baseline["prefill_scratch_bytes"]
    assert pruned["peak_bytes"] < baseline["peak_bytes"]


def test_without_a_board_it_is_this_machine(capsys) -> None:
    found = plan(capsys, "llava-interleave-0.5b")
    assert found["device"]["name"] == "here"
    assert 0 < found["available_bytes"] < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_an_engine_directory_is_planned_as_it_was_exported(capsys, engine_dir) -> None:
    found = plan(capsys, str(engine_dir), "--board", "cpu-8gb")
    assert found["settings"]["dtype"] == "fp32"
    assert found["settings"]["keep"] == 0.1
    assert found["fits"] is True


def test_with_a_selection_inside_the_llm_every_token_enters_at_any_keep(
    capsys, engine_dir, tmp_path
) -> None:
    manifest = read_manifest(engine_dir)
    llm = manifest.graphs["llm"]
    inside = copy_engine(
        engine_dir,
        tmp_path / "inside",
        graphs={**manifest.graphs, "llm_front": llm, "llm_back": llm},
        kv_cache__num_layers=2 * manifest.kv_cache.num_layers,
        selector__parameters={"layer": 1},
        selector__inside_llm=True,
    )
    for path, same in ((engine_dir, False), (inside, True)):
        baseline, pruned = plan(capsys, str(path), "--board", "cpu-8gb")["keeps"]
        assert pruned["num_kept"] < baseline["num_kept"]
        scratch = [each["prefill_scratch_bytes"] for each in (pruned, baseline)]
        assert (scratch[0] == scratch[1]) == same


def test_a_checkpoint_and_its_engine_directory_need_the_same(
    capsys, engine_dir, checkpoint
) -> None:
    source = str(checkpoint("clip-llama-hub"))
    options = ("--board", "cpu-8gb", "--dtype", "fp32", "--keep", "0.1")
    assert (
        plan(capsys, source, *options)["keeps"] == plan(capsys, str(engine_dir), *options)["keeps"]
    )


def test_a_hub_id_is_found_in_the_local_cache(capsys, checkpoint, tmp_path, monkeypatch) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    config = (checkpoint("clip-llama-hub") / "config.json").read_text()
    (snapshot / "config.json").write_text(config)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert plan(capsys, "org/name", "--board", "cpu-8gb")["fits"] is True
    assert "hf download org/other config.json" in refused(capsys, "org/other")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("llava-1.5-7b", "--board", "toaster"), list_devices()),
        (("llava-1.5-7b", "--max-seq-len", "4097"), ("4096", "max_position_embeddings")),
        (("llava-1.5-7b", "--max-seq-len", "1"), ("too small",)),
        (("llava-1.5-7b", "--max-seq-len", "600"), ("do not fit into the cache",)),
        (("llava-1.5-7b", "--quant", "int5"), ("int5", "int4")),
        (("llava-1.5-7b", "--quant", "int4-g48"), ("group size", "32, 64, 128")),
        (("llava-1.5-7b", "--vision-quant", "int4"), ("vision-quant", "int8")),
        (("llava-1.5-7b", "--dtype", "bf16"), ("dtype", "fp16, fp32")),
        (("llava-1.5-7b", "--target", "tpu"), ("target", "jetpack6")),
        (("llava-1.5-7b", "--target", "jetpack6", "--quant", "int8"), ("--target onnxruntime",)),
        (("llava-1.5-7b", "--residency", "none"), ("residency", "sequential")),
        (("llava-1.5-7b", "--keep", "10"), ("--keep 0.1",)),
        (("llava-1.5-7",), ("divprune-plan llava-1.5-7b",)),
    ],
)
def test_what_cannot_be_is_refused_by_name(capsys, arguments, named) -> None:
    message = refused(capsys, *arguments)
    assert all(each in message for each in named), message


def test_a_group_size_that_does_not_divide_is_refused(capsys, checkpoint) -> None:
    source = str(checkpoint("clip-llama-hub"))
    message = refused(capsys, source, "--quant", "int4-g128", "--keep", "0.1")
    assert "groups of 128 do not divide" in message


def test_a_directory_that_is_neither_is_refused(capsys, tmp_path) -> None:
    assert "config.json or manifest.json" in refused(capsys, str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in refused(capsys, str(tmp_path))


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_is_told_what_pruning_can_buy_for_the_largest_picture_and_a_typical_one(
    preset, capsys
):
    command = [preset, "--board", "cpu-16gb", "--keep", "0.1"]
    found = plan(capsys, *command)
    assert main(command) == 0
    shown = capsys.readouterr().out
    gains, largest = found["gains"], found["keeps"]
    assert [gain["num_image_tokens"] for gain in gains] == [
        keeps[0]["num_image_tokens"] for keeps in (largest, found["typical_keeps"]) if keeps
    ]
    for gain in gains:
        assert f"of {gain['num_image_tokens']} kept" in shown
        everything = gain["tower_flops"] + gain["decoder_flops"]
        assert gain["ceiling"] == pytest.approx(
            everything / (gain["tower_flops"] + 0.1 * gain["decoder_flops"]), abs=1e-3
        )
    buys_little = [gain["ceiling"] < 1.5 for gain in gains]
    assert shown.count("little, the tower is most of the work") == sum(buys_little)
    if typical := found["typical_keeps"]:
        assert typical[0]["num_image_tokens"] < largest[0]["num_image_tokens"]
        assert typical[0]["peak_bytes"] <= largest[0]["peak_bytes"]
        assert "with a picture of 640 x 480" in shown


def test_where_the_largest_picture_is_a_typical_one_it_stands_once(capsys):
    assert main(["internvl3-2b", "--board", "cpu-16gb"]) == 0
    shown = capsys.readouterr().out
    assert "of the largest picture, such as 640 x 480" in shown
    assert shown.count("TFLOP") == 1


def test_an_engine_directory_knows_its_largest_picture_and_a_typical_one():
    """Of a made-up export whose pictures have 10 to 40 tokens in 2 to 5 crops."""
    dims = {"tokens": DimRange(10, 30, 40), "crops": DimRange(2, 4, 5)}
    manifest = with_changes(example_manifest(), dims=dims, selector__num_image_tokens=40)
    model = dimensions_of(manifest)
    assert (model.num_image_tokens, model.crops) == (40, 5)
    assert (model.typical().num_image_tokens, model.typical().crops) == (30, 4)
    tower = predict_gain(model, 0.1).tower_flops / predict_gain(model.typical(), 0.1).tower_flops
    assert tower == pytest.approx(5 / 4)


def test_patches_of_one_view_grow_with_the_picture():
    manifest = with_changes(
        example_manifest(),
        dims={"tokens": DimRange(1, 10, 40)},
        selector__num_image_tokens=40,
        model__tower=replace(EXAMPLE_TOWER, num_positions=160),
    )
    typical = dimensions_of(manifest).typical()
    assert (typical.num_image_tokens, typical.tower.num_positions) == (10, 40)
