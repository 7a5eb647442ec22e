"""A conversation as token ids, with one row for every visual token before pruning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from divprune.runtime.errors import PromptError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.families import MediaKind
    from divprune.runtime.inputs.chat_template import ChatTemplate
    from divprune.runtime.inputs.messages import Conversation
    from divprune.runtime.inputs.tokenization import TextTokenizer

__all__ = ["Expansion", "Prompt", "build_prompt", "staying_rows"]


class Expansion(Protocol):
    """What stands in a prompt for a picture or video (``families.Prepared``)."""

    @property
    def kind(self) -> MediaKind:
        """Picture or video."""
        ...

    @property
    def text(self) -> str:
        """Its text, with one visual token a run."""
        ...

    @property
    def runs(self) -> tuple[int, ...]:
        """Visual tokens of each run."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt of L rows.

    Attributes:
        text: What the chat template wrote, with the text of pictures and videos put in.
        ids: int64 [L].
        is_visual: bool [L], True for the rows of visual tokens.
        spans: For each picture and video the rows int64 [N] of its visual tokens, ascending.
    """

    text: str
    ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    spans: tuple[NDArray[np.int64], ...]

    @property
    def num_text_tokens(self) -> int:
        """Rows that are no visual tokens."""
        return len(self.ids) - int(self.is_visual.sum())


def build_prompt(
    conversation: Conversation,
    media: Sequence[Expansion],
    placeholders: Mapping[MediaKind, str],
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    visual_token_ids: Sequence[int],
) -> Prompt:
    """Write a conversation in the checkpoint's own form.

    The text of a picture is put in before the text is tokenised: what surrounds a visual token
    may merge with its neighbours.

    Args:
        conversation: The messages.
        media: What stands for each of its pictures and videos, in order.
        placeholders: What the chat template writes where one stands.
        template: The checkpoint's chat template.
        tokenizer: The checkpoint's tokenizer.
        visual_token_ids: The tokens that stand for visual tokens.

    Raises:
        PromptError: if the question is empty, a text holds a placeholder, the template refuses
            the conversation, or does not write one placeholder for every picture.
    """
    _check_texts(conversation, placeholders)
    rendered = template.render(conversation.messages)
    text = _put_in(rendered, media, placeholders, conversation)
    ids = np.array(tokenizer.encode(text), np.int64)
    is_visual = np.isin(ids, visual_token_ids)
    runs = [length for each in media for length in each.runs]
    if int(is_visual.sum()) != len(runs):
        raise PromptError(
            "the tokenizer does not read the placeholders of the pictures as single tokens",
            expected=f"{len(runs)} visual tokens in the prompt",
            found=f"{int(is_visual.sum())}",
            fix="export again from a checkpoint whose tokenizer belongs to the model",
        )
    repeats = np.ones(len(ids), np.int64)
    repeats[is_visual] = runs
    rows = np.flatnonzero(np.repeat(is_visual, repeats))
    ends = np.cumsum([sum(each.runs) for each in media])
    spans = tuple(np.split(rows, ends[:-1])) if media else ()
    return Prompt(text, np.repeat(ids, repeats), np.repeat(is_visual, repeats), spans)


def staying_rows(
    num_rows: int, spans: Sequence[NDArray[np.int64]], kept: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Rows of a prompt that are left when visual tokens are removed, ascending.

    Args:
        num_rows: L.
        spans: For each picture and video the rows int64 [N] of its visual tokens.
        kept: int64 [K], which of them stay.
    """
    stays = np.ones(num_rows, bool)
    for rows, places in zip(spans, kept, strict=True):
        stays[rows] = False
        stays[rows[places]] = True
    return np.flatnonzero(stays)


def _put_in(
    rendered: str,
    media: Sequence[Expansion],
    placeholders: Mapping[MediaKind, str],
    conversation: Conversation,
) -> str:
    """Replace each placeholder by the text of its picture or video."""
    kinds = {text: kind for kind, text in placeholders.items()}
    longest_first = sorted(kinds, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    found = [kinds[match[0]] for match in pattern.finditer(rendered)]
    wanted = [each.kind for each in media]
    if found != wanted:
        raise _wrong_number(wanted, found, placeholders, conversation)
    texts = iter([each.text for each in media])
    return pattern.sub(lambda match: next(texts), rendered)


def _check_texts(conversation: Conversation, placeholders: Mapping[MediaKind, str]) -> None:
    for kind, placeholder in placeholders.items():
        if any(placeholder in text for text in conversation.texts):
            raise PromptError(
                f"the question itself contains the {kind} placeholder {placeholder!r}",
                expected="text without it",
                found=placeholder,
                fix="leave it out of the text: the chat template places the pictures",
            )


def _wrong_number(
    wanted: Sequence[str],
    found: Sequence[str],
    placeholders: Mapping[MediaKind, str],
    conversation: Conversation,
) -> PromptError:
    kinds: list[MediaKind] = ["image", "video"]
    kinds.sort(key=lambda kind: kind in placeholders)  # what it never takes comes first
    differ: list[MediaKind] = [kind for kind in kinds if wanted.count(kind) != found.count(kind)]
    kind = (differ or kinds)[0]
    if kind not in placeholders:
        return PromptError(
            f"this model takes no {kind}s",
            expected=", ".join(placeholders),
            found=f"{wanted.count(kind)} {kind}s",
        )
    return PromptError(
        f"the chat template does not write one {kind} placeholder {placeholders[kind]!r} for "
        f"every {kind}, in order",
        expected=f"{wanted.count(kind)} in the prompt",
        found=f"{found.count(kind)} in the prompt, of {_places(kind, conversation)}",
        fix="put pictures into messages of a role whose content the template writes (user), or "
        "export again with a chat_template.jinja that writes the placeholder for entries of "
        f'type "{kind}"',
    )


def _places(kind: MediaKind, conversation: Conversation) -> str:
    """Where pictures or videos stand, with the roles that decide what a template does."""
    return ", ".join(
        f"messages[{i}].content[{j}] ({message['role']})"
        for i, message in enumerate(conversation.messages)
        for j, part in enumerate(message["content"])
        if part["type"] == kind
    )
