"""This project: one engine directory, keep 1.0 for all visual tokens and its own for fewer."""

from __future__ import annotations

import random
import sys

import numpy as np
from PIL import Image
from protocol import Request, serve
from question import question

from divprune.runtime import Pipeline, __version__


def main() -> None:
    pipeline = Pipeline.from_dir(sys.argv[1], threads=int(sys.argv[2]))
    numbers = random.Random(0)

    def answer(request: Request) -> dict[str, float]:
        pixels = np.random.default_rng(numbers.randrange(2**31)).integers(
            0, 256, (request.side, request.side, 3), dtype=np.uint8
        )
        generation = pipeline.generate(
            Image.fromarray(pixels),
            question(numbers),
            keep=None if request.prunes else 1.0,
            max_new_tokens=request.new_tokens,
            ignore_eos=True,
            reuse=False,
        )
        result = generation.result
        if result.images[0].num_kept != request.kept_tokens:
            sys.exit(f"kept {result.images[0].num_kept} tokens, asked {request.kept_tokens}")
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
    version = f"{__version__} on {pipeline.backend.name}"
    serve({"runtime": "divprune-edge", "version": version, "weights": weights}, answer)


if __name__ == "__main__":
    main()
