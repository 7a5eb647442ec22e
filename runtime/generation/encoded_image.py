"""A picture after the vision graph, before any question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.backends import ImageFeatures

__all__ = ["EncodedImage"]


@dataclass(frozen=True)
class EncodedImage:
    """A picture that has been through the vision graph, for any number of questions.

    Attributes:
        features: What the vision graph said, for every fraction the directory can serve.
        preprocess_ms: Milliseconds from the picture to its pixel values.
        vision_ms: Milliseconds of the vision graph, selection included.
    """

    features: ImageFeatures
    preprocess_ms: float
    vision_ms: float
