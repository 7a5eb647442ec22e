"""One question about pictures as the token ids that prefill takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune.runtime.errors import PromptError
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.inputs.tokenization import TextTokenizer

__all__ = ["Prompt", "build_prompt", "expand_prompt"]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: What the chat template wrote.
        ids: Its token ids, exactly one image token a picture.
        image_positions: Where in ``ids`` the image tokens stand, ascending.
    """

    text: str
    ids: tuple[int, ...]
    image_positions: tuple[int, ...]


def build_prompt(
    question: str,
    num_images: int,
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    image_token_id: int,
) -> Prompt:
    """Put one user's question about ``num_images`` pictures into the checkpoint's own form.

    Raises:
        PromptError: The question is empty or not text, the template refuses it, or the prompt
            does not hold one image token a picture.
    """
    _check_question(question)
    content: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
    content.append({"type": "text", "text": question})
    text = template.render([{"role": "user", "content": content}])
    ids = tuple(tokenizer.encode(text))
    positions = tuple(place for place, token in enumerate(ids) if token == image_token_id)
    if len(positions) != num_images:
        raise _wrong_number(question, num_images, len(positions), tokenizer, image_token_id)
    return Prompt(text, ids, positions)


def expand_prompt(
    prompt: Prompt, counts: Sequence[int], image_token_id: int
) -> npt.NDArray[np.int64]:
    """Repeat each image token as often as its picture has tokens to show.

    Args:
        prompt: With one image token a picture.
        counts: Kept tokens of each picture, in the order of the prompt.
        image_token_id: The token that ``prompt.image_positions`` point at.

    Returns:
        int64 [S], S = text tokens + sum(counts).

    Raises:
        ValueError: The counts are not one positive number a picture.
    """
    if len(counts) != len(prompt.image_positions) or any(count < 1 for count in counts):
        raise ValueError(f"{len(prompt.image_positions)} images, but token counts {list(counts)}")
    ids = np.array(prompt.ids, dtype=np.int64)
    if np.any(ids[list(prompt.image_positions)] != image_token_id):
        raise ValueError(f"{image_token_id} is not the image token this prompt was built with")
    repeats = np.ones(len(ids), dtype=np.int64)
    repeats[list(prompt.image_positions)] = counts
    return np.repeat(ids, repeats)


def _check_question(question: str) -> None:
    if not question.strip():
        raise PromptError(
            "the question is empty",
            expected="some text",
            found=repr(question),
            fix='--prompt "What is in this picture?"',
        )
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8
        raise PromptError(
            "the question is not valid Unicode text",
            expected="UTF-8",
            found=ascii(question),
            fix="check the terminal's encoding (LANG, LC_ALL)",
        ) from error


def _wrong_number(
    question: str, expected: int, found: int, tokenizer: TextTokenizer, image_token_id: int
) -> PromptError:
    name = tokenizer.token(image_token_id)
    if image_token_id in tokenizer.encode(question):
        what = f"the question itself contains the image placeholder {name!r}"
        fix = "leave it out of --prompt: the chat template places the images"
    elif name is None:
        what = f"the tokenizer has no token {image_token_id}, the model's image placeholder"
        fix = "export again from a checkpoint whose tokenizer belongs to the model"
    else:
        what = f"the chat template does not write one image placeholder {name!r} for every image"
        fix = (
            "export again with a chat_template.jinja that writes the placeholder for entries "
            'of type "image"'
        )
    return PromptError(
        what,
        expected=f"{expected} image tokens in the prompt",
        found=f"{found} image tokens in the prompt",
        fix=fix,
    )
