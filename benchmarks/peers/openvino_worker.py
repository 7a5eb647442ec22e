"""OpenVINO GenAI: picture and question through its VLM pipeline, its prefix cache off.

It cannot be given 58 visual tokens of a LLaVA picture; that request is answered with nothing.
"""

from __future__ import annotations

import random
import sys

import numpy as np
import openvino
import openvino_genai as genai
from protocol import now, serve

# As many words as make 60 text tokens with the template of the random checkpoint; the first
# ones change from request to request, so that nothing computed before can be used again.
from question import question


def main() -> None:
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 1
    options = {"scheduler_config": scheduler, "INFERENCE_NUM_THREADS": int(sys.argv[2])}
    pipeline = genai.VLMPipeline(sys.argv[1], "CPU", **options)
    numbers = random.Random(0)

    def answer(image_tokens: int, new_tokens: int) -> dict[str, float]:
        if image_tokens != 576:
            return {}
        picture = np.random.default_rng(numbers.randrange(2**31)).integers(
            0, 256, (336, 336, 3), dtype=np.uint8
        )
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        stamps: list[float] = []
        started = now()
        result = pipeline.generate(
            question(numbers),
            images=[openvino.Tensor(picture)],
            generation_config=config,
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

    facts = {"runtime": "OpenVINO GenAI", "version": genai.__version__, "weights": "int4"}
    serve(facts, answer)


if __name__ == "__main__":
    main()
