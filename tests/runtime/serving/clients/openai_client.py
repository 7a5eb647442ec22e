"""The ``openai`` package against a server: what it got, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai


def main(base_url: str, key: str, model: str, picture: str, stop: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key=key)
    stranger = openai.OpenAI(base_url=f"{base_url}/v1", api_key="wrong")
    content = [
        {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
        {"type": "text", "text": "What is this?"},
    ]
    first = [{"role": "user", "content": content}]
    common = {"model": model, "max_tokens": 8}
    whole = client.chat.completions.create(messages=first, **common)
    stream = client.chat.completions.create(
        messages=first, stream=True, stream_options={"include_usage": True}, **common
    )
    chunks = list(stream)
    answer = whole.choices[0].message.content
    second = [
        *first,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And its colour?"},
    ]
    later = client.chat.completions.create(messages=second, **common)
    stopped = client.chat.completions.create(messages=first, stop=[stop], **common)
    return {
        "models": [each.id for each in client.models.list()],
        "answer": answer,
        "finish_reason": whole.choices[0].finish_reason,
        "usage": whole.usage.model_dump(),
        "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "streamed_usage": chunks[-1].usage.model_dump(),
        "pruning": whole.model_extra["divprune"]["images"],
        "later_prompt_tokens": later.usage.prompt_tokens,
        "smaller_keep": client.chat.completions.create(
            messages=first, extra_body={"keep": 0.05}, **common
        ).usage.prompt_tokens,
        "stopped": stopped.choices[0].message.content,
        "stopped_reason": stopped.choices[0].finish_reason,
        "asynchronous": asyncio.run(ask_asynchronously(base_url, key, first, common)),
        "errors": [
            failure(lambda: client.chat.completions.create(messages=first, model="gpt-5")),
            failure(lambda: client.chat.completions.create(messages=[], model=model)),
            failure(lambda: client.chat.completions.create(messages=first, n=2, **common)),
            failure(stranger.models.list),
        ],
    }


async def ask_asynchronously(
    base_url: str, key: str, messages: list[Any], common: dict[str, Any]
) -> list[str]:
    client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key=key)

    async def one() -> str:
        stream = await client.chat.completions.create(messages=messages, stream=True, **common)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    return list(await asyncio.gather(*(one() for _ in range(4))))


def failure(call: Any) -> list[str | None]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code]
    return ["nothing", None]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
