"""Cut a written ONNX file into parts that run on their own, without copying its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["GraphCutter", "make_session", "more_outputs", "run_session"]


class GraphCutter:
    """Parts of one ONNX file, chosen by the scopes that their nodes are named under."""

    def __init__(self, path: Path) -> None:
        import onnx

        self._path = path
        self._model = onnx.load(path, load_external_data=False)
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._values = {value.name: value for value in self._model.graph.input}
        self._values |= {value.name: value for value in self._model.graph.output}

    def cut(
        self, scopes: Sequence[str], outputs: Sequence[str], like: Mapping[str, str]
    ) -> onnx.ModelProto:
        """The nodes under ``scopes`` as a model that yields ``outputs``.

        What these nodes read and none of them writes becomes an input; ``like`` names, for an
        input that is no input or output of the whole graph, one whose type it has.
        """
        import onnx

        nodes = [n for n in self._model.graph.node if n.name.startswith(tuple(scopes))]
        written = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in node.input if name} - written
        part = onnx.helper.make_model(
            onnx.helper.make_graph(
                nodes,
                "part",
                [self._value(name, like) for name in sorted(read - set(self._initializers))],
                [self._value(name, like) for name in outputs],
                [self._initializers[name] for name in sorted(read & set(self._initializers))],
            ),
            opset_imports=self._model.opset_import,
        )
        part.ir_version = self._model.ir_version
        return part

    @contextmanager
    def session(self, part: onnx.ModelProto) -> Iterator[onnxruntime.InferenceSession]:
        """Run a part beside the file it was cut from, where its weights are."""
        import onnx

        path = self._path.with_name(f".{self._path.stem}.part.onnx")
        onnx.save(part, path)
        try:
            yield make_session(path)
        finally:
            path.unlink()

    def _value(self, name: str, like: Mapping[str, str]) -> onnx.ValueInfoProto:
        import onnx

        value = onnx.ValueInfoProto()
        value.CopyFrom(self._values[like.get(name, name)])
        value.name = name
        return value


@contextmanager
def more_outputs(path: Path, names: Sequence[str]) -> Iterator[Path]:
    """The file of a graph that also gives float32 values inside it; its own without any."""
    import onnx

    if not names:
        yield path
        return
    model = onnx.load(path, load_external_data=False)
    for name in names:
        output = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(output)
    wider = path.with_name(f".{path.stem}.outputs.onnx")
    onnx.save(model, wider)
    try:
        yield wider
    finally:
        wider.unlink()


def make_session(path: Path) -> onnxruntime.InferenceSession:
    """A CPU session that keeps no second, repacked copy of the weights."""
    from divprune.runtime.directory.onnxruntime_library import import_onnxruntime

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    with _refusals():
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run with those feeds that the session has inputs for; outputs by name."""
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    with _refusals():
        results = session.run(names, {k: v for k, v in feeds.items() if k in wanted})
    arrays = [np.asarray(result) for result in results]  # tensors all of them, and no copies
    return dict(zip(names, arrays, strict=True))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BackendError(
            "ONNX Runtime cannot run a graph that was just exported", found=error
        ) from error
