"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, a llama-type decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from divprune.export.families.tower_signals import (
    NEED_CLASS_TOKEN,
    TowerState,
    compute_signal,
)
from divprune.export.selection.protocol import SIGNALS
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["SUPPORTED_VISION_MODELS", "LlavaFamily", "check_architecture"]

SUPPORTED_VISION_MODELS = ("clip_vision_model", "siglip_vision_model")


# The llava-hf repositories carry the last two from before the class had its final name.
_ARCHITECTURES = ("LlavaForConditionalGeneration", "LlavaForCausalLM", "LlamaForCausalLM")


def check_architecture(content: Mapping[str, Any]) -> None:
    """Check that config.json is that of a LLaVA as transformers saves it.

    Raises:
        UnsupportedError: naming the architecture.
    """
    architectures = content.get("architectures") or []
    is_llava = content.get("model_type") == "llava"
    has_parts = all(isinstance(content.get(f"{part}_config"), dict) for part in ("text", "vision"))
    if is_llava and has_parts and all(name in _ARCHITECTURES for name in architectures):
        return
    found = ", ".join(map(str, architectures)) or f"model type {content.get('model_type')}"
    original = "LlavaLlama" in found or "LlavaMistral" in found
    raise UnsupportedError(
        f"the architecture {found} is not supported",
        expected="LlavaForConditionalGeneration as transformers saves it (LLaVA-1.5, "
        "LLaVA-Interleave, BakLLaVA)",
        found=found,
        fix="use the llava-hf conversion, such as --model llava-1.5-7b" if original else None,
    )


class LlavaFamily:
    """``LlavaForConditionalGeneration`` as transformers saves it."""

    name = "llava"

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        if self.vision_model not in SUPPORTED_VISION_MODELS:
            raise UnsupportedError(
                "the vision tower is of a kind that cannot be exported yet",
                expected="one of " + ", ".join(SUPPORTED_VISION_MODELS),
                found=self.vision_model,
            )

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
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels that the tower takes."""
        size = self._config.vision_config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def image_token_id(self) -> int:
        """``image_token_index`` of the config."""
        return int(self._config.image_token_id)

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def patch_size(self) -> int:
        """Side of the square patches that the tower cuts its input into."""
        return int(self._config.vision_config.patch_size)

    @property
    def signals(self) -> frozenset[str]:
        """What the tower can tell a selector: all of it with a class token (CLIP)."""
        has_class_token = self.vision_model == "clip_vision_model"
        return frozenset(SIGNALS) - (frozenset() if has_class_token else NEED_CLASS_TOKEN)

    def image_feature_module(
        self, signals: Sequence[str] = (), image_size: tuple[int, int] | None = None
    ) -> torch.nn.Module:
        """Tower, choice of feature layers and projector, exactly as transformers runs them.

        With ``signals`` it returns those behind the features. With ``image_size`` the tower is
        one for pictures of that size: its position embeddings are as many as it has patches.
        """
        config = deepcopy(self._config)
        if image_size is not None:
            config.vision_config.image_size = image_size[0]
        return _image_features(_model_without_text(config), config, tuple(signals))

    def projector_module(self) -> torch.nn.Module:
        """The projector alone: rows [K, V] to [K, hidden]; parameter names as in the whole."""
        model = _model_without_text(self._config)
        del model.vision_tower
        return _projector(model)


def _model_without_text(config: Any) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config).model
    del model.language_model
    return model


def _image_features(model: Any, config: Any, signals: tuple[str, ...]) -> torch.nn.Module:
    import torch

    layers, strategy = config.vision_feature_layer, config.vision_feature_select_strategy

    class ImageFeatures(torch.nn.Module):
        """pixel_values float32 [1, 3, H, W] to image features [N, hidden], and signals."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, pixel_values: torch.Tensor, **tower_options: Any
        ) -> torch.Tensor | tuple[torch.Tensor, ...]:
            pixels = pixel_values.to(self.model.dtype)
            if signals:
                return self._with_signals(pixels)
            outputs = self.model.get_image_features(
                pixel_values=pixels,
                vision_feature_layer=layers,
                vision_feature_select_strategy=strategy,
                **tower_options,
            )
            features: torch.Tensor = outputs.pooler_output[0]
            return features

        def _with_signals(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """The same step by step: ``get_image_features`` lets go of the other layers."""
            tower = self.model.vision_tower
            hidden = tower(pixels, output_hidden_states=True).hidden_states
            state = TowerState(tower, hidden, layers, dropped=int(strategy == "default"))
            features = self.model.multi_modal_projector(state.patches[None])[0]
            return features, *(compute_signal(name, state) for name in signals)

    return ImageFeatures().eval()


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
