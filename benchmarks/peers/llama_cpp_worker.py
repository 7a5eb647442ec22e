"""llama.cpp through llama-cpp-python, language model only: ids as many as with a picture."""

from __future__ import annotations

import argparse
import random

import llama_cpp
from protocol import TEXT_TOKENS, Request, now, serve, summarise_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("threads", type=int)
    parser.add_argument("--flash-attention", action="store_true")
    args = parser.parse_args()
    model = llama_cpp.Llama(
        args.gguf,
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=512,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        flash_attn=args.flash_attention,
        verbose=False,
    )
    numbers = random.Random(0)

    def answer(request: Request) -> dict[str, float]:
        length = request.kept_tokens + TEXT_TOKENS
        ids = [numbers.randrange(3, 30000) for _ in range(length)]
        stamps = []
        model.reset()
        started = now()
        model.eval(ids)
        token = model.sample(temp=0.0)
        stamps.append(now())
        for _ in range(request.new_tokens - 1):
            model.eval([token])
            token = model.sample(temp=0.0)
            stamps.append(now())
        return summarise_steps(started, stamps) | {"prompt_tokens": length}

    attention = "flash attention" if args.flash_attention else "no flash attention"
    facts = {"runtime": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}"}
    serve(facts | {"weights": f"Q4_0, {attention}"}, answer)


if __name__ == "__main__":
    main()
