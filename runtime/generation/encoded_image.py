"""A picture or video after the vision graph, before any question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.families import Prepared

__all__ = ["EncodedImage"]


@dataclass(frozen=True)
class EncodedImage:
    """A picture that has been through the vision graph, for any number of questions.

    Attributes:
        prepared: How it is written into a prompt; without the inputs of the vision graph.
        features: What the vision graph said, for every fraction the directory can serve.
        digest: Of its pixels and of how it was prepared.
        preprocess_ms: Milliseconds from the picture to the inputs of the vision graph.
        vision_ms: Milliseconds of the vision graph, selection included.
    """

    prepared: Prepared
    features: ImageFeatures
    digest: bytes
    preprocess_ms: float
    vision_ms: float
