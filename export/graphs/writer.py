"""Write ONNX nodes one call a node, under a name scope.

A thin layer over ``onnx_ir.tape.Tape``: it names nodes by scope (``layers.3/attention/...``),
makes small constants, and adds weights whose bytes are read only when the file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["GraphWriter"]


class GraphWriter:
    """Collects nodes and initializers for one graph (or one subgraph).

    Example::

        op = GraphWriter()
        with op.scope("gram"):
            similarity = op("MatMul", unit, op("Transpose", unit, perm=[1, 0]))
    """

    def __init__(self, graph: ir.Graph | None = None, prefix: str = "") -> None:
        self._tape = ir.tape.Tape(graph)
        self._scopes: list[str] = [prefix] if prefix else []
        self._counts: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` before the names of everything written inside the block."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one output and return that output."""
        return self.multi(op_type, *inputs, num_outputs=1, domain=domain, name=name, **attributes)[
            0
        ]

    def multi(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        num_outputs: int,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs and return them."""
        node_name = self._unique(name or op_type)
        outputs = self._tape.op_multi_out(
            op_type,
            inputs,
            attributes or None,
            num_outputs=num_outputs,
            domain=domain,
            name=node_name,
        )
        for i, value in enumerate(outputs):
            value.name = node_name if i == 0 else f"{node_name}.{i}"
        return outputs

    def constant(self, array: np.ndarray, name: str = "constant") -> ir.Value:
        """A small constant, stored in the graph itself."""
        return self._tape.initializer(ir.tensor(array, name=self._unique(name)))

    def weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        read: Callable[[], np.ndarray],
    ) -> ir.Value:
        """A weight that ``read`` produces when the model is saved, and never before."""
        lazy = ir.LazyTensor(
            lambda: ir.tensor(read(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape), name=name
        )
        return self._tape.initializer(lazy)

    def packed_weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        read: Callable[[], np.ndarray],
    ) -> ir.Value:
        """As ``weight``, of numbers smaller than a byte: ``read`` returns the packed bytes."""
        lazy = ir.LazyTensor(
            lambda: ir.PackedTensor(read(), dtype, shape=ir.Shape(shape)),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        return self._tape.initializer(lazy)

    def subgraph(self, name: str) -> GraphWriter:
        """A writer for a subgraph (the body of a ``Loop``): its names lie inside this scope."""
        return GraphWriter(prefix=self._unique(name))

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A typed value that no node makes: an input of this graph."""
        return ir.val(self._unique(name), dtype, shape)

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """The nodes written so far."""
        return self._tape.nodes

    @property
    def initializers(self) -> Sequence[ir.Value]:
        """The constants and weights written so far."""
        return self._tape.initializers

    def _unique(self, name: str) -> str:
        full = "/".join([*self._scopes, name])
        count = self._counts.get(full, 0)
        self._counts[full] = count + 1
        return full if count == 0 else f"{full}_{count}"
