"""The dialects of a decoder block's operations, one module each."""

from __future__ import annotations

from collections.abc import Callable

from divprune.export.decoder.dialects.delta import DeltaDialect
from divprune.export.decoder.dialects.onnx import OnnxDialect
from divprune.export.decoder.dialects.ort import OrtDialect
from divprune.export.decoder.dialects.protocol import Dialect, KVPair, StepState

__all__ = ["DIALECTS", "Dialect", "KVPair", "StepState", "get_dialect"]

DIALECTS = (OrtDialect.name, OnnxDialect.name, DeltaDialect.name)


def get_dialect(name: str, *, quantized: bool = False) -> Dialect:
    """The dialect of that name, one of ``DIALECTS``; for 4-bit weights if ``quantized``."""
    if name == DeltaDialect.name:
        return DeltaDialect(quantized=quantized)
    simple: dict[str, Callable[[], Dialect]] = {
        OrtDialect.name: OrtDialect,
        OnnxDialect.name: OnnxDialect,
    }
    return simple[name]()
