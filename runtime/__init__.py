"""Run an engine directory: image in, text out, without torch or transformers.

Names are imported on first use, so that ``import divprune.runtime`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divprune.runtime.errors import (
        BackendError,
        CheckpointError,
        DatasetError,
        DivPruneError,
        EngineDirectoryError,
        ImageError,
        NumericalError,
        OptionError,
        PromptError,
        UnsupportedError,
    )
    from divprune.runtime.generation.generation import Generation
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.pipeline import Pipeline

    __version__: str

__all__ = [
    "BackendError",
    "CheckpointError",
    "DatasetError",
    "DivPruneError",
    "EngineDirectoryError",
    "Generation",
    "GenerationResult",
    "ImageError",
    "NumericalError",
    "OptionError",
    "Pipeline",
    "PromptError",
    "SamplingOptions",
    "UnsupportedError",
    "__version__",
]

_MODULES = {
    "Generation": "divprune.runtime.generation.generation",
    "GenerationResult": "divprune.runtime.generation.result",
    "Pipeline": "divprune.runtime.pipeline",
    "SamplingOptions": "divprune.runtime.generation.sampling",
}


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("divprune-edge")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "divprune.runtime.errors")), name)


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)
