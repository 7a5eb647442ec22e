"""llama.cpp through llama-cpp-python, language model only: ids as many as with a picture."""

from __future__ import annotations

import random
import sys

import llama_cpp
from protocol import TEXT_TOKENS, now, serve, summarise_steps


def main() -> None:
    threads = int(sys.argv[2])
    model = llama_cpp.Llama(
        sys.argv[1],
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    numbers = random.Random(0)

    def answer(image_tokens: int, new_tokens: int) -> dict[str, float]:
        ids = [numbers.randrange(3, 30000) for _ in range(image_tokens + TEXT_TOKENS)]
        stamps = []
        model.reset()
        started = now()
        model.eval(ids)
        token = model.sample(temp=0.0)
        stamps.append(now())
        for _ in range(new_tokens - 1):
            model.eval([token])
            token = model.sample(temp=0.0)
            stamps.append(now())
        return summarise_steps(started, stamps)

    facts = {"runtime": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}"}
    serve(facts | {"weights": "Q4_0"}, answer)


if __name__ == "__main__":
    main()
