"""The table of models is what the reports beside it say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.models_table import main, render


def report(model: str) -> dict[str, Any]:
    def run(scale: float) -> dict[str, Any]:
        times = {"median": 1000.0 * scale, "min": 900.0 * scale, "max": 1100.0 * scale}
        stages = ("preprocess", "vision", "prefill", "ttft", "decode_per_token")
        return {
            "num_image_tokens": 391, "num_kept": int(391 * scale), "backend": "onnxruntime (cpu)",
            "peak_rss_bytes": 2**31, "times_ms": dict.fromkeys(stages, times),
        }  # fmt: skip

    export = {"seconds": 12.3, "peak_rss_bytes": 2**30, "bytes_on_disk": 2**29,
              "dtype": "fp32", "quant": "int4", "vision_quant": None}  # fmt: skip
    machine = {"cpu": "a processor", "cores": 2, "load_average_at_end": 0.5}
    runs = {"keep 1.0": run(1.0), "keep 0.1": run(0.1)}
    return {"model": model, "export": export, "asked": "a picture", "run": runs, "machine": machine}


def test_every_model_with_runs_has_its_rows_and_their_ratio(tmp_path: Path) -> None:
    (tmp_path / "export-a.json").write_text(json.dumps(report("model-a")))
    (tmp_path / "export-b.json").write_text(json.dumps({"shape": "of an older report"}))
    text = render(tmp_path)
    assert "| model-a, keep 0.1 | a picture | 39 of 391 | 0.10 (0.09-0.11) |" in text
    assert "| model-a | 0.10 | 0.10 | 0.10 | 1.00 |" in text
    assert "| model-a | fp32, int4 weights | 12 | 1.00 | 0.50 |" in text
    assert "older" not in text


def test_the_committed_table_is_what_its_reports_say() -> None:
    assert main(["--check"]) == 0
