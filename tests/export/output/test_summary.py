"""What an export says at its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from divprune.export.output.summary import ExportSummary
from divprune.runtime.directory.manifest import FileRecord, KVCacheSpec, Manifest, QuantInfo
from tests.runtime.example_manifest import example_manifest


@pytest.fixture
def summary() -> ExportSummary:
    files = {
        path: FileRecord("0" * 64, 3 << 20)
        for path in sorted({graph.path for graph in manifest().graphs.values()})
    }
    return ExportSummary(
        directory=Path("out/engine"),
        manifest=replace(manifest(), files=files),
        prompt_text_tokens=20,
        verify_errors={"vision": 1.26e-3, "head": 4e-4},
        seconds=75.4,
        peak_memory=1536 << 20,
    )


def manifest() -> Manifest:
    example = example_manifest()
    return replace(
        example,
        selector=replace(example.selector, num_image_tokens=576, num_kept=58),
        kv_cache=KVCacheSpec(num_layers=32, num_kv_heads=32, head_dim=128, dtype="float16"),
        max_prefill_len=2047,
        max_seq_len=2048,
    )


def rows(summary: ExportSummary) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in str(summary).splitlines())
    return {label: value.strip() for label, value in pairs}


def test_kept_tokens_and_prefill_are_shown_before_and_after(summary: ExportSummary) -> None:
    shown = rows(summary)
    assert shown["engine directory"] == "out/engine"
    assert shown["visual tokens"] == "58 of 576 kept, 89.9 % removed"
    assert shown["prefill"].startswith("78 positions instead of 596")


def test_number_formats_of_both_parts_are_shown(summary: ExportSummary) -> None:
    assert rows(summary)["weights"] == "fp32, vision tower fp32"
    quant = QuantInfo("int4-g32-sym", "mse", 4, 32, symmetric=True)
    small = replace(summary.manifest, dtype="fp16", quant=quant, vision_quant="int8")
    shown = rows(replace(summary, manifest=small))["weights"]
    assert shown == "int4-g32-sym (mse), vision tower int8"


def test_sizes_are_in_mebibytes(summary: ExportSummary) -> None:
    shown = rows(summary)
    number = len(summary.manifest.files)
    assert summary.bytes_on_disk == number * 3 << 20
    small = 3 * number < 10  # below ten there is a decimal
    assert shown["on disk"] == (f"{3 * number}.0 MiB" if small else f"{3 * number} MiB")
    # 2 x 32 layers x 32 heads x 128 x 2 bytes = 512 KiB a position
    assert shown["KV cache"] == "1.0 GiB at 2048 positions"


def test_the_self_check_shows_the_worst_error_of_every_part(summary: ExportSummary) -> None:
    assert "transformers" in rows(summary)["self-check"]
    assert "vision 1.3e-03, head 4.0e-04" in rows(summary)["self-check"]


def test_what_an_int8_tower_costs_is_shown_as_a_cosine(summary: ExportSummary) -> None:
    assert "int8 tower" not in rows(summary)
    small = replace(summary.manifest, vision_quant="int8")
    shown = replace(summary, manifest=small, verify_errors={"vision": 0.28, "head": 0.5})
    assert "a cosine of 0.9600 or more" in rows(shown)["int8 tower"]
    assert "int8 tower" not in rows(replace(shown, verify_errors=None))


def test_a_skipped_check_is_said_to_be_skipped(summary: ExportSummary) -> None:
    skipped = replace(summary, verify_errors=None)
    assert rows(skipped)["self-check"] == "skipped (--no-verify)"


def test_time_and_peak_memory_end_the_summary(summary: ExportSummary) -> None:
    assert rows(summary)["export took"] == "75 s, peak memory 1.5 GiB"
    assert rows(replace(summary, peak_memory=None))["export took"] == "75 s"


def test_what_tensorrt_alone_can_run_is_named_and_so_is_the_next_step(
    summary: ExportSummary,
) -> None:
    assert "next" not in rows(summary)
    graphs = summary.manifest.graphs
    plugin = replace(graphs["vision"], path="vision/model.plugin.onnx")
    files = summary.manifest.files | {plugin.path: FileRecord("0" * 64, 1)}
    manifest = replace(
        summary.manifest, target="tensorrt", graphs=graphs | {"vision_plugin": plugin}, files=files
    )
    shown = rows(replace(summary, manifest=manifest))
    assert shown["not run here"] == "vision/model.plugin.onnx (TensorRT only)"
    assert shown["next"] == "on the device: divprune-build engine"
