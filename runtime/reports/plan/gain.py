"""What pruning can buy: the work of the tower beside that of the visual tokens in the decoder.

Both are floating-point operations, twice the multiplications of the linear layers and, in the
tower, of its attention. On a device that arithmetic bounds, the visual part of the time to the
first token falls by (V + L) / (V + k L) at most: V of the tower, L of the decoder, k the fraction
kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["Gain", "predict_gain"]

_LITTLE = 1.5


@dataclass(frozen=True, slots=True)
class Gain:
    """For one picture.

    Attributes:
        num_image_tokens: N.
        tower_flops: V.
        decoder_flops: L, of all N tokens.
        keep: k.
    """

    num_image_tokens: int
    tower_flops: float
    decoder_flops: float
    keep: float

    @property
    def ceiling(self) -> float:
        """How many times faster the visual part of the first token can become, at most."""
        everything = self.tower_flops + self.decoder_flops
        return everything / (self.tower_flops + self.keep * self.decoder_flops)

    def __str__(self) -> str:
        """One line for people."""
        line = (
            f"a picture of {self.num_image_tokens} tokens: {self.tower_flops / 1e12:.2g} TFLOP in "
            f"the tower, {self.decoder_flops / 1e12:.2g} in the decoder: keep {self.keep:g} makes "
            f"them at most {self.ceiling:.1f} times faster"
        )
        return f"{line}; little, the tower is most of the work" if self.ceiling < _LITTLE else line


def predict_gain(model: ModelDimensions, keep: float, *, typical: bool) -> Gain:
    """The gain for the largest picture, or for one of 640 x 480 pixels.

    Args:
        model: Its shape.
        keep: Fraction of visual tokens kept.
        typical: Which picture.
    """
    tokens, crops = model.num_image_tokens, model.crops
    positions = float(model.tower.num_positions)
    if typical and model.typical_image_tokens is not None:
        tokens, crops = model.typical_image_tokens, model.typical_crops
        if model.crops == 1:  # one view, whose patches grow with the picture
            positions *= tokens / model.num_image_tokens
    tower = model.tower
    linear = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
    attention = 2 * positions * tower.hidden_size
    tower_macs = crops * positions * tower.num_layers * (linear + attention)
    blocks = [m for m in model.text.matrices() if m.name != "lm_head"]
    decoder_macs = tokens * sum(m.size * m.count for m in blocks)
    return Gain(tokens, 2 * tower_macs, 2.0 * decoder_macs, keep)
