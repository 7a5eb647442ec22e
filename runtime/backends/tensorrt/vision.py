"""The vision engines, and the selection engine that is there to be timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from divprune.runtime.backends import ImageFeatures, SmallPictureFeatures
from divprune.runtime.backends.cuda.buffers import BufferPool, DeviceBuffer, HostBuffer
from divprune.runtime.backends.tensorrt.rows import DeviceRows, PromptWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from divprune.runtime.backends import Selection
    from divprune.runtime.backends.cuda.kernels import Kernels
    from divprune.runtime.backends.tensorrt.engine import Engine, Session
    from divprune.runtime.directory.manifest import GraphSpec, Manifest, TensorSpec

__all__ = ["VisionRunner", "make_selection"]

_INT64_BYTES, _INT32_BYTES = 8, 4


class VisionRunner:
    """Encodes pictures; features stay on the device, only the order of selection leaves it.

    Args:
        session: What the engines share.
        kernels: Reductions on the device.
        manifest: Of the engine directory.
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
        spec = manifest.graphs[name]
        cuda, outputs = session.cuda, {tensor.name: tensor for tensor in spec.outputs}
        order = outputs.pop("selection_order", None)  # none where the selection comes later
        self._num_kept = 0 if order is None else _size(order, 0)
        cover = outputs.pop("selection_cover", None)
        self._cover = None if cover is None else DeviceBuffer(cuda, _num_bytes(cover))
        self._outputs = outputs
        self._pools = {name: BufferPool(cuda, _num_bytes(spec)) for name, spec in outputs.items()}
        self._pixels = DeviceBuffer(cuda, _num_bytes(spec.inputs[0]))
        self._order = DeviceBuffer(cuda, self._num_kept * _INT64_BYTES)
        self._order_on_host = HostBuffer(cuda, self._order.num_bytes)
        # Where the tower saw a smaller picture (``downsample``) its rows are the selected ones.
        self._sees_all = "image_features" in outputs
        self._checked = "image_features" if self._sees_all else "selected_features"
        self._num_checked = _size(outputs[self._checked], 0)
        self._broken = DeviceBuffer(cuda, self._num_checked * _INT32_BYTES)
        self._broken_on_host = HostBuffer(cuda, self._broken.num_bytes)

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
        session, stream = self._session, self._session.stream
        pixels = np.ascontiguousarray(inputs["pixel_values"], np.float32)
        session.cuda.upload(self._pixels.address, pixels.ctypes.data, pixels.nbytes, stream)
        rows = {name: self._rows(name) for name in self._outputs}
        addresses = {name: each.address for name, each in rows.items()}
        addresses["pixel_values"] = self._pixels.address
        if self._num_kept:
            addresses["selection_order"] = self._order.address
        if self._cover is not None:
            addresses["selection_cover"] = self._cover.address
        engine.run(0, {}, addresses)
        checked = rows[self._checked]
        num_broken, order = self._read_back(checked)
        selected = cast("NDArray[np.floating]", rows.get("selected_features", checked[order]))
        if self._sees_all or encode_full is None:
            features = cast("NDArray[np.floating]", checked)
            return ImageFeatures(features, order, selected, num_broken)
        tokens = self._num_image_tokens
        return SmallPictureFeatures(order, selected, tokens, encode_full, num_broken)

    def _read_back(self, features: DeviceRows) -> tuple[int, NDArray[np.int64]]:
        """How many rows hold a NaN or Inf, and the order of selection."""
        cuda, stream = self._session.cuda, self._session.stream
        self._kernels.broken_rows(
            features.address,
            *features.shape,
            features.dtype.itemsize,
            self._broken.address,
            int(stream),
        )
        copies = [(self._broken_on_host, self._broken)]
        if self._num_kept:
            copies.append((self._order_on_host, self._order))
        for host, device in copies:
            cuda.download(host.address, device.address, device.num_bytes, stream)
        cuda.synchronize(stream)
        broken = self._broken_on_host.array((self._num_checked,), np.int32)
        order = self._order_on_host.array((self._num_kept,), np.int64)
        return int(broken.sum()), order.copy()

    def _rows(self, name: str) -> DeviceRows:
        spec, session = self._outputs[name], self._session
        shape, dtype = (_size(spec, 0), _size(spec, 1)), np.dtype(spec.dtype)
        return DeviceRows(
            session.cuda, session.stream, self._pools[name], shape, dtype, self._writer
        )


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
