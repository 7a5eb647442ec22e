"""The selection engine alone, which is there to be timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends.cuda.buffers import DeviceBuffer, HostBuffer
from divprune.runtime.backends.tensorrt.profiles import varying_dims
from divprune.runtime.backends.tensorrt.rows import DeviceRows
from divprune.runtime.backends.tensorrt.vision import num_bytes
from divprune.runtime.directory.keep import exported_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from divprune.runtime.backends import Selection
    from divprune.runtime.backends.tensorrt.engine import Engine, Session
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["make_selection"]


def make_selection(
    session: Session, engine: Callable[[], Engine], manifest: Manifest, name: str
) -> Selection:
    """A function that selects from features on the host or the device.

    What a selector reads of the tower beside them is all zeros here: that takes as long.

    Args:
        session: What the engines share.
        engine: Gives the engine.
        manifest: Manifest of the engine directory.
        name: The graph that the engine was built from.
    """
    spec, cuda, stream = manifest.graphs[name], session.cuda, session.stream
    largest = {dim: limits.maximum for dim, limits in varying_dims(manifest, name).items()}
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    room = {
        each: DeviceBuffer(cuda, num_bytes(tensor, largest))
        for each, tensor in (inputs | outputs).items()
    }
    for each in inputs.keys() - {"image_features"}:
        cuda.zero(room[each].address, room[each].num_bytes, stream)
    order = HostBuffer(cuda, room["selection_order"].num_bytes)

    def select(image_features: NDArray[np.floating]) -> NDArray[np.int64]:
        rows: Any = image_features
        count = len(image_features)
        sizes = {"tokens": count, "kept": exported_count(manifest, count)}
        places = {each: buffer.address for each, buffer in room.items()}
        if isinstance(rows, DeviceRows):
            if "image_features" in inputs:
                places["image_features"] = rows.address
        elif features := inputs.get("image_features"):
            rows = np.ascontiguousarray(rows, features.dtype)
            cuda.upload(places["image_features"], rows.ctypes.data, rows.nbytes, stream)
        shapes = {
            each: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
            for each, tensor in inputs.items()
            if largest
        }
        engine().run(0, shapes, places)
        source = room["selection_order"]
        cuda.download(order.address, source.address, source.num_bytes, stream)
        cuda.synchronize(stream)
        (dim,) = outputs["selection_order"].shape
        chosen = sizes[dim] if isinstance(dim, str) else dim
        return order.array((chosen,), np.int64).copy()

    return select
