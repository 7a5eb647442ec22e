"""Conversations: lists of messages, checked, with their pictures and videos in order.

Messages are those of OpenAI's chat API and of transformers' templates: a role, and content that
is text or a list of parts.

| part | source |
|---|---|
| ``{"type": "text", "text": …}`` | |
| ``{"type": "image", "image": …}``, also under ``path`` or ``url`` | a picture |
| ``{"type": "image_url", "image_url": {"url": …}}`` | a picture |
| ``{"type": "video", "video": …}``, ``{"type": "video_url", "video_url": {"url": …}}`` | a video |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from divprune.runtime.errors import OptionError, PromptError

__all__ = ["Conversation", "Medium", "as_pictures", "question", "read_messages"]

_Source = TypeVar("_Source")

_ROLES = ("system", "user", "assistant")
_SOURCES = {
    "image": ("image", "path", "url"),
    "video": ("video", "path", "url"),
    "image_url": ("image_url",),
    "video_url": ("video_url",),
}
_EXAMPLE = (
    '[{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, '
    '{"type": "text", "text": "What is this?"}]}]'
)


@dataclass(frozen=True)
class Medium:
    """A picture or video of a conversation.

    Attributes:
        kind: ``image`` or ``video``.
        source: What the part held: a path, URL, bytes, a picture, or one that was encoded.
        place: Where it stands, such as ``messages[0].content[1]``.
    """

    kind: Literal["image", "video"]
    source: Any
    place: str


@dataclass(frozen=True)
class Conversation:
    """Checked messages.

    Attributes:
        messages: For the chat template: content is a list of parts, whose pictures and videos
            hold nothing but their type.
        media: Pictures and videos in the order in which they stand.
    """

    messages: tuple[dict[str, Any], ...]
    media: tuple[Medium, ...]

    def until(self, place: int) -> Conversation:
        """What came before the message at ``place``."""
        before = self.messages[:place]
        num_media = sum(part["type"] != "text" for each in before for part in each["content"])
        return Conversation(before, self.media[:num_media])

    @property
    def num_pictures(self) -> int:
        """Pictures among the media; videos are not counted."""
        return sum(medium.kind == "image" for medium in self.media)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the conversation."""
        return tuple(
            part["text"]
            for message in self.messages
            for part in message["content"]
            if part["type"] == "text"
        )


def as_pictures(images: _Source | Sequence[_Source]) -> list[_Source]:
    """One picture or several as a list.

    Raises:
        OptionError: if there is none, or standard input is to be read twice.
    """
    several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    pictures = list(cast("Sequence[_Source]", images if several else [images]))
    if not pictures:
        raise OptionError("no picture was given", expected="one or more", found="none")
    if [str(picture) for picture in pictures if isinstance(picture, (str, Path))].count("-") > 1:
        raise OptionError("standard input (-) can give one picture only", found="- twice")
    return pictures


def question(text: str, media: Sequence[Any], system: str | None = None) -> list[dict[str, Any]]:
    """The messages of one question about pictures, which stand in front of it.

    Raises:
        PromptError: if the question is empty.
    """
    _check_not_empty(text, "the question")
    content: list[dict[str, Any]] = [{"type": "image", "image": source} for source in media]
    content.append({"type": "text", "text": text})
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": content}]


def read_messages(messages: object) -> Conversation:
    """Check a conversation and take its pictures and videos out.

    Raises:
        PromptError: naming the place that has another form.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise _wrong("messages", "a list of one message or more", messages)
    media: list[Medium] = []
    checked = tuple(_message(each, f"messages[{i}]", media) for i, each in enumerate(messages))
    if checked[-1]["role"] == "assistant":
        place = f"messages[{len(checked) - 1}].role"
        raise _wrong(place, "user: there is nothing to answer", "assistant")
    last = checked[-1]["content"]
    if all(part["type"] == "text" for part in last):
        _check_not_empty("".join(part["text"] for part in last), "the last message")
    return Conversation(checked, tuple(media))


def _check_not_empty(text: str, what: str) -> None:
    if not text.strip():
        raise PromptError(
            f"{what} is empty",
            expected="some text",
            found=repr(text),
            fix='--prompt "What is in this picture?"',
        )


def _message(message: object, place: str, media: list[Medium]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(place, "an object with role and content", message)
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise _wrong(f"{place}.role", "one of " + ", ".join(_ROLES), role)
    if isinstance(content, str):
        return {"role": role, "content": [_text(content, f"{place}.content")]}
    if isinstance(content, bytes) or not isinstance(content, Sequence) or not content:
        raise _wrong(f"{place}.content", "text, or a list of one part or more", content)
    parts = [_part(part, f"{place}.content[{i}]", media) for i, part in enumerate(content)]
    return {"role": role, "content": parts}


def _part(part: object, place: str, media: list[Medium]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", *_SOURCES):
        raise _wrong(f"{place}.type", "one of text, " + ", ".join(_SOURCES), kind or part)
    if kind == "text":
        return _text(part.get("text"), f"{place}.text")
    keys = _SOURCES[str(kind)]
    found = [part[key] for key in keys if part.get(key) is not None]
    if len(found) != 1:
        raise _wrong(place, f"the {kind} under " + " or ".join(keys), sorted(map(str, part)))
    source = found[0]
    if isinstance(source, Mapping):
        source = source.get("url")
    if source is None or (isinstance(source, (str, bytes)) and not source):
        raise _wrong(f"{place}.{keys[0]}", "a path, URL, bytes or picture", found[0])
    medium: Literal["image", "video"] = "image" if str(kind).startswith("image") else "video"
    media.append(Medium(medium, source, place))
    return {"type": medium}


def _text(text: object, place: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise _wrong(place, "text", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8
        raise PromptError(
            f"{place} is not valid Unicode text",
            expected="UTF-8",
            found=ascii(text)[:80],
            fix="check the terminal's encoding (LANG, LC_ALL)",
        ) from error
    return {"type": "text", "text": text}


def _wrong(place: str, expected: str, found: object) -> PromptError:
    shown = repr(found)
    return PromptError(
        f"{place} has another form",
        expected=expected,
        found=shown if len(shown) <= 80 else f"{shown[:77]}...",
        fix=f"messages look like {_EXAMPLE}",
    )
