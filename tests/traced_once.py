"""Torch traces a tower once a process, and not once for every export of it.

Tracing is half of the time of an export of a tiny checkpoint. Exports that differ in the selector
alone, or in how weights are stored, trace the same module; what one gets here is a copy of what the
first one got.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["describe", "share_traces"]

_USERS = ("divprune.export.vision.trace", "divprune.export.vision.downsampled")


def share_traces() -> None:
    """Let the modules that trace, where they are imported by now, use what was traced before."""
    for name in _USERS:
        user: Any = sys.modules.get(name)
        if user is not None and not hasattr(user.trace_module, "__wrapped__"):
            user.trace_module = _shared(user.trace_module)


def _share_operators() -> None:
    """Let ``torch.onnx.export``, once it is imported, build its table of operators only once.

    It parses the source of all of torch's operators anew for every graph, a fifth of a small
    export. An export gets a copy, so that none can change what the next one gets.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry: Any = getattr(registration, "ONNXRegistry", None)
    build = getattr(registry, "from_torchlib", None)
    if build is not None and not hasattr(build, "__wrapped__"):
        registry.from_torchlib = staticmethod(_copied(build))


def _copied(build: Callable[..., Any]) -> Callable[..., Any]:
    table_of = functools.cache(build)

    @functools.wraps(build)
    def copy_of_table(**opset: int) -> Any:
        table = copy.copy(table_of(**opset))
        table.functions = {name: list(each) for name, each in table.functions.items()}
        return table

    return copy_of_table


@functools.cache
def _shared(trace_module: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    traced: dict[bytes, ir.Model] = {}

    @functools.wraps(trace_module)
    def trace_once(
        module: torch.nn.Module,
        inputs: Sequence[Any],
        outputs: Sequence[str],
        weights: Any,
        *opset: int,
    ) -> ir.Model:
        key = describe((module, tuple(inputs), tuple(outputs), weights.dtype, opset))
        if key not in traced:
            _share_operators()
            traced[key] = trace_module(module, inputs, outputs, weights, *opset)
        return traced[key].clone()

    return trace_once


def describe(value: object) -> bytes:
    """A digest of all that ``value`` consists of: attributes, code, and what functions enclose."""
    stream = io.BytesIO()
    _Description(stream).dump(value)
    return hashlib.sha256(stream.getvalue()).digest()


class _Description(pickle.Pickler):
    """Writes what :mod:`pickle` cannot: classes and functions that are defined in functions."""

    def reducer_override(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            numbers = None if value.is_meta else value.detach().numpy().tobytes()
            return str, (str((value.dtype, tuple(value.shape), value.requires_grad, numbers)),)
        # What may lead back to the value comes third: by then it has been noted.
        if isinstance(value, type) and "<locals>" in value.__qualname__:
            parts = {name: part for name, part in vars(value).items() if _is_code(part)}
            return str, (value.__module__ + value.__qualname__,), (value.__bases__, parts)
        if isinstance(value, FunctionType) and "<locals>" in value.__qualname__:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return str, (value.__qualname__,), (value.__code__, value.__defaults__, cells)
        if isinstance(value, ModuleType):
            return str, (value.__name__,)
        if isinstance(value, CodeType):
            return tuple, ((value.co_filename, value.co_firstlineno, value.co_code),)
        return NotImplemented


def _is_code(part: object) -> bool:
    return isinstance(part, FunctionType)
