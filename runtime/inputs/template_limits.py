"""Bounds on what a chat template may do: it is foreign code that runs in this process.

jinja2's sandbox keeps a template from reaching Python; it does not keep it from running for ever
or from filling the memory. Here every turn of a loop and every call counts, against a number and
against the clock; text, numbers and sequences have a largest size.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["BoundedEnvironment", "join_bounded"]

MAX_SECONDS = 5.0
MAX_STEPS = 2_000_000
MAX_LENGTH = 4_000_000
"""Characters of a text or items of a sequence."""

_MAX_NUMBER = 1_000_000  # what is counted, padded or repeated
_COUNT, _JOIN = "_divprune_count", "_divprune_join"
_WIDTH = re.compile(r"\d{5,}")
_BOUNDED_FILTERS = ("batch", "center", "indent", "join", "list", "replace", "slice", "wordwrap")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with bounds; ``start`` begins the count of one rendering."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps, self._deadline = 0, 0.0
        self.filters |= {_COUNT: self._counted, _JOIN: self._joined}
        for name in _BOUNDED_FILTERS:
            self.filters[name] = self._checked(name, self.filters[name])
        self.globals.pop("lipsum", None)  # text by the million; no template needs it
        self.concat = join_bounded  # type: ignore[method-assign]
        self.start()

    def start(self) -> None:
        """Forget what earlier renderings took."""
        self._steps, self._deadline = 0, time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """Count one turn or call.

        Raises:
            SecurityError: when there were too many, or the time is over.
        """
        self._steps += 1
        if self._steps > MAX_STEPS or (
            self._steps % 256 == 0 and time.monotonic() > self._deadline
        ):
            raise SecurityError(f"it does not end within {MAX_SECONDS:.0f} s")

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method of a template."""
        self.step()
        _check_arguments(getattr(__obj, "__self__", None), args, kwargs)
        return _check_size(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` as templates get it."""
        _check_arguments(getattr(value, "__self__", None), (), {})
        return super().wrap_str_format(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Carry out an operator that can make much of little."""
        self.step()
        _check_operands(operator, left, right)
        return _check_size(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item

    def _joined(self, items: Iterable[Any]) -> str:
        return join_bounded(map(str, items))

    def _checked(self, name: str, plain: Any) -> Any:
        import functools

        @functools.wraps(plain)  # with what tells jinja2 to pass the environment
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.step()
            texts = [arg for arg in args if isinstance(arg, str)]
            _check_arguments(texts[0] if texts else None, args, kwargs)
            if name == "replace" and len(texts) > 2:
                _check_replacement(texts[0], texts[1], texts[2])
            if name == "join":
                return _check_size(self._bounded_join(plain, args, kwargs))
            return _check_size(plain(*args, **kwargs))

        return checked

    def _bounded_join(self, plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Join, unless the items are too much together."""
        place = next((n for n, arg in enumerate(args) if not isinstance(arg, (Context,))), 0)
        place = 1 if len(args) > 1 and hasattr(args[0], "environment") else place
        place = 1 if args and args[0] is self else place
        items = list(args[place]) if len(args) > place else []
        _check_length(sum(len(str(item)) for item in items))
        return plain(*args[:place], items, *args[place + 1 :], **kwargs)


def join_bounded(pieces: Iterable[str]) -> str:
    """One text of many pieces.

    Raises:
        SecurityError: as soon as they are more than ``MAX_LENGTH`` characters.
    """
    parts, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_LENGTH:
            raise SecurityError(f"it makes text of more than {MAX_LENGTH} characters")
        parts.append(piece)
    return "".join(parts)


class _Bounds(NodeTransformer):
    """Count the turns of every loop, and what ``~`` joins."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNT)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        parts: Any = nodes.List(node.nodes, lineno=node.lineno)
        return _filtered(parts, _JOIN)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _check_arguments(owner: object, args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    values = [*args, *kwargs.values()]
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_NUMBER and isinstance(owner, (str, list)):
            raise SecurityError(f"it asks for {abs(value)} characters or items")
        if type(value) is int and abs(value) > 1000 * _MAX_NUMBER and owner is None:
            raise SecurityError(f"it asks for {abs(value)} items")
    if isinstance(owner, str):
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) >= 2:
            _check_replacement(owner, texts[0], texts[1])
        if _WIDTH.search(owner) and "{" in owner:
            raise SecurityError("it pads text without a bound")
        for value in values:
            if isinstance(value, (list, tuple)):  # join
                _check_length(sum(len(v) + len(owner) for v in value if isinstance(v, str)))


def _check_replacement(text: str, old: str, new: str) -> None:
    _check_length(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str):
        if _WIDTH.search(left) or "*" in left:
            raise SecurityError("it pads text without a bound")
    elif operator == "*":
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, (str, list, tuple)) and isinstance(times, int):
                _check_length(len(sized) * max(times, 0))
    elif operator == "+" and isinstance(left, (str, list, tuple)):
        _check_length(len(left) + (len(right) if hasattr(right, "__len__") else 0))
    elif operator == "**" and (abs(left) > 10_000 or abs(right) > 1000):
        raise SecurityError("it raises a number to a large power")


def _check_size(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _check_length(len(value))
    elif type(value) is int and value.bit_length() > 4096:
        raise SecurityError("it makes a number of more than 4096 bits")
    return value


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"it makes text or a sequence of more than {MAX_LENGTH} items")
