"""Write the ONNX files of an engine directory and describe them for the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from divprune.export.graphs.progress import Progress
from divprune.runtime.directory.manifest import GraphSpec, TensorSpec
from divprune.runtime.errors import DivPruneError

__all__ = ["DECODER_FILES", "describe_graph", "ir_version", "save_graph", "share_data"]

DECODER_FILES = {
    "llm": "llm/model.onnx",
    "llm_prefill": "llm/prefill.onnx",
    "llm_decode": "llm/decode.onnx",
    "llm_front": "llm/front/model.onnx",
    "llm_back": "llm/back/model.onnx",
}
"""Where the graphs of the decoder are, by their names in the manifest."""

_DTYPE_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}
_INLINE_BYTES = 16 * 1024
"""Tensors up to this size stay in the .onnx file: constants, biases, norms."""


def ir_version(opset: int) -> int:
    """The version of the file format to write with an operator set.

    A parser warns of, or refuses, formats newer than itself: onnx writes a newer one by default
    than ONNX Runtime 1.22 reads (10), and graphs for old TensorRTs stay as old as their opset.
    """
    return 8 if opset <= 18 else 10


def save_graph(model: ir.Model, path: Path, description: str, progress: Progress) -> None:
    """Write ``model`` to ``path`` and large tensors to ``<path>.data``, one at a time.

    A model that shares another's data (``share_data``) gets no file of its own: what it does not
    share stays in the .onnx file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = (value.const_value for value in model.graph.initializers.values())
    stored = [tensor for tensor in tensors if tensor is not None]
    shares = any(isinstance(tensor, ir.ExternalTensor) for tensor in stored)
    sizes = (tensor.nbytes for tensor in stored)
    external = [] if shares else [size for size in sizes if size > _INLINE_BYTES]
    data = f"{path.name}.data"
    with progress.step(description, sum(external)) as advance, _true_reasons(path.with_name(data)):
        ir.save(
            model,
            path,
            external_data=data if external else None,
            size_threshold_bytes=_INLINE_BYTES,
            callback=lambda tensor, _: advance(tensor.nbytes),
        )


def share_data(model: ir.Model, saved: Path) -> None:
    """Let ``model`` read the weights that it has in common with a saved model from its file.

    Weights that are read from the checkpoint only when they are written are the same if they have
    the same name, dtype and shape; constants if they are equal.

    Args:
        model: Not saved yet; it has to be saved into the same folder.
        saved: The .onnx file that has them.
    """
    stored = ir.load(saved).graph.initializers
    for name, value in model.graph.initializers.items():
        tensor = stored[name].const_value if name in stored else None
        if not isinstance(tensor, ir.ExternalTensor) or value.const_value is None:
            continue
        wanted = value.const_value
        if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
            continue
        if isinstance(wanted, ir.LazyTensor) or np.array_equal(tensor.numpy(), wanted.numpy()):
            value.const_value = tensor


@contextmanager
def _true_reasons(data: Path) -> Iterator[None]:
    """Raise what went wrong instead of where the libraries that write noticed it."""
    try:
        yield
    except ir.serde.SerdeError as error:
        if reason := _what_a_weight_raised(error):
            raise reason from None
        raise
    except OSError as error:
        if error.errno is None:
            _write_until_refused(data)
        raise


def _what_a_weight_raised(error: BaseException | None) -> DivPruneError | None:
    """What reading a weight has raised, inside the layers that serialising puts around it."""
    while error is not None and not isinstance(error, DivPruneError):
        error = error.__cause__
    return error


def _write_until_refused(path: Path) -> None:
    """Let the system say why it takes no more: NumPy only tells how much was written.

    Raises:
        OSError: with the reason (a full disk, a limit on file sizes).
    """
    with path.open("ab") as file:
        file.write(bytes(1 << 20))


def describe_graph(model: ir.Model, path: str) -> GraphSpec:
    """Inputs, outputs and opset of a graph that was written to ``path`` (relative)."""
    graph = model.graph
    return GraphSpec(
        path=path,
        opset=graph.opset_imports[""],
        inputs=tuple(_tensor_spec(value) for value in graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in graph.outputs),
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return TensorSpec(value.name, _DTYPE_NAMES[value.dtype], dims)
