"""The vision engines, and the selection engine that is there to be timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from divprune.runtime.backends.cuda.buffers import BufferPool, DeviceBuffer, HostBuffer, align
from divprune.runtime.backends.image_features import ImageFeatures, SmallPictureFeatures
from divprune.runtime.backends.tensorrt.profiles import varying_dims
from divprune.runtime.backends.tensorrt.rows import DeviceRows, PromptWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from divprune.runtime.backends.cuda.kernels import Kernels
    from divprune.runtime.backends.tensorrt.engine import Engine, Session
    from divprune.runtime.directory.manifest import GraphSpec, Manifest, TensorSpec

__all__ = ["VisionRunner"]

_INT32_BYTES = 4
_ROWS = ("image_features", "selected_features")


class VisionRunner:
    """Encodes pictures; features stay on the device, only what is said about them leaves it.

    Args:
        session: What the engines share.
        kernels: Reductions on the device.
        manifest: Manifest of the engine directory.
        name: The graph, ``vision`` or another one of its kind.
        writer: Embeds the prompts.
    """

    def __init__(
        self,
        session: Session,
        kernels: Kernels,
        manifest: Manifest,
        name: str,
        writer: PromptWriter,
    ) -> None:
        self._session, self._kernels, self._writer = session, kernels, writer
        self._num_image_tokens = manifest.selector.num_image_tokens
        self._spec = spec = manifest.graphs[name]
        cuda, dims = session.cuda, varying_dims(manifest, name)
        # An output may vary where no input has its dimension: N follows from the crops.
        largest = {each: dim.maximum for each, dim in (manifest.dims | dims).items()}
        self._varies = bool(dims)
        self._inputs = {
            tensor.name: DeviceBuffer(cuda, num_bytes(tensor, largest)) for tensor in spec.inputs
        }
        outputs = {tensor.name: tensor for tensor in spec.outputs}
        # None of them where the selection comes later.
        told = {name: outputs.pop(name, None) for name in ("selection_order", "selection_cover")}
        self._outputs = outputs
        self._planes = sorted(name for name in outputs if name.startswith("deepstack_"))
        # Of one size, buffers are used again; else each picture has what it needs.
        self._pools = {} if self._varies else {
            name: BufferPool(cuda, num_bytes(tensor, {})) for name, tensor in outputs.items()
        }  # fmt: skip
        # Where the tower saw a smaller picture (``downsample``) its rows are the selected ones.
        self._sees_all = "image_features" in outputs
        self._checked = "image_features" if self._sees_all else "selected_features"
        most = _sizes(outputs[self._checked], largest)[0]
        self._told = _Told(
            session, {name: t for name, t in told.items() if t is not None}, largest, most
        )

    def encode(
        self,
        engine: Engine,
        inputs: Mapping[str, NDArray[Any]],
        encode_full: Callable[[], ImageFeatures] | None = None,
    ) -> ImageFeatures:
        """Run the vision engine.

        Args:
            engine: Of this graph.
            inputs: Those of the graph, by name.
            encode_full: Gives the N tokens of the full picture, where this graph does not.
        """
        session, told = self._session, self._told
        given = {
            tensor.name: np.ascontiguousarray(inputs[tensor.name], tensor.dtype)
            for tensor in self._spec.inputs
        }
        upload(session, given, self._inputs)
        shapes = {name: array.shape for name, array in given.items()} if self._varies else {}
        sizes = named_sizes(self._spec, shapes)
        rows = {name: self._rows(engine, name, shapes, sizes) for name in self._outputs}
        addresses = {name: each.address for name, each in rows.items()}
        addresses |= {name: buffer.address for name, buffer in self._inputs.items()}
        engine.run(0, shapes, addresses | told.addresses)
        checked = rows[self._checked]
        self._kernels.broken_rows(
            checked.address,
            *checked.shape,
            checked.dtype.itemsize,
            told.broken,
            int(session.stream),
        )
        num_broken, order, cover = told.read(len(checked), sizes)
        selected = cast("NDArray[np.floating]", rows.get("selected_features", checked[order]))
        if self._sees_all or encode_full is None:
            features = cast("NDArray[np.floating]", checked)
            planes = tuple(cast("NDArray[np.floating]", rows[name]) for name in self._planes)
            return ImageFeatures(features, order, selected, num_broken, cover, planes)
        tokens = self._num_image_tokens
        return SmallPictureFeatures(order, selected, tokens, encode_full, num_broken)

    def _rows(
        self,
        engine: Engine,
        name: str,
        shapes: Mapping[str, tuple[int, ...]],
        sizes: Mapping[str, int],
    ) -> DeviceRows:
        """Where one output goes."""
        spec, session = self._outputs[name], self._session
        count, width = (sizes.get(dim) if isinstance(dim, str) else dim for dim in spec.shape)
        if count is None:
            count = engine.output_shape(0, shapes, name)[0]
        assert width is not None
        dtype = np.dtype(spec.dtype)
        pool = self._pools.get(name) or BufferPool(session.cuda, count * width * dtype.itemsize)
        return DeviceRows(session.cuda, session.stream, pool, (count, width), dtype, self._writer)


class _Told:
    """What comes to the host about a picture, in one copy: order, cover and which rows are broken.

    Args:
        session: What the engines share.
        tensors: Outputs that are read, by name.
        largest: Largest size of each named dimension.
        most_rows: Most rows that are checked.
    """

    def __init__(
        self,
        session: Session,
        tensors: Mapping[str, TensorSpec],
        largest: Mapping[str, int],
        most_rows: int,
    ) -> None:
        self._session, self._tensors = session, tensors
        self._places, place = {}, align(most_rows * _INT32_BYTES)
        for name, tensor in tensors.items():
            self._places[name] = place
            place += align(num_bytes(tensor, largest))
        self._buffer = DeviceBuffer(session.cuda, place)
        self._on_host = HostBuffer(session.cuda, place)

    @property
    def broken(self) -> int:
        """Address of int32, one number a row."""
        return self._buffer.address

    @property
    def addresses(self) -> dict[str, int]:
        """Of the outputs."""
        return {name: self._buffer.address + place for name, place in self._places.items()}

    def read(
        self, num_rows: int, sizes: Mapping[str, int]
    ) -> tuple[int, NDArray[np.int64], NDArray[np.float32] | None]:
        """How many rows hold a NaN or Inf, the order of selection, and its cover if there is one.

        The stream has been waited for behind it.
        """
        cuda, stream, host = self._session.cuda, self._session.stream, self._on_host
        cuda.download(host.address, self._buffer.address, host.num_bytes, stream)
        cuda.synchronize(stream)
        found = {
            name: host.array(_sizes(tensor, sizes), tensor.dtype, self._places[name]).copy()
            for name, tensor in self._tensors.items()
        }
        num_broken = int(host.array((num_rows,), np.int32).sum())
        order = found.get("selection_order", np.empty(0, np.int64))
        return num_broken, order, found.get("selection_cover")


def upload(
    session: Session, arrays: Mapping[str, NDArray[Any]], buffers: Mapping[str, DeviceBuffer]
) -> None:
    """Copy arrays to the buffers of their names; they must live until the stream is there.

    Raises:
        ValueError: if one is larger than its buffer.
    """
    for name, array in arrays.items():
        buffer = buffers[name]
        if array.nbytes > buffer.num_bytes:
            raise ValueError(f"{name} has {array.nbytes} bytes, its buffer {buffer.num_bytes}")
        session.cuda.upload(buffer.address, array.ctypes.data, array.nbytes, session.stream)


def named_sizes(spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What shapes of inputs make of the named dimensions of a graph."""
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name in shapes:
            pairs = zip(tensor.shape, shapes[tensor.name], strict=True)
            sizes |= {dim: size for dim, size in pairs if isinstance(dim, str)}
    return sizes


def num_bytes(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    """Of a tensor, with these sizes for dimensions that have names."""
    return int(np.prod(_sizes(spec, sizes))) * np.dtype(spec.dtype).itemsize


def _sizes(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
