"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, a llama-type decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._clip import (
    LAYOUT,
    check_clip_tower,
    clip_signals,
    clip_tower_info,
    clip_unused,
    projector_module,
)
from divprune.export.families.protocol import VisionInput
from divprune.export.families.tower_signals import TowerState, compute_signal
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from divprune.runtime.directory.manifest_records import TowerInfo

__all__ = ["FAMILY", "LlavaFamily"]

# The llava-hf repositories carry the last two from before the class had its final name.
_ARCHITECTURES = ("LlavaForConditionalGeneration", "LlavaForCausalLM", "LlamaForCausalLM")


class LlavaFamily:
    """``LlavaForConditionalGeneration`` as transformers saves it."""

    name: ClassVar[str] = "llava"
    position_axes: ClassVar[int] = 1
    positions: ClassVar[tuple[str, ...]] = ("contiguous", "original")
    tower_prefix: ClassVar[str] = "vision_tower."
    joined_rows: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        check_clip_tower(config)

    @staticmethod
    def check(content: Mapping[str, Any]) -> None:
        """Check that config.json is that of a LLaVA as transformers saves it."""
        names = content.get("architectures") or []
        parts = (f"{part}_config" for part in ("text", "vision"))
        has_parts = all(isinstance(content.get(part), dict) for part in parts)
        if has_parts and all(name in _ARCHITECTURES for name in names):
            return
        found = ", ".join(map(str, names)) or "no text_config or vision_config"
        raise UnsupportedError(
            f"the architecture {found} is not supported",
            expected="LlavaForConditionalGeneration as transformers saves it (LLaVA-1.5, "
            "LLaVA-Interleave, BakLLaVA)",
            found=found,
        )

    @staticmethod
    def canonical_name(key: str) -> str:
        """Names of the llava-hf repositories, transformers since 4.52, and the original code."""
        return LAYOUT.canonical_name(key)

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
        """It takes no videos."""
        return None

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def tower(self) -> TowerInfo:
        """The tower up to the last layer that is used."""
        return clip_tower_info(self._config)

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Patches of the crop; None for a SigLIP tower whose first patch is cropped.

        Nothing is known then about where a token lies.
        """
        rows, columns = (pixels // self.tower.patch_size for pixels in self._image_size)
        return (rows, columns) if rows * columns <= self._num_tokens else None

    @property
    def signals(self) -> frozenset[str]:
        """What the tower can tell a selector: all of it with a class token (CLIP)."""
        return clip_signals(self.vision_model)

    def facts(self) -> dict[str, Any]:
        """Sizes of the crop and of its patches, and N."""
        return {
            "image_size": list(self._image_size),
            "patch_size": self.tower.patch_size,
            "num_tokens": self._num_tokens,
        }

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """One crop."""
        return (VisionInput("pixel_values", "float32", (1, 3, *self._image_size)),)

    def vision_outputs(self) -> tuple[str, ...]:
        """Nothing beside the features."""
        return ()

    def unused_tensors(self) -> frozenset[str]:
        """Encoder layers behind the last one that is used, and what follows them."""
        return clip_unused(self._config)

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """Tower, choice of feature layers and projector, exactly as transformers runs them."""
        return _image_features(_model_without_text(self._config), self._config, tuple(signals))

    def resized_vision_module(self, image_size: tuple[int, int]) -> torch.nn.Module:
        """The same for pictures of another size: as many position embeddings as patches."""
        config = deepcopy(self._config)
        config.vision_config.image_size = image_size[0]
        return _image_features(_model_without_text(config), config, ())

    def projector_module(self) -> torch.nn.Module:
        """The projector alone: rows [K, V] to [K, hidden]; parameter names as in the whole."""
        return projector_module(_model_without_text(self._config))

    @property
    def _image_size(self) -> tuple[int, int]:
        size = self._config.vision_config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def _num_tokens(self) -> int:
        cropped = self._config.vision_feature_select_strategy == "default"
        return self.tower.num_positions - int(cropped)


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


FAMILY = LlavaFamily
