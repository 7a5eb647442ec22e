"""OpenVINO GenAI: picture and question through its VLM pipeline, its prefix cache off.

Tokens are dropped by its CDPruner, which it has for Qwen2-VL and its kin. With other models it
would say nothing and answer with all tokens: there such a request is answered with nothing.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from openvino_ir import weights
from protocol import Request, now, serve
from question import question

_PRUNED_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def main() -> None:
    directory = Path(sys.argv[1])
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 1
    options = {"scheduler_config": scheduler, "INFERENCE_NUM_THREADS": int(sys.argv[2])}
    pipeline = genai.VLMPipeline(directory, "CPU", **options)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    can_prune = config["model_type"] in _PRUNED_MODELS
    numbers = random.Random(0)

    def answer(request: Request) -> dict[str, float]:
        if request.prunes and not can_prune:
            return {}
        picture = np.random.default_rng(numbers.randrange(2**31)).integers(
            0, 256, (request.side, request.side, 3), dtype=np.uint8
        )
        stamps: list[float] = []
        started = now()
        result = pipeline.generate(
            question(numbers),
            images=[openvino.Tensor(picture)],
            generation_config=_generation_config(request),
            streamer=lambda _: stamps.append(now()) or genai.StreamingStatus.RUNNING,
        )
        metrics = result.perf_metrics
        vision = metrics.get_prepare_embeddings_duration().mean / 1000
        ttft = metrics.get_ttft().mean / 1000
        return {
            "ttft": ttft,
            "vision": vision,
            "prefill": ttft - vision,
            "decode_tokens_per_s": 1000 / metrics.get_tpot().mean,
            "prompt_tokens": metrics.get_num_input_tokens(),
            "wall_to_first_text": (stamps[0] - started) if stamps else 0.0,
        }

    version = f"{genai.__version__} on openvino {openvino.__version__}"
    facts = {"runtime": "OpenVINO GenAI", "version": version, "weights": weights(directory)}
    serve(facts, answer)


def _generation_config(request: Request) -> genai.GenerationConfig:
    """Greedy, of a given length; its pruning ratio is the percentage that is dropped."""
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = request.new_tokens
    config.ignore_eos, config.do_sample = True, False
    config.pruning_ratio = round(100 * (1 - request.kept_tokens / request.image_tokens))
    return config


if __name__ == "__main__":
    main()
