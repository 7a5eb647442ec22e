"""The sizes of a LLaVA-type model that its memory depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from divprune.runtime.directory.manifest import TowerInfo
from divprune.runtime.directory.quant_scheme import QuantScheme

__all__ = ["Matrix", "ModelDimensions", "TextDimensions"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight that something is multiplied with; ``count`` of them are alike."""

    name: str
    inputs: int
    outputs: int
    count: int = 1

    @property
    def size(self) -> int:
        """Numbers in one of them."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class TextDimensions:
    """A llama-type decoder with its output layer."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int

    def matrices(self) -> tuple[Matrix, ...]:
        """What ``--quant`` is about: the linear layers of the blocks, and the output layer."""
        width, layers = self.hidden_size, self.num_layers
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            Matrix("q_proj", width, queries, layers),
            Matrix("k_proj and v_proj", width, keys, 2 * layers),
            Matrix("o_proj", queries, width, layers),
            Matrix("gate_proj and up_proj", width, self.intermediate_size, 2 * layers),
            Matrix("down_proj", self.intermediate_size, width, layers),
            Matrix("lm_head", width, self.vocab_size),
        )

    def kv_numbers(self) -> int:
        """Numbers that one token has in the cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ModelDimensions:
    """A model before its weights are at hand.

    Attributes:
        name: What the user calls it.
        tower: The vision tower.
        text: The language model.
        num_image_tokens: Visual tokens of a picture (N); of the largest one where N varies.
        packed: How the checkpoint is quantised already; None where it is not.
        typical_image_tokens: N of a picture of 640 x 480 pixels; None where N is fixed.
        crops: Pictures that the tower sees of the largest one, or frames of a video.
        typical_crops: The same of one of 640 x 480 pixels.
        bounds_videos: Whether N and crops are the largest of a picture or a video.
    """

    name: str
    tower: TowerInfo
    text: TextDimensions
    num_image_tokens: int
    packed: QuantScheme | None = None
    typical_image_tokens: int | None = None
    crops: int = 1
    typical_crops: int = 1
    bounds_videos: bool = False

    def typical(self) -> ModelDimensions:
        """The same model, whose largest picture is one of 640 x 480 pixels."""
        if self.typical_image_tokens is None:
            return self
        positions = self.tower.num_positions
        if self.crops == 1:  # one view, whose patches grow with the picture
            positions = round(positions * self.typical_image_tokens / self.num_image_tokens)
        return replace(
            self,
            tower=replace(self.tower, num_positions=positions),
            num_image_tokens=self.typical_image_tokens,
            typical_image_tokens=None,
            crops=self.typical_crops,
        )

    def tower_matrices(self) -> tuple[Matrix, ...]:
        """What ``--vision-quant`` is about: the linear layers of the tower."""
        width, inner = self.tower.hidden_size, self.tower.intermediate_size
        layers = self.tower.num_layers
        return (
            Matrix("attention", width, width, 4 * layers),
            Matrix("fc1 and fc2", width, inner, 2 * layers),
        )

    def other_vision_matrices(self) -> tuple[Matrix, ...]:
        """Patches, positions and projector: never quantised."""
        tower, width = self.tower, self.text.hidden_size
        patch = tower.num_channels * tower.patch_size**2
        return (
            Matrix("patches", patch, tower.hidden_size),
            Matrix("positions", tower.num_positions, tower.hidden_size),
            Matrix("projector linear_1", tower.feature_size, width),
            Matrix("projector linear_2", width, width),
        )
