"""Pictures and videos of a request: out of ``data:`` URLs, and from elsewhere only if allowed.

The pipeline underneath takes paths and URLs, as a command line must. Nothing of the kind reaches
it from here: whatever a client sends is turned into decoded pictures or bytes first, and a picture
is refused by the size in its header, before it is decoded.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import ImageError
from divprune.runtime.inputs.image_loading import load_image, read_size
from divprune.runtime.serving.errors import ApiError, invalid
from divprune.runtime.serving.requests.local_files import read_below

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.serving.options import ServerOptions

__all__ = ["Media", "decode_messages", "read_media"]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LONGEST_DATA_HEAD = 256
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "refusal", "annotations", "audio"})
_BYTES_PER_PIXEL = 3


@dataclass(frozen=True)
class Media:
    """A picture or video that was taken out of a request, not decoded yet.

    Attributes:
        kind: ``image`` or ``video``.
        data: The bytes of the file.
        place: The field it came in.
        num_bytes: What it takes once it is decoded, as its header says.
    """

    kind: str
    data: bytes
    place: str
    num_bytes: int


def read_media(
    messages: Sequence[Mapping[str, Any]],
    options: ServerOptions,
    fetch: Callable[[str], bytes] | None = None,
) -> tuple[list[dict[str, Any]], list[Media]]:
    """Check messages and take their pictures and videos out.

    Args:
        messages: Of a checked request.
        options: What is allowed.
        fetch: Gets the bytes behind an http(s) URL, with checks of its own; None: nothing is
            fetched.

    Returns:
        Messages for the pipeline, in which an image or video part holds its number in ``media``,
        and the media.

    Raises:
        ApiError: naming the field that is wrong.
    """
    media: list[Media] = []
    read = [_message(message, f"messages[{i}]", media, options, fetch)
            for i, message in enumerate(messages)]  # fmt: skip
    pixels = sum(medium.num_bytes for medium in media if medium.kind == "image")
    if pixels > options.max_pixels * _BYTES_PER_PIXEL:
        raise invalid(
            f"the pictures of this request have more than {options.max_pixels} pixels together",
            "messages",
            "invalid_image",
        )
    return read, media


def decode_messages(
    messages: Sequence[Mapping[str, Any]], media: Sequence[Media]
) -> list[dict[str, Any]]:
    """The messages with decoded pictures in them.

    Raises:
        ApiError: 400 for a picture that cannot be decoded.
    """
    decoded = [_decode(medium) for medium in media]
    return [
        {**message, "content": [_with_medium(part, decoded) for part in message["content"]]}
        for message in messages
    ]


def _with_medium(part: Mapping[str, Any], decoded: Sequence[Any]) -> dict[str, Any]:
    kind = part["type"]
    return dict(part) if kind == "text" else {"type": kind, kind: decoded[part[kind]]}


def _decode(medium: Media) -> Image.Image | bytes:
    if medium.kind == "video":
        return medium.data
    try:
        return load_image(medium.data)
    except ImageError as error:
        raise invalid(
            f"{error.what}; found {error.found}", medium.place, "invalid_image"
        ) from error


def _message(
    message: Mapping[str, Any],
    place: str,
    media: list[Media],
    options: ServerOptions,
    fetch: Callable[[str], bytes] | None,
) -> dict[str, Any]:
    role = _ROLES.get(message.get("role", "")) if isinstance(message.get("role"), str) else None
    if role is None:
        raise invalid(f"role must be one of {', '.join(_ROLES)}", f"{place}.role")
    if message.get("tool_calls") or message.get("function_call"):
        raise invalid("tools are not supported", place, "unsupported_parameter")
    for name in message.keys() - _MESSAGE_FIELDS - {"tool_calls", "function_call"}:
        raise invalid("unknown field", f"{place}.{name[:100]}", "unknown_parameter")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise invalid("content must be text, or a list of one part or more", f"{place}.content")
    parts = [
        _part(part, f"{place}.content[{i}]", media, options, fetch)
        for i, part in enumerate(content)
    ]
    return {"role": role, "content": parts}


def _part(
    part: object,
    place: str,
    media: list[Media],
    options: ServerOptions,
    fetch: Callable[[str], bytes] | None,
) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image_url", "video_url"):
        raise invalid("a part must be of type text, image_url or video_url", f"{place}.type")
    if kind == "text":
        return {"type": "text", "text": _text(part.get("text"), f"{place}.text")}
    target = part.get(kind)
    url = target.get("url") if isinstance(target, dict) else target
    place = f"{place}.{kind}"
    if not isinstance(url, str):
        raise invalid(f"{kind} must hold a url", place)
    if len(media) >= options.max_images:
        raise invalid(f"there are more than {options.max_images} pictures", place)
    medium = kind.removesuffix("_url")
    data = _read_url(url, place, options, fetch)
    media.append(Media(medium, data, place, _decoded_size(medium, data, place, options)))
    return {"type": medium, medium: len(media) - 1}


def _text(text: object, place: str) -> str:
    if not isinstance(text, str):
        raise invalid("text must be text", place)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid("the text is not valid Unicode: a surrogate stands alone", place) from None
    return text


def _read_url(
    url: str, place: str, options: ServerOptions, fetch: Callable[[str], bytes] | None
) -> bytes:
    scheme = url[:10].partition(":")[0].lower()
    if scheme == "data":
        return _read_data_url(url, place)
    if scheme in ("http", "https"):
        if fetch is None:
            raise invalid(
                "this server does not fetch URLs; send the picture as a data: URL",
                place,
                "url_not_allowed",
            )
        try:
            return fetch(url)
        except ApiError as error:
            error.param = place
            raise
    if scheme == "file" and options.media_dir is not None:
        data = read_below(options.media_dir, _file_name(url), options.max_body)
        if data is None:
            raise invalid("there is no such file", place, "url_not_allowed")
        return data
    raise invalid("the picture must be a data: URL", place, "url_not_allowed")


def _file_name(url: str) -> str:
    """``file:a.jpg`` and ``file:///a.jpg`` are both below the media folder."""
    return urllib.parse.unquote(url.partition(":")[2]).lstrip("/")


def _read_data_url(url: str, place: str) -> bytes:
    comma = url.find(",", 0, _LONGEST_DATA_HEAD)
    if comma < 0:
        raise invalid("the data: URL is malformed", place, "invalid_image")
    head, body = url[:comma], url[comma + 1 :]
    if not head.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    with contextlib.suppress(ValueError):
        return base64.b64decode(body, validate=True)
    if "%" in body:
        body = urllib.parse.unquote(body)
    try:
        # Some clients escape it, break lines, leave the padding out, or write it for URLs.
        text = "".join(body.split()).replace("-", "+").replace("_", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("the data: URL is not valid base64", place, "invalid_image") from None


def _decoded_size(kind: str, data: bytes, place: str, options: ServerOptions) -> int:
    if kind == "video":
        return len(data)
    try:
        width, height = read_size(data)
    except ImageError as error:
        found = "" if error.found is None else f"; found {error.found}"
        raise invalid(f"{error.what}{found}", place, "invalid_image") from error
    pixels = width * height
    if pixels > options.max_pixels:
        raise invalid(
            f"the picture has more than {options.max_pixels} pixels", place, "invalid_image"
        )
    return pixels * _BYTES_PER_PIXEL
