"""What the families of LLaVA have in common: a CLIP-like tower, a projector of two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families.tower_signals import NEED_CLASS_TOKEN
from divprune.export.selection.protocol import SIGNALS
from divprune.runtime.directory.manifest_records import TowerInfo
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["SUPPORTED_VISION_MODELS", "LlavaBase", "check_architecture"]

SUPPORTED_VISION_MODELS = ("clip_vision_model", "siglip_vision_model")

_RENAMES = (
    ("model.", ""),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "vision_tower."),
)


def check_architecture(
    content: Mapping[str, Any], names: Sequence[str], conversions: str, preset: str
) -> None:
    """Check that config.json is that of a model of the family as transformers saves it.

    Args:
        content: Of config.json.
        names: Architectures that are meant by it; it may name none.
        conversions: What users call the models.
        preset: One of them, for those who have the authors' own format.

    Raises:
        UnsupportedError: naming the architecture.
    """
    architectures = content.get("architectures") or []
    has_parts = all(isinstance(content.get(f"{part}_config"), dict) for part in ("text", "vision"))
    if has_parts and all(name in names for name in architectures):
        return
    found = ", ".join(map(str, architectures)) or f"model type {content.get('model_type')}"
    original = "LlavaLlama" in found or "LlavaMistral" in found or "LlavaQwen" in found
    raise UnsupportedError(
        f"the architecture {found} is not supported",
        expected=f"{names[0]} as transformers saves it ({conversions})",
        found=found,
        fix=f"use the llava-hf conversion, such as --model {preset}" if original else None,
    )


class LlavaBase:
    """A config of the LLaVA kind.

    Attributes:
        model_class: Name of the class in transformers.
    """

    name: ClassVar[str]
    position_axes: ClassVar[int] = 1
    positions: ClassVar[tuple[str, ...]] = ("contiguous", "original")
    model_class: ClassVar[str]

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        if self.vision_model not in SUPPORTED_VISION_MODELS:
            raise UnsupportedError(
                "the vision tower is of a kind that cannot be exported yet",
                expected="one of " + ", ".join(SUPPORTED_VISION_MODELS),
                found=self.vision_model,
            )

    @staticmethod
    def canonical_name(key: str) -> str:
        """The one name a tensor goes by, in the layouts of the hub and of transformers 4 and 5."""
        for old, new in _RENAMES:
            if key.startswith(old):
                key = new + key[len(old) :]
        return key

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the decoder."""
        config: PreTrainedConfig = self._config.text_config
        return config

    @property
    def vision_model(self) -> str:
        """``clip_vision_model`` or ``siglip_vision_model``."""
        return str(self._config.vision_config.model_type)

    @property
    def image_token_id(self) -> int:
        """``image_token_index`` of the config."""
        return int(self._config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """``video_token_index`` of the config, where it has one."""
        index = getattr(self._config, "video_token_id", None)
        return None if index is None else int(index)

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """``vision_feature_layer``, counted from the embeddings' output 0."""
        chosen = self._config.vision_feature_layer
        count = int(self._config.vision_config.num_hidden_layers) + 1
        return tuple(index % count for index in ([chosen] if isinstance(chosen, int) else chosen))

    @property
    def dropped_rows(self) -> int:
        """Rows in front of a crop's that are no visual tokens: 1 where the first is cropped."""
        return int(self._config.vision_feature_select_strategy == "default")

    @property
    def tower(self) -> TowerInfo:
        """The vision tower up to the last layer whose features are used."""
        config = self._config.vision_config
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        patches = (height // config.patch_size) * (width // config.patch_size)
        return TowerInfo(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=max(1, *self.feature_layers),
            num_heads=config.num_attention_heads,
            num_positions=patches + (self.vision_model == "clip_vision_model"),
            patch_size=config.patch_size,
            num_channels=config.num_channels,
            feature_size=config.hidden_size * len(self.feature_layers),
        )

    @property
    def signals(self) -> frozenset[str]:
        """What the tower can tell a selector: all of it with a class token (CLIP)."""
        has_class_token = self.vision_model == "clip_vision_model"
        return frozenset(SIGNALS) - (frozenset() if has_class_token else NEED_CLASS_TOKEN)

    def vision_outputs(self) -> tuple[str, ...]:
        """None beside the features."""
        return ()

    def unused_tensors(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def projector_module(self) -> torch.nn.Module:
        """The projector alone: rows [K, V] to [K, hidden]; parameter names as in the whole."""
        model = self.model_without_text()
        for name in {"vision_tower", "image_newline"} & set(dir(model)):
            delattr(model, name)
        return _projector(model)

    def model_without_text(self) -> Any:
        """transformers' own model on the meta device, without its decoder."""
        import torch
        import transformers

        with torch.device("meta"):
            model = getattr(transformers, self.model_class)(self._config).model
        del model.language_model
        return model


def _projector(model: Any) -> torch.nn.Module:
    import torch

    class Projector(torch.nn.Module):
        """Tower features [K, V] to image features [K, hidden]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.model.multi_modal_projector(rows[None])[0]
            return features

    return Projector().eval()
