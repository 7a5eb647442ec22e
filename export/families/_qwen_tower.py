"""Qwen's vision towers as they are traced: transformers' own layers, attention of our own.

transformers splits patches into segments by numbers that only a running tower knows. Here the
frames of a video, a picture being one of them, are a batch, and windows inside a frame are a
batch as well, so that nothing depends on what a tensor holds. Parameters keep their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Rotary", "Windows", "attend", "embed_patches"]


@dataclass(frozen=True)
class Rotary:
    """Cosine and sine [frames or 1, patches, 1, head dim / 2] in float32.

    Whatever the tower's type, angles are: TF32 or float16 would turn far patches wrongly.
    """

    cosine: torch.Tensor
    sine: torch.Tensor

    @classmethod
    def of(cls, angles: torch.Tensor) -> Rotary:
        """From float32 [cells, patches of a cell, head dim / 2]."""
        flat = angles.reshape(1, -1, 1, angles.shape[-1])
        return cls(flat.cos(), flat.sin())

    def turn(self, rows: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Rotate [batch, patches, heads * head dim], the halves of a head being (first, second)."""
        import torch

        batch, patches, width = rows.shape
        heads = rows.reshape(batch, patches, num_heads, width // num_heads).float()
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat(
            [
                first * self.cosine - second * self.sine,
                second * self.cosine + first * self.sine,
            ],
            dim=-1,
        )
        return turned.reshape(batch, patches, width).to(rows.dtype)


@dataclass(frozen=True)
class Windows:
    """Which patches of a frame attend to each other.

    Attributes:
        rows: int64 [windows, window], patches of a frame; any where a window is not full.
        mask: float32 [windows, window], added to the scores of a window's keys.
        slots: int64 [patches], where in all windows each patch lies.
    """

    rows: torch.Tensor
    mask: torch.Tensor
    slots: torch.Tensor

    def split(self, values: torch.Tensor) -> torch.Tensor:
        """[frames, patches, C] to [frames * windows, window, C]."""
        window = self.rows.shape[1]
        rows = values.index_select(1, self.rows.flatten())
        return rows.reshape(-1, window, values.shape[-1])

    def join(self, values: torch.Tensor, frames: int) -> torch.Tensor:
        """The way back."""
        windows, window = self.rows.shape
        flat = values.reshape(frames, windows * window, values.shape[-1])
        return flat.index_select(1, self.slots)

    def turned(self, rotary: Rotary, frames: int) -> Rotary:
        """Angles of the patches in windows, [frames * windows, window, 1, head dim / 2]."""
        tables = (table[0, self.rows][None] for table in (rotary.cosine, rotary.sine))
        return Rotary(*(t.expand(frames, *t.shape[1:]).flatten(0, 1) for t in tables))

    def bias(self, frames: int, dtype: torch.dtype) -> torch.Tensor:
        """[frames * windows, 1, window, window]: the fused operator broadcasts no rows."""
        windows, window = self.rows.shape
        wide = self.mask.to(dtype)[None, :, None].expand(frames, windows, window, window)
        return wide.reshape(frames * windows, 1, window, window)


def embed_patches(convolution: Any, pixel_values: torch.Tensor, merge: int) -> torch.Tensor:
    """A convolution that steps by its own size, as one product.

    Args:
        convolution: Conv3d over a patch and its two moments.
        pixel_values: float32 [frames, cells, merge * merge * row].
        merge: Patches of a side of a cell.

    Returns:
        [frames, patches, width] in the tower's type.
    """
    import torch

    frames, cells, _ = pixel_values.shape
    weight = convolution.weight.reshape(convolution.weight.shape[0], -1)
    rows = pixel_values.reshape(frames, cells * merge**2, weight.shape[1])
    return torch.nn.functional.linear(rows.to(weight.dtype), weight, convolution.bias)


def attend(
    attention: Any,
    rows: torch.Tensor,
    rotary: Rotary,
    windows: Windows | None = None,
) -> torch.Tensor:
    """Every patch of a frame to every other, or to those of its window: [frames, patches, C].

    Args:
        attention: transformers' attention layer, with ``qkv`` and ``proj``.
        rows: Normalised [frames, patches, C].
        rotary: Of the patches as they are, or, with ``windows``, in windows.
        windows: None for all patches of a frame.
    """
    import torch

    frames, num_heads = rows.shape[0], attention.num_heads
    bias = None
    if windows is not None:
        # Before the projection: its result is three times as wide to gather.
        rows = windows.split(rows)
        bias = windows.bias(frames, rows.dtype)
    query, key, value = attention.qkv(rows).chunk(3, dim=-1)
    query, key = rotary.turn(query, num_heads), rotary.turn(key, num_heads)
    heads = [_by_head(each, num_heads) for each in (query, key, value)]
    context = torch.nn.functional.scaled_dot_product_attention(
        heads[0], heads[1], heads[2], attn_mask=bias
    )
    context = context.transpose(1, 2).flatten(2)
    if windows is not None:
        context = windows.join(context, frames)
    output: torch.Tensor = attention.proj(context)
    return output


def _by_head(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[batch, rows, heads * D] to [batch, heads, rows, D]."""
    batch, count, width = rows.shape
    return rows.reshape(batch, count, num_heads, width // num_heads).transpose(1, 2)
