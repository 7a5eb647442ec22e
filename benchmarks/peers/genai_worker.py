"""onnxruntime-genai, language model only: a prompt of ids as long as with a picture."""

from __future__ import annotations

import json
import random
import sys

import onnxruntime
import onnxruntime_genai as og
from protocol import TEXT_TOKENS, Request, now, serve, summarise_steps


def main() -> None:
    config = og.Config(sys.argv[1])
    # Its default is one thread a physical core, which a virtual machine may have fewer of.
    options = {"intra_op_num_threads": int(sys.argv[2])}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    numbers = random.Random(0)

    def answer(request: Request) -> dict[str, float]:
        length, new_tokens = request.kept_tokens + TEXT_TOKENS, request.new_tokens
        params = og.GeneratorParams(model)
        params.set_search_options(
            max_length=length + new_tokens, min_length=length + new_tokens, do_sample=False
        )
        generator = og.Generator(model, params)
        ids = [numbers.randrange(3, 30000) for _ in range(length)]
        stamps = []
        started = now()
        generator.append_tokens(ids)
        for _ in range(new_tokens):
            generator.generate_next_token()
            stamps.append(now())
        return summarise_steps(started, stamps) | {"prompt_tokens": length}

    version = f"{og.__version__} on onnxruntime {onnxruntime.__version__}"
    serve({"runtime": "onnxruntime-genai", "version": version, "weights": "int4"}, answer)


if __name__ == "__main__":
    main()
