"""What exports in one process share: it is what each of them would have traced by itself."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import onnx_ir as ir
import torch
from traced_once import describe, share_traces

from divprune.export.vision import trace
from divprune.export.vision.trace import TracedInput

WEIGHTS: Any = SimpleNamespace(dtype=ir.DataType.FLOAT)
ROWS = TracedInput("rows", (2, 4), "float32", (2, 4))


def make_module(factor: float = 2.0, constant: float = 1.0, width: int = 3, **attributes: Any):
    """Has parameters without values, a buffer, attributes, and what its code encloses."""
    library = torch.nn.functional

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, width, device="meta")
            self.register_buffer("constant", torch.full((3,), constant))
            vars(self).update(attributes)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return library.relu(self.linear(rows)) * factor

    return Scaled()


def test_the_same_module_made_twice_is_one():
    assert describe((make_module(), ROWS)) == describe((make_module(), ROWS))


@pytest.mark.parametrize(
    "other",
    [{"factor": 2.5}, {"constant": 1.5}, {"width": 5}, {"layers": (-2,)}],
    ids=lambda other: next(iter(other)),
)
def test_whatever_sets_modules_apart_is_seen(other):
    assert describe(make_module(**other)) != describe(make_module())


def test_modules_of_other_code_are_two():
    def make(sign: int):
        if sign > 0:

            class Signed(torch.nn.Module):
                def forward(self, rows: torch.Tensor) -> torch.Tensor:
                    return rows + 1
        else:

            class Signed(torch.nn.Module):
                def forward(self, rows: torch.Tensor) -> torch.Tensor:
                    return rows - 1

        return Signed()

    assert describe(make(1)) == describe(make(1)) != describe(make(-1))


def test_copies_are_what_is_traced_anew_and_leave_each_other_alone(monkeypatch):
    monkeypatch.setattr(trace, "trace_module", inspect.unwrap(trace.trace_module))
    alone = str(trace.trace_module(make_module(), [ROWS], ["scaled"], WEIGHTS))
    share_traces()
    first = trace.trace_module(make_module(), [ROWS], ["scaled"], WEIGHTS)
    first.graph.outputs[0].name = "changed"
    second = trace.trace_module(make_module(), [ROWS], ["scaled"], WEIGHTS)
    assert str(second) == alone
    assert str(trace.trace_module(make_module(3.0), [ROWS], ["scaled"], WEIGHTS)) != alone
