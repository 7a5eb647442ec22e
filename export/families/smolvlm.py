"""SmolVLM2 and SmolVLM: SigLIP over square crops, pixel shuffle, one linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families.protocol import VisionInput
from divprune.runtime.directory.manifest_records import TowerInfo
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["FAMILY", "SmolVLMFamily"]

# transformers takes a template of its own for any conversation with a video, because those in
# the checkpoints write nothing for one. This one writes the same text.
_VIDEO_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] in ('image', 'video') %}{{ '<' ~ part['type'] ~ '>' }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
_RENAMES = (("model.", ""), ("text_model.", "language_model."))


class SmolVLMFamily:
    """``SmolVLMForConditionalGeneration``: every crop has the same number of tokens."""

    name: ClassVar[str] = "smolvlm"
    position_axes: ClassVar[int] = 1
    positions: ClassVar[tuple[str, ...]] = ("contiguous", "original")
    tower_prefix: ClassVar[str] = "vision_model."
    joined_rows: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    architecture: ClassVar[str] = "SmolVLMForConditionalGeneration"
    takes_videos: ClassVar[bool] = True

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        vision = self._config.vision_config
        for field in ("image_size", "patch_size"):
            if not isinstance(getattr(vision, field), int):
                raise _unsupported(f"vision_config.{field}", "an integer", getattr(vision, field))
        factor = self._config.scale_factor
        if factor < 1 or self._patch_side % factor:
            expected = f"a divisor of the {self._patch_side} patches along an edge"
            raise _unsupported("scale_factor", expected, factor)
        if _position_ids(self._patch_side) != list(range(self._patch_side)):
            # In float32 transformers puts some patches of these grids in the wrong place.
            expected = "a number of patches along an edge such as 24, 26, 27 or 32"
            raise _unsupported("vision_config.image_size", expected, self._patch_side)

    @classmethod
    def check(cls, content: Mapping[str, Any]) -> None:
        """See ``protocol.Family``."""
        architectures = content.get("architectures") or [cls.architecture]
        if content.get("model_type") != cls.name or architectures != [cls.architecture]:
            found = ", ".join(map(str, architectures))
            raise UnsupportedError(
                f"the architecture {found} is not supported",
                expected=f"{cls.architecture} as transformers saves it",
                found=f"{found}, model type {content.get('model_type')}",
            )

    @staticmethod
    def canonical_name(key: str) -> str:
        """See ``protocol.Family``."""
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
        """``smolvlm_vision`` or ``idefics3_vision``."""
        return str(self._config.vision_config.model_type)

    @property
    def image_token_id(self) -> int:
        """``<image>``."""
        return int(self._config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """The same token: a video is written as pictures, one a frame."""
        return self.image_token_id if self.takes_videos else None

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def tower(self) -> TowerInfo:
        """The whole tower."""
        vision = self._config.vision_config
        return TowerInfo(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            num_positions=self._patch_side**2,
            patch_size=vision.patch_size,
            num_channels=vision.num_channels,
            feature_size=vision.hidden_size * self._config.scale_factor**2,
        )

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """None: the number of crops depends on the picture."""
        return None

    @property
    def signals(self) -> frozenset[str]:
        """None: the tower's attention is among patches, of which a token joins several."""
        return frozenset()

    def facts(self) -> dict[str, Any]:
        """Edge of a crop in pixels and in tokens, and the template for videos if it takes any."""
        side = self._patch_side // self._config.scale_factor
        size = self._config.vision_config.image_size
        template = _VIDEO_TEMPLATE if self.takes_videos else None
        return {"crop_size": size, "crop_side": side, "video_template": template}

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """The crops, or the frames."""
        vision = self._config.vision_config
        shape = ("crops", vision.num_channels, vision.image_size, vision.image_size)
        return (VisionInput("pixel_values", "float32", shape),)

    def vision_outputs(self) -> tuple[str, ...]:
        """None beside the features."""
        return ()

    def unused_tensors(self) -> frozenset[str]:
        """None: all of the checkpoint is read."""
        return frozenset()

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """Tower, pixel shuffle and projection as transformers runs them on whole crops."""
        assert not signals
        return _image_features(self._model_without_text())

    def resized_vision_module(self, image_size: tuple[int, int]) -> torch.nn.Module:
        """Refuse: the number of crops depends on the picture."""
        raise UnsupportedError(
            "the vision tower of this model takes crops of one size only",
            expected=f"{self.vision_inputs()[0].shape[2]} pixels",
            found=image_size,
        )

    def projector_module(self) -> torch.nn.Module:
        """The projection alone: rows [K, V] to [K, hidden]; parameter names as in the whole."""
        model = self._model_without_text()
        del model.vision_model
        return _projector(model)

    @property
    def _patch_side(self) -> int:
        vision = self._config.vision_config
        return int(vision.image_size // vision.patch_size)

    def _model_without_text(self) -> Any:
        import torch
        import transformers

        with torch.device("meta"):
            model = getattr(transformers, self.architecture)(self._config).model
        del model.text_model
        return model


FAMILY = SmolVLMFamily


def _image_features(model: Any) -> torch.nn.Module:
    import torch

    class ImageFeatures(torch.nn.Module):
        """pixel_values float32 [crops, 3, H, W] to image features [N, hidden].

        transformers' own forward looks for padding, which depends on the values. Crops have
        none: every patch is seen, and its position is its place in the grid.
        """

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            tower = self.model.vision_model
            patches = tower.embeddings.patch_embedding(pixel_values.to(self.model.dtype))
            rows = patches.flatten(2).transpose(1, 2)
            rows = rows + tower.embeddings.position_embedding.weight
            rows = tower.encoder(inputs_embeds=rows, attention_mask=None).last_hidden_state
            features: torch.Tensor = self.model.connector(tower.post_layernorm(rows))
            return features.flatten(0, 1)

    return ImageFeatures().eval()


def _projector(model: Any) -> torch.nn.Module:
    import torch

    class Projector(torch.nn.Module):
        """Rows of joined patches [K, V] to image features [K, hidden]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.model.connector.modality_projection(rows)
            return features

    return Projector().eval()


def _position_ids(side: int) -> list[int]:
    """Where transformers puts the patches along an edge of a whole crop."""
    import torch

    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    step = 1.0 / torch.tensor([side])
    places = torch.clamp(torch.arange(side, dtype=torch.float32) * step, max=1.0 - 1e-6)
    ids: list[int] = torch.bucketize(places, boundaries, right=True).tolist()
    return ids


def _unsupported(field: str, expected: object, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"{field} of the config is not supported", expected=expected, found=found
    )
