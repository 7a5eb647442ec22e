"""LangChain's ``ChatOpenAI`` against a server: what it got, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI


def main(base_url: str, key: str, model: str, picture: str, stop: str) -> dict[str, Any]:
    chat = ChatOpenAI(
        model=model, base_url=f"{base_url}/v1", api_key=key, max_tokens=8, stream_usage=True
    )
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "What is this?"},
    ]
    first = [HumanMessage(content=content)]
    whole = chat.invoke(first)
    chunks = list(chat.stream(first))
    later = chat.invoke([*first, AIMessage(content=whole.content), HumanMessage("And its colour?")])
    try:
        chat.invoke([SystemMessage("Be brief."), *first], n=2)
        failed = "nothing"
    except openai.BadRequestError as error:
        failed = error.code
    return {
        "answer": whole.content,
        "finish_reason": whole.response_metadata["finish_reason"],
        "usage": dict(whole.usage_metadata),
        "streamed": "".join(chunk.content for chunk in chunks),
        "streamed_usage": [dict(c.usage_metadata) for c in chunks if c.usage_metadata],
        "later_prompt_tokens": later.usage_metadata["input_tokens"],
        "stopped": chat.invoke(first, stop=[stop]).content,
        "failed": failed,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
