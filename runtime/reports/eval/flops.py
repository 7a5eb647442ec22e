"""FLOPs of a prefill as the papers count them, and the multiply-adds that are executed.

With n rows, T layers, width d, FFN width m, H heads and G key/value heads of width h:

| | a layer | all |
|---|---|---|
| papers | ``4 n d^2 + 2 n^2 d + 2 n d m`` | T layers |
| multiply-adds | ``n (2 d H h + 2 d G h + 3 d m) + n (n + 1) H h`` | T layers; see below |

The papers' count is FastV's formula, used by DivPrune for its tables (arXiv 2503.02175, Eq. 5,
with the plus sign its tables were made with): a multiply-add counts once, the FFN has two
matrices, keys and values are as wide as queries, every row attends to every row, and there is
no output layer. It serves to compare with those tables and nothing else. The second line counts
llama's three FFN matrices, grouped keys and values, the causal half of the attention
(``n (n + 1) / 2`` pairs, for the scores and for the values), and the output layer of V tokens,
``V d``, for the last row, which is the only one behind the attention of the last layer: the
``(n - 1) (d H h + 3 d m)`` of the others are not made. Both leave out the vision tower and the
selection, which every keep pays.

A method that prunes inside the language model has n rows in its first ``layer`` layers and
fewer in the others; for one that prunes before it, ``layer`` is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from divprune.runtime.directory.manifest import Manifest

    Rows = TypeVar("Rows", float, NDArray[np.float64])

__all__ = ["DecoderShape", "decoder_shape", "mean_layer_tokens", "paper_flops", "prefill_macs"]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes of a llama-type language model that its arithmetic depends on."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


def decoder_shape(manifest: Manifest) -> DecoderShape:
    """The language model of an engine directory."""
    model, cache = manifest.model, manifest.kv_cache
    return DecoderShape(
        num_layers=cache.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        vocab_size=model.vocab_size,
    )


def mean_layer_tokens(num_layers: int, tokens: Rows, kept: Rows, *, layer: int = 0) -> Rows:
    """Visual tokens that a layer sees, mean over the layers; ``layer`` of them see ``tokens``."""
    return (layer * tokens + (num_layers - layer) * kept) / num_layers


def paper_flops(
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    rows: Rows,
    kept_rows: Rows | None = None,
    *,
    layer: int = 0,
) -> Rows:
    """FLOPs of a prefill as the papers count them.

    Args:
        num_layers: T.
        hidden_size: d.
        intermediate_size: m.
        rows: n without pruning: visual tokens and, in DivPrune's tables, those of the question
            (not the system prompt's). A number, or an array of them.
        kept_rows: n after pruning; None for no pruning.
        layer: Layers that still see ``rows``.

    Returns:
        FLOPs (1e12 of them are the tables' TFLOP).
    """

    def one_layer(n: Rows) -> Rows:
        ffn = 2 * n * hidden_size * intermediate_size
        return 4 * n * hidden_size**2 + 2 * n**2 * hidden_size + ffn

    kept_rows = rows if kept_rows is None else kept_rows
    return layer * one_layer(rows) + (num_layers - layer) * one_layer(kept_rows)


def prefill_macs(
    shape: DecoderShape, rows: Rows, kept_rows: Rows | None = None, *, layer: int = 0
) -> Rows:
    """Multiply-adds that the language model needs for a prefill.

    Args:
        shape: The language model.
        rows: Rows without pruning, all of the prompt. A number, or an array of them.
        kept_rows: Rows after pruning; None for no pruning.
        layer: Layers that still see ``rows``.
    """
    queries = shape.num_heads * shape.head_dim
    keys_values = 2 * shape.num_kv_heads * shape.head_dim
    weights = shape.hidden_size * (2 * queries + keys_values + 3 * shape.intermediate_size)

    def one_layer(n: Rows) -> Rows:
        return n * weights + n * (n + 1) * queries

    kept_rows = rows if kept_rows is None else kept_rows
    layers = layer * one_layer(rows) + (shape.num_layers - layer) * one_layer(kept_rows)
    behind_attention = shape.hidden_size * (queries + 3 * shape.intermediate_size)
    saved = (kept_rows - 1) * behind_attention
    return layers - saved + shape.vocab_size * shape.hidden_size
