"""Chat templates: messages in, prompt text out, as transformers renders them.

Templates come with checkpoints from the hub and are foreign code: they run in jinja2's sandbox
with the filters, globals and block tags that transformers gives them, within bounds of time and
size (`template_limits`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from divprune.runtime.directory.bounded_json import read_bounded
from divprune.runtime.errors import PromptError
from divprune.runtime.inputs.template_limits import MAX_LENGTH, BoundedEnvironment, join_bounded

__all__ = ["ChatTemplate", "read_template"]

_MAX_INDENT = 100
_FIX = "repair chat_template.jinja in the checkpoint and export again"


def read_template(path: Path) -> str:
    """The text of a template's file.

    Raises:
        PromptError: if it is no plain file, too long, or no text.
    """
    try:
        return read_bounded(path, MAX_LENGTH, error=PromptError, fix=_FIX).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text", found=error, fix=_FIX) from error


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The jinja source, content of ``chat_template.jinja``.
        special_tokens: Names and texts the template may use, such as ``bos_token``.

    Raises:
        PromptError: The source is not a valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self._environment = _environment()
        try:
            if len(source) > MAX_LENGTH:
                raise PromptError("the chat template is too long", found=len(source), fix=_FIX)
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(
                "the chat template is not valid jinja",
                found=f"line {error.lineno}: {error.message}",
                fix=_FIX,
            ) from error
        except RecursionError as error:
            raise PromptError("the chat template is nested too deeply", fix=_FIX) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as the text the model was trained on.

        Args:
            messages: Each a ``role`` and a ``content`` of ``{"type": "image"}`` and
                ``{"type": "text", "text": ...}`` entries. Texts are data: jinja in them stays.
            add_generation_prompt: End with the header of the answer.

        Raises:
            PromptError: The template refuses the conversation or fails.
        """
        self._environment.start()
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except _RefusalError as error:
            raise PromptError(
                "the chat template refuses this conversation", found=error.message
            ) from error
        except MemoryError as error:
            raise PromptError(
                "the chat template fills the memory", found="MemoryError", fix=_FIX
            ) from error
        except Exception as error:  # foreign code: whatever it raises is the template's failure
            raise PromptError(
                "the chat template fails", found=f"{type(error).__name__}: {error}", fix=_FIX
            ) from error


class _RefusalError(jinja2.TemplateError):
    """The template called ``raise_exception``."""


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block is its own scope, as in transformers: a `set` inside does not leak out.
        return nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    @staticmethod
    def _pass_through(caller: Any) -> str:
        text: str = caller()
        return text


class _Dict:
    """``dict(...)`` without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace(...)`` that refuses names reaching into Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace attribute may not start with an underscore: {name!r}")


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - templates may pass it by name
    return datetime.now().strftime(format)


def _tojson(
    x: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as is: jinja2's own filter escapes HTML characters."""
    widths = [indent if isinstance(indent, int) else len(indent or "")]
    if max(widths + [len(text) for text in separators or ()]) > _MAX_INDENT:
        raise SecurityError(f"it indents or separates JSON by more than {_MAX_INDENT} characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return join_bounded(encoder.iterencode(x))


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    names: dict[str, Any] = environment.globals
    names |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment
