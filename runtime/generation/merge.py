"""Put the kept visual tokens between the embedded text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.backends.tensorrt.rows import DeviceRows
    from divprune.runtime.generation.embeddings import EmbeddingTable

__all__ = ["splice", "splice_planes"]


def splice(
    ids: NDArray[np.int64],
    is_visual: NDArray[np.bool_],
    features: Sequence[NDArray[np.floating]],
    table: EmbeddingTable,
) -> NDArray[np.floating]:
    """Embed a prompt: text rows from the table, visual rows from the kept features.

    Args:
        ids: int64 [S].
        is_visual: bool [S].
        features: Kept rows [K, hidden] of each picture and video, in the order of the prompt.
        table: Token embeddings; its dtype is the dtype of the result.

    Returns:
        [1, S, hidden] in the dtype of the table; on the device where the features are there.
    """
    if features and not isinstance(features[0], np.ndarray):
        rows: DeviceRows = features[0]
        return cast("NDArray[np.floating]", rows.splice(ids, is_visual, features, table))
    embeds = np.empty((len(ids), table.hidden_size), table.dtype)
    embeds[~is_visual] = table.rows(ids[~is_visual])
    if features:
        embeds[is_visual] = np.concatenate(features)
    return embeds[np.newaxis]


def splice_planes(
    is_visual: NDArray[np.bool_], planes: Sequence[Sequence[NDArray[Any]]]
) -> tuple[NDArray[np.floating], ...]:
    """Rows that are added behind decoder layers: zero for text (Qwen3-VL's DeepStack).

    Args:
        is_visual: bool [S].
        planes: For each picture and video its kept rows [K, hidden] of every plane.

    Returns:
        One array [1, S, hidden] a plane; on the device where the rows are there.
    """
    if planes and planes[0] and not isinstance(planes[0][0], np.ndarray):
        on_device: DeviceRows = planes[0][0]
        return cast("tuple[NDArray[np.floating], ...]", on_device.splice_planes(is_visual, planes))
    spliced = []
    for rows in zip(*planes, strict=True):
        together = np.concatenate(rows)
        plane = np.zeros((len(is_visual), together.shape[1]), together.dtype)
        plane[is_visual] = together
        spliced.append(plane[np.newaxis])
    return tuple(spliced)
