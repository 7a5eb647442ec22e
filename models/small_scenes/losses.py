"""The two losses: what each patch shows, and what the answers say."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.small_scenes.batches import Batch
from models.small_scenes.forward import project, question_mask, text_states
from models.small_scenes.patch_labels import IGNORE
from models.small_scenes.scenes import COLOURS, SHAPES, SIZES

__all__ = [
    "PatchHead",
    "answer_logits",
    "answer_loss",
    "drop_background",
    "patch_loss",
    "to_pixel_values",
]

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
_SHAPE_WEIGHTS = torch.tensor([0.15] + [1.0] * len(SHAPES))  # most patches are background
_PARTS = (len(SHAPES) + 1, len(COLOURS), len(SIZES), 1, 2)


class PatchHead(nn.Module):
    """Reads shape, colour, size and the way to the centre off each patch; not shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(_PARTS))

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        return self.linear(self.norm(patches)).float().split(_PARTS, dim=-1)


def to_pixel_values(batch: Batch) -> Tensor:
    """What the saved image processor makes of the pictures, float32 [B, 3, H, W]."""
    scaled = torch.from_numpy(batch.pixels).float() / 255
    return ((scaled - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()


def patch_loss(head: PatchHead, patches: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss of the patch labels, and the accuracy of each kind of label."""
    shape, colour, size, centre, offset = head(patches)
    total = torch.zeros(())
    accuracy = {}
    for name, logits in (("shape", shape), ("colour", colour), ("size", size)):
        target = torch.from_numpy(getattr(batch, name))
        total = total + F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            weight=_SHAPE_WEIGHTS if name == "shape" else None,
            ignore_index=IGNORE,
        )
        asked = target > 0 if name == "shape" else target != IGNORE
        accuracy[f"patch_{name}"] = (logits.argmax(-1) == target)[asked].float().mean().item()
    is_centre = torch.from_numpy(batch.centre)
    weight = torch.tensor(10.0)
    total = total + F.binary_cross_entropy_with_logits(
        centre.squeeze(-1), is_centre, pos_weight=weight
    )
    found = (centre.squeeze(-1) > 0) == is_centre.bool()
    accuracy["patch_centre"] = found[is_centre.bool()].float().mean().item()
    on_figure = torch.from_numpy(batch.colour) != IGNORE
    distance = F.smooth_l1_loss(offset[on_figure], torch.from_numpy(batch.offset)[on_figure])
    accuracy["patch_offset"] = distance.item()
    return total + distance, accuracy


def answer_logits(model: Any, patches: Tensor, batch: Batch, opening: Tensor) -> Tensor:
    """Logits of the rows that have a target, in their order.

    ``opening`` are the ids in front of the picture.
    """
    llava = model.model
    embed = llava.language_model.embed_tokens
    visual = project(llava.multi_modal_projector, patches).float()
    before = embed(opening).expand(len(visual), -1, -1)
    prefix = torch.cat([before, visual], dim=1)
    length = prefix.shape[1]
    mask = question_mask(torch.from_numpy(batch.owner), length)
    autocast = torch.is_autocast_enabled("cpu")
    kind = torch.bfloat16 if autocast else torch.float32
    bias = torch.zeros(mask.shape, dtype=kind).masked_fill(~mask, -1e4)
    positions = torch.from_numpy(batch.positions) + length
    text = embed(torch.from_numpy(batch.ids))
    states = text_states(llava.language_model, prefix, text, positions, bias)
    logits: Tensor = model.lm_head(states[torch.from_numpy(batch.targets) != IGNORE]).float()
    return logits


def drop_background(patches: Tensor, batch: Batch, count: int, seed: int) -> Tensor:
    """``count`` patches of each picture in raster order, [B, count, D].

    Those that show a figure come first; which of the others stay is left to chance.
    """
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(patches.shape[:2], generator=generator)
    wanted = chance + torch.from_numpy(batch.colour != IGNORE)
    kept = wanted.topk(count, dim=1).indices.sort(dim=1).values
    return patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))


def answer_loss(
    model: Any, patches: Tensor, batch: Batch, opening: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers' tokens, and how many of them would be right."""
    logits = answer_logits(model, patches, batch, opening)
    target = torch.from_numpy(batch.targets)
    target = target[target != IGNORE]
    right = (logits.argmax(-1) == target).float().mean().item()
    return F.cross_entropy(logits, target), {"token_accuracy": right}
