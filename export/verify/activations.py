"""How large a vision tower's activations become, which decides whether fp16 can hold them.

ONNX Runtime computes float16 graphs of a CPU in float32 and may leave the rounding between two
operators out: what overflows on a GPU need not show there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import NumericalError

if TYPE_CHECKING:
    import torch

__all__ = ["Largest", "check_half", "watch_activations"]

_FP16_MAX = 65504.0
_NEAR = _FP16_MAX / 4  # other pictures may well have four times as much

logger = logging.getLogger(__name__)


@dataclass
class Largest:
    """The largest magnitude that went into or out of a part of a module, and the part's name."""

    value: float = 0.0
    part: str = "none"

    def add(self, tensor: torch.Tensor, part: str) -> None:
        """Take another tensor into account."""
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return
        value = max(abs(float(bound)) for bound in tensor.detach().aminmax())
        if value > self.value:
            self.value, self.part = value, part


@contextlib.contextmanager
def watch_activations(module: torch.nn.Module) -> Iterator[Largest]:
    """Note what passes through the parts of ``module`` while it runs.

    What a part computes inside, such as the scores of an attention, is not seen.
    """
    import torch

    largest = Largest()
    handles = []
    for name, part in module.named_modules():
        if not any(part.children()):

            def note(_: Any, inputs: Any, output: Any, name: str = name) -> None:
                for tensor in (*inputs, output):
                    if isinstance(tensor, torch.Tensor):
                        largest.add(tensor, name)

            handles.append(part.register_forward_hook(note))
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def check_half(largest: Largest) -> None:
    """Refuse activations that float16 cannot hold; warn of those near its limit.

    Raises:
        NumericalError: naming the part of the tower.
    """
    if largest.value > _FP16_MAX:
        raise NumericalError(
            "the vision tower's activations overflow fp16",
            expected=f"magnitudes up to {_FP16_MAX:g}",
            found=f"{largest.value:.4g} at {largest.part}, for a made-up picture",
            fix="--dtype fp32",
        )
    if largest.value > _NEAR:
        logger.warning(
            "the vision tower's activations reach %.0f at %s for a made-up picture; fp16 ends at"
            " %.0f: if pictures give no sensible answer, export with --dtype fp32",
            largest.value,
            largest.part,
            _FP16_MAX,
        )
