"""InternVL3 and 3.5: InternViT, pixel shuffle, a two-layer projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._key_layout import KeyLayout
from divprune.export.families.protocol import VisionInput
from divprune.runtime.directory.manifest_records import TowerInfo
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["FAMILY", "InternVLFamily"]

_ARCHITECTURE = "InternVLForConditionalGeneration"
# Of the -hf repositories, of transformers 5, and of InternVL's original code.
_LAYOUT = KeyLayout(
    (
        ("model.", ""),
        ("language_model.model.", "language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("mlp1.0.", "multi_modal_projector.layer_norm."),
        ("mlp1.1.", "multi_modal_projector.linear_1."),
        ("mlp1.3.", "multi_modal_projector.linear_2."),
    )
)
_ORIGINAL_TOWER = "vision_model."
_TOWER_PARTS = (
    (_ORIGINAL_TOWER, "vision_tower."),
    (".class_embedding", ".cls_token"),
    (".position_embedding", ".position_embeddings"),
    (".patch_embedding.", ".patch_embeddings.projection."),
    (".layers.", ".layer."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.", ".attention."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)


class InternVLFamily:
    """``InternVLForConditionalGeneration``: every tile has the same number of tokens."""

    name: ClassVar[str] = "internvl"
    position_axes: ClassVar[int] = 1
    positions: ClassVar[tuple[str, ...]] = ("contiguous", "original")
    tower_prefix: ClassVar[str] = "vision_tower."
    joined_rows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        ".attn.qkv": (".attn.q_proj", ".attn.k_proj", ".attn.v_proj")
    }

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        _refuse_other_than(config, "vision_feature_layer", -1)
        _refuse_other_than(config, "vision_feature_select_strategy", "default")
        vision = self._config.vision_config
        _refuse_other_than(vision, "model_type", "internvl_vision", "vision_config.")
        for field in ("image_size", "patch_size"):
            height, width = getattr(vision, field)
            if height != width:
                raise _unsupported(f"vision_config.{field}", "a square", f"{height} x {width}")
        ratio = self._config.downsample_ratio
        if not 0 < ratio <= 1 or 1 / ratio != self._shuffle or self._patch_side % self._shuffle:
            expected = f"1 / n that divides the {self._patch_side} patches along an edge"
            raise _unsupported("downsample_ratio", expected, ratio)
        _refuse_other_than(config, "image_seq_length", self._tile_side**2)

    @staticmethod
    def check(content: Mapping[str, Any]) -> None:
        """See ``protocol.Family``."""
        architectures = content.get("architectures") or [_ARCHITECTURE]
        if content.get("model_type") == "internvl" and architectures == [_ARCHITECTURE]:
            return
        found = ", ".join(map(str, architectures))
        raise UnsupportedError(
            f"the architecture {found} is not supported",
            expected=f"{_ARCHITECTURE} as transformers saves it (InternVL3, InternVL3.5)",
            found=f"{found}, model type {content.get('model_type')}",
        )

    @staticmethod
    def canonical_name(key: str) -> str:
        """See ``protocol.Family``."""
        name = _LAYOUT.canonical_name(key)
        if name.startswith(_ORIGINAL_TOWER):
            for old, new in _TOWER_PARTS:
                name = name.replace(old, new)
        return name

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the decoder."""
        config: PreTrainedConfig = self._config.text_config
        return config

    @property
    def vision_model(self) -> str:
        """``internvl_vision``."""
        return str(self._config.vision_config.model_type)

    @property
    def image_token_id(self) -> int:
        """``<IMG_CONTEXT>``."""
        return int(self._config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """The same token: a video is written as pictures, one a frame."""
        return self.image_token_id

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def tower(self) -> TowerInfo:
        """The whole tower; its class token has a row that no token is made of."""
        vision = self._config.vision_config
        return TowerInfo(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            num_positions=self._patch_side**2 + 1,
            patch_size=vision.patch_size[0],
            num_channels=vision.num_channels,
            feature_size=vision.hidden_size * self._shuffle**2,
        )

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """None: the number of tiles depends on the picture."""
        return None

    @property
    def signals(self) -> frozenset[str]:
        """None: the tower's attention is among patches, of which a token joins several."""
        return frozenset()

    def facts(self) -> dict[str, Any]:
        """Edge of a tile in pixels and in tokens."""
        return {"tile_size": self._tile_size, "tile_side": self._tile_side}

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """The tiles, or the frames."""
        channels = self._config.vision_config.num_channels
        shape = ("crops", channels, self._tile_size, self._tile_size)
        return (VisionInput("pixel_values", "float32", shape),)

    def vision_outputs(self) -> tuple[str, ...]:
        """None beside the features."""
        return ()

    def unused_tensors(self) -> frozenset[str]:
        """The mask token, which only training reads."""
        has_mask = self._config.vision_config.use_mask_token
        return frozenset({"vision_tower.embeddings.mask_token"} if has_mask else ())

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """Tower, pixel shuffle and projector, exactly as transformers runs them."""
        assert not signals
        return _image_features(_model_without_text(self._config), self._config)

    def resized_vision_module(self, image_size: tuple[int, int]) -> torch.nn.Module:
        """Refuse: the number of crops depends on the picture."""
        raise UnsupportedError(
            "the vision tower of this model takes crops of one size only",
            expected=f"{self.vision_inputs()[0].shape[2]} pixels",
            found=image_size,
        )

    def projector_module(self) -> torch.nn.Module:
        """The projector alone: rows [K, V] to [K, hidden]; parameter names as in the whole."""
        model = _model_without_text(self._config)
        del model.vision_tower
        return _projector(model)

    @property
    def _tile_size(self) -> int:
        return int(self._config.vision_config.image_size[0])

    @property
    def _patch_side(self) -> int:
        return self._tile_size // int(self._config.vision_config.patch_size[0])

    @property
    def _shuffle(self) -> int:
        """Patches along an edge of a token."""
        return int(1 / self._config.downsample_ratio)

    @property
    def _tile_side(self) -> int:
        return self._patch_side // self._shuffle


FAMILY = InternVLFamily


def _model_without_text(config: Any) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.InternVLForConditionalGeneration(config).model
    del model.language_model
    return model


def _image_features(model: Any, config: Any) -> torch.nn.Module:
    import torch

    class ImageFeatures(torch.nn.Module):
        """pixel_values float32 [crops, 3, H, W] to image features [N, hidden]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            outputs = self.model.get_image_features(
                pixel_values=pixel_values.to(self.model.dtype),
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
            )
            features: torch.Tensor = outputs.pooler_output.flatten(0, 1)
            return features

    return ImageFeatures().eval()


def _projector(model: Any) -> torch.nn.Module:
    import torch

    class Projector(torch.nn.Module):
        """Rows of joined patches [K, V] to image features [K, hidden]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.model.multi_modal_projector(rows)
            return features

    return Projector().eval()


def _refuse_other_than(config: Any, field: str, expected: object, where: str = "") -> None:
    found = getattr(config, field)
    if found != expected:
        raise _unsupported(where + field, expected, found)


def _unsupported(field: str, expected: object, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"{field} of the config is not supported", expected=expected, found=found
    )
