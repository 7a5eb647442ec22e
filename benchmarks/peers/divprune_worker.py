"""This project: one engine directory, keep 1.0 for 576 visual tokens and 0.1 for 58."""

from __future__ import annotations

import random
import sys

import numpy as np
from PIL import Image
from protocol import serve
from question import question

from divprune.runtime import Pipeline, __version__


def main() -> None:
    pipeline = Pipeline.from_dir(sys.argv[1], threads=int(sys.argv[2]))
    numbers = random.Random(0)
    keeps = {
        pipeline.manifest.selector.num_image_tokens: 1.0,
        pipeline.manifest.selector.num_kept: None,
    }

    def answer(image_tokens: int, new_tokens: int) -> dict[str, float]:
        pixels = np.random.default_rng(numbers.randrange(2**31)).integers(
            0, 256, (336, 336, 3), dtype=np.uint8
        )
        generation = pipeline.generate(
            Image.fromarray(pixels),
            question(numbers),
            keep=keeps[image_tokens],
            max_new_tokens=new_tokens,
            ignore_eos=True,
            reuse=False,
        )
        result = generation.result
        times = result.timings
        return {
            "vision": times.vision / 1000,
            "prefill": times.prefill / 1000,
            "ttft": times.ttft / 1000,
            "decode_tokens_per_s": times.decode_tokens_per_second or 0.0,
            "prompt_tokens": result.prompt_tokens,
        }

    manifest = pipeline.manifest
    weights = manifest.quant.scheme if manifest.quant else manifest.dtype
    weights += f", prefill {manifest.prefill_quant}" if manifest.prefill_quant else ""
    weights += f", vision {manifest.vision_quant or manifest.dtype}"
    facts = {"runtime": "divprune-edge", "version": __version__, "weights": weights}
    serve(facts | {"backend": pipeline.backend.name}, answer)


if __name__ == "__main__":
    main()
