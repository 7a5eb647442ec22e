"""The vision engine, and the selection engine that is there to be timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from divprune.runtime.backends import ImageFeatures
from divprune.runtime.backends.tensorrt_rows import DeviceRows, PromptWriter
from divprune.runtime.device.buffers import BufferPool, DeviceBuffer, HostBuffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from divprune.runtime.backends import Selection
    from divprune.runtime.backends.tensorrt_engine import Engine, Session
    from divprune.runtime.device.kernels import Kernels
    from divprune.runtime.manifest import GraphSpec, TensorSpec

__all__ = ["VisionRunner", "make_selection"]

_INT64_BYTES, _INT32_BYTES = 8, 4


class VisionRunner:
    """Encodes pictures; features stay on the device, only the order of selection leaves it.

    Args:
        session: What the engines share.
        kernels: Reductions on the device.
        spec: The vision graph.
        writer: Embeds the prompts.
    """

    def __init__(
        self, session: Session, kernels: Kernels, spec: GraphSpec, writer: PromptWriter
    ) -> None:
        self._session, self._kernels, self._writer = session, kernels, writer
        cuda, outputs = session.cuda, {tensor.name: tensor for tensor in spec.outputs}
        self._features, self._selected = outputs["image_features"], outputs["selected_features"]
        self._num_tokens = _size(self._features, 0)
        self._num_kept = _size(outputs["selection_order"], 0)
        self._features_pool = BufferPool(cuda, _num_bytes(self._features))
        self._selected_pool = BufferPool(cuda, _num_bytes(self._selected))
        self._pixels = DeviceBuffer(cuda, _num_bytes(spec.inputs[0]))
        self._order = DeviceBuffer(cuda, self._num_kept * _INT64_BYTES)
        self._broken = DeviceBuffer(cuda, self._num_tokens * _INT32_BYTES)
        self._order_on_host = HostBuffer(cuda, self._order.num_bytes)
        self._broken_on_host = HostBuffer(cuda, self._broken.num_bytes)

    def encode(self, engine: Engine, pixel_values: NDArray[np.float32]) -> ImageFeatures:
        """Run the vision engine on float32 [crops, 3, H, W]."""
        session, stream = self._session, self._session.stream
        pixels = np.ascontiguousarray(pixel_values, np.float32)
        features = self._rows(self._features, self._features_pool)
        selected = self._rows(self._selected, self._selected_pool)
        session.cuda.upload(self._pixels.address, pixels.ctypes.data, pixels.nbytes, stream)
        addresses = {
            "pixel_values": self._pixels.address,
            "image_features": features.address,
            "selection_order": self._order.address,
            "selected_features": selected.address,
        }
        engine.run(0, {}, addresses)
        self._kernels.broken_rows(
            features.address,
            *features.shape,
            features.dtype.itemsize,
            self._broken.address,
            int(stream),
        )
        for host, device in (
            (self._order_on_host, self._order),
            (self._broken_on_host, self._broken),
        ):
            session.cuda.download(host.address, device.address, device.num_bytes, stream)
        session.cuda.synchronize(stream)
        return ImageFeatures(
            cast("NDArray[np.floating]", features),
            self._order_on_host.array((self._num_kept,), np.int64).copy(),
            cast("NDArray[np.floating]", selected),
            int(self._broken_on_host.array((self._num_tokens,), np.int32).sum()),
        )

    def _rows(self, spec: TensorSpec, pool: BufferPool) -> DeviceRows:
        shape = _size(spec, 0), _size(spec, 1)
        session, dtype = self._session, np.dtype(spec.dtype)
        return DeviceRows(session.cuda, session.stream, pool, shape, dtype, self._writer)


def make_selection(session: Session, engine: Callable[[], Engine], spec: GraphSpec) -> Selection:
    """A function that selects from features on the host or the device.

    What a selector reads of the tower beside them is all zeros here: that takes as long.
    """
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    features = inputs.pop("image_features", None)
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    cuda, stream = session.cuda, session.stream
    room = None if features is None else DeviceBuffer(cuda, _num_bytes(features))
    others = {name: DeviceBuffer(cuda, _num_bytes(tensor)) for name, tensor in inputs.items()}
    for name, tensor in inputs.items():
        zeros = np.zeros([int(size) for size in tensor.shape], tensor.dtype)
        cuda.upload(others[name].address, zeros.ctypes.data, zeros.nbytes, stream)
        cuda.synchronize(stream)
    results = {name: DeviceBuffer(cuda, _num_bytes(tensor)) for name, tensor in outputs.items()}
    order = HostBuffer(cuda, results["selection_order"].num_bytes)

    def select(image_features: NDArray[np.floating]) -> NDArray[np.int64]:
        rows: Any = image_features
        places = {name: buffer.address for name, buffer in (others | results).items()}
        if features is not None and room is not None:
            places["image_features"] = room.address
            if isinstance(rows, DeviceRows):
                places["image_features"] = rows.address
            else:
                rows = np.ascontiguousarray(rows, features.dtype)
                cuda.upload(room.address, rows.ctypes.data, rows.nbytes, stream)
        engine().run(0, {}, places)
        source = results["selection_order"]
        cuda.download(order.address, source.address, source.num_bytes, stream)
        cuda.synchronize(stream)
        return order.array((_size(outputs["selection_order"], 0),), np.int64).copy()

    return select


def _size(spec: TensorSpec, axis: int) -> int:
    return int(spec.shape[axis])


def _num_bytes(spec: TensorSpec) -> int:
    shape = [int(size) for size in spec.shape]
    return int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
