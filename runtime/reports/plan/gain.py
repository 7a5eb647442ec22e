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
        """What it comes to, for people."""
        line = (
            f"{_tera(self.tower_flops)} TFLOP in the tower, {_tera(self.decoder_flops)} in the "
            f"decoder: keep {self.keep:g} makes them at most {self.ceiling:.1f} times faster"
        )
        return f"{line}; little, the tower is most of the work" if self.ceiling < _LITTLE else line


def predict_gain(model: ModelDimensions, keep: float) -> Gain:
    """The gain for the largest picture.

    Args:
        model: Its shape.
        keep: Fraction of visual tokens kept.
    """
    tower = model.tower
    linear = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
    attention = 2 * tower.num_positions * tower.hidden_size
    tower_macs = model.crops * tower.num_positions * tower.num_layers * (linear + attention)
    blocks = [m for m in model.text.matrices() if m.name != "lm_head"]
    decoder_macs = model.num_image_tokens * sum(m.size * m.count for m in blocks)
    return Gain(model.num_image_tokens, 2.0 * tower_macs, 2.0 * decoder_macs, keep)


def _tera(flops: float) -> str:
    tera = flops / 1e12
    return f"{tera:.0f}" if tera >= 10 else f"{tera:.2g}"
