"""Put the kept image tokens where the placeholders stand, and number the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends.tensorrt.rows import DeviceRows
    from divprune.runtime.generation.embeddings import EmbeddingTable
    from divprune.runtime.generation.kept_tokens import KeptTokens

__all__ = ["position_ids", "splice"]


def splice(
    ids: NDArray[np.int64],
    images: Sequence[KeptTokens],
    table: EmbeddingTable,
    image_token_id: int,
) -> NDArray[np.floating]:
    """Embed a prompt: text rows from the table, image rows from the kept features.

    Args:
        ids: int64 [S], with one ``image_token_id`` for each kept token.
        images: The pictures in the order in which they stand in the prompt.
        table: Token embeddings; its dtype is the dtype of the result.
        image_token_id: The placeholder.

    Returns:
        [1, S, hidden] in the dtype of the table; on the device where the features are there.
    """
    if images and not isinstance(images[0].features, np.ndarray):
        rows = cast("DeviceRows", images[0].features)
        return cast("NDArray[np.floating]", rows.splice(ids, images, table, image_token_id))
    is_image = ids == image_token_id
    embeds = np.empty((len(ids), table.hidden_size), table.dtype)
    embeds[~is_image] = table.rows(ids[~is_image])
    if images:
        embeds[is_image] = np.concatenate([image.features for image in images])
    return embeds[np.newaxis]


def position_ids(
    ids: NDArray[np.int64], images: Sequence[KeptTokens], image_token_id: int, mode: str
) -> tuple[NDArray[np.int64], int]:
    """Number the rows of a prompt for the rotary embedding.

    ``contiguous`` counts the rows that are left. ``original`` gives every row the position
    that it had before pruning, so that gaps stand where tokens were removed.

    Args:
        ids: int64 [S], as for ``splice``.
        images: The pictures, in order.
        image_token_id: The placeholder.
        mode: ``contiguous`` or ``original``, as the manifest says.

    Returns:
        int64 [1, S] and the position of the first generated token.
    """
    if mode == "contiguous":
        return np.arange(len(ids), dtype=np.int64)[np.newaxis], len(ids)
    if mode != "original":
        raise ValueError(f"unknown positions {mode!r}")
    pieces: list[NDArray[np.int64]] = []
    row = position = 0
    starts = np.cumsum([0] + [len(image.indices) for image in images])[:-1]
    firsts = np.flatnonzero(ids == image_token_id)[starts].tolist()
    for image, first in zip(images, firsts, strict=True):
        pieces.append(np.arange(position, position + first - row))
        position += first - row
        pieces.append(position + image.indices)
        position += image.num_image_tokens
        row = first + len(image.indices)
    end = position + len(ids) - row
    pieces.append(np.arange(position, end))
    return np.concatenate(pieces).astype(np.int64)[np.newaxis], end
