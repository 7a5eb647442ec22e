"""A report as a benchmark writes it, made up: everything that the schema knows is in it."""

from __future__ import annotations

from typing import Any

from divprune.runtime.reports.bench.report import STAGES

TTFT_STAGES = ("preprocess", "vision", "merge", "prefill", "first_sample")
VISUAL_TOKENS = 576
TEXT_TOKENS = 42


def stat(mean: float) -> dict[str, float]:
    """Statistics of ten times around a mean."""
    values = {"p50": 0.99, "p90": 1.05, "p99": 1.09, "min": 0.95, "max": 1.1}
    return {"n": 10, "mean": mean, "std": 0.03 * mean} | {k: mean * f for k, f in values.items()}


def stage_means(num_kept: int) -> dict[str, float]:
    rows = num_kept + TEXT_TOKENS
    means = {"preprocess": 9.4, "vision": 231.0, "merge": 0.21, "prefill": 1.9 * rows + 12}
    means["first_sample"] = 0.04
    means["ttft"] = sum(means.values())
    return means | {"selection": 3.1, "decode_per_token": 61 + rows / 200}


def run(keep: float, *, iters: int = 10, compared: bool = True) -> dict[str, Any]:
    """One fraction; `compared` says whether keep 1.0 was measured beside it."""
    num_kept = max(1, round(keep * VISUAL_TOKENS))
    means, all_means = stage_means(num_kept), stage_means(VISUAL_TOKENS)
    stages: dict[str, Any] = {stage: stat(means[stage]) for stage in STAGES}
    if iters == 1:
        stages = {
            name: dict.fromkeys(values, means[name]) | {"n": 1, "std": None}
            for name, values in stages.items()
        }
    ratios = {name: all_means[name] / means[name] for name in STAGES}
    compared = compared and keep < 1
    return {
        "keep": keep,
        "num_kept": num_kept,
        "prompt_tokens": num_kept + TEXT_TOKENS,
        "new_tokens": 64,
        "finish_reason": "length",
        "kv_cache_bytes": 22_528 * 2048,
        "live_kv_bytes": 22_528 * (num_kept + TEXT_TOKENS + 64),
        "peak_host_bytes": 5_400_000_000,
        "peak_device_bytes": None,
        "stages": stages,
        "prefill_tokens_per_s": 512.4,
        "decode_tokens_per_s": 1000 / means["decode_per_token"],
        "ratios": {
            name: {"median": ratio, "low": ratio * 0.96, "high": ratio * 1.05}
            for name, ratio in ratios.items()
            if compared
        },
        "agreement": {"equal_prefix": 17, "same_text": False} if compared else None,
        "text": "A small red house stands in front of two grey mountains; a tree and a car are "
        "beside it.",
        "kept_indices": list(range(num_kept)),
        "predicted": {
            name: {"ms": means[name] * 0.7, "bound": "compute", "achieved": 0.7}
            for name in ("vision", "prefill", "ttft")
        },
    }


def report(*keeps: float, **changes: Any) -> dict[str, Any]:
    """A report of several fractions."""
    compared = 1.0 in keeps
    example: dict[str, Any] = {
        "schema_version": 1,
        "tool": {"divprune-edge": "0.1.0", "onnxruntime": "1.31.1", "numpy": "2.4.0"},
        "created": "2026-11-20T13:38:48+00:00",
        "interrupted": False,
        "notes": [],
        "device": {
            "name": "workstation",
            "cpu": "Intel(R) Xeon(R) Processor @ 2.80GHz",
            "cores": 2,
            "threads": None,
            "gpu": None,
            "driver": None,
            "power_mode": None,
            "clocks": "2800 MHz",
            "memory_bytes": 25_276_489_728,
            "os": "Linux 6.1 x86_64",
            "load_average": 0.42,
        },
        "engine": {
            "model": "llava-1.1b",
            "revision": None,
            "selector": "divprune",
            "target": "onnxruntime",
            "dtype": "fp16",
            "quant": None,
            "backend": "onnxruntime 1.31.1 (CPU)",
            "max_seq_len": 2048,
            "num_image_tokens": VISUAL_TOKENS,
        },
        "work": {
            "image": {"source": "built-in", "width": 640, "height": 480, "sha256": "4f" * 32},
            "prompt": "Describe the image.",
            "text_tokens": TEXT_TOKENS,
            "max_new_tokens": 64,
            "ignore_eos": False,
            "warmup": 3,
            "iters": 10,
            "keeps": list(keeps),
        },
        "runs": [run(keep, compared=compared) for keep in keeps],
        "probe": {"bandwidth_gb_s": 21.4, "gflops": 187.0},
    }
    return example | changes
