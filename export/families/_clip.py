"""What the families with a CLIP or SigLIP tower and a two-layer projector share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from divprune.export.families._key_layout import KeyLayout
from divprune.export.families.tower_signals import NEED_CLASS_TOKEN
from divprune.export.selection.protocol import SIGNALS
from divprune.runtime.directory.manifest_records import TowerInfo
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = [
    "LAYOUT",
    "check_clip_tower",
    "clip_signals",
    "clip_tower_info",
    "clip_unused",
    "projector_module",
]

_TOWERS = ("clip_vision_model", "siglip_vision_model")


# Four layouts are in the wild: that of the llava-hf repositories, that of transformers 4.52 to
# 4.57, that of transformers 5, and that of LLaVA's original code. The last one may leave the tower
# in the CLIP or SigLIP that it comes from, whose text half is not needed.
LAYOUT = KeyLayout(
    (
        ("model.", ""),
        ("language_model.model.", "language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("layers.", "language_model.layers."),
        ("embed_tokens.", "language_model.embed_tokens."),
        ("norm.", "language_model.norm."),
        ("mm_projector.0.", "multi_modal_projector.linear_1."),
        ("mm_projector.2.", "multi_modal_projector.linear_2."),
        ("vision_tower.vision_tower.", "vision_tower."),
        ("vision_tower.vision_model.", "vision_tower."),
        ("vision_model.", "vision_tower."),
    ),
    foreign=("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias"),
)


def check_clip_tower(config: Any) -> None:
    """Refuse a tower of another kind.

    Raises:
        UnsupportedError: listing the kinds that there are.
    """
    kind = config.vision_config.model_type
    if kind not in _TOWERS:
        raise UnsupportedError(
            "the vision tower is of a kind that cannot be exported yet",
            expected="one of " + ", ".join(_TOWERS),
            found=kind,
        )


def clip_signals(vision_model: str) -> frozenset[str]:
    """What a tower can tell a selector: all of it with a class token (CLIP)."""
    has_class_token = vision_model == "clip_vision_model"
    return frozenset(SIGNALS) - (frozenset() if has_class_token else NEED_CLASS_TOKEN)


def clip_tower_info(config: Any) -> TowerInfo:
    """The tower of a config up to the last layer that is used."""
    vision = config.vision_config
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    chosen = config.vision_feature_layer
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    layers = vision.num_hidden_layers
    return TowerInfo(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        # Counted from the end of the layers' inputs and the last one's output.
        num_layers=max(1, *(index % (layers + 1) for index in indices)),
        num_heads=vision.num_attention_heads,
        num_positions=patches + (vision.model_type == "clip_vision_model"),
        patch_size=vision.patch_size,
        num_channels=vision.num_channels,
        feature_size=vision.hidden_size * len(indices),
    )


def clip_unused(config: Any) -> frozenset[str]:
    """Beginnings of the names of a tower's tensors behind the last layer that is used."""
    used, total = clip_tower_info(config).num_layers, config.vision_config.num_hidden_layers
    layers = {f"vision_tower.encoder.layers.{i}." for i in range(used, total)}
    return frozenset(layers | {"vision_tower.post_layernorm.", "vision_tower.head."})


def projector_module(model: Any) -> torch.nn.Module:
    """The projector of a model without its decoder: rows [K, V] to [K, hidden]."""
    import torch

    del model.vision_tower

    class Projector(torch.nn.Module):
        """Tower features [K, V] to image features [K, hidden]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.model.multi_modal_projector(rows[None])[0]
            return features

    return Projector().eval()
