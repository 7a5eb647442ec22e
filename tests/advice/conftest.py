"""Checkpoints of every family, for advice that is given to their owners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def any_checkpoint(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function from a name to a checkpoint's directory, written once: copy before changes.

    The name is one of ``checkpoints``, ``anyres_checkpoints``, ``qwen_checkpoints`` or
    ``tiled_checkpoints``; ``packed`` is quantised by GPTQ, and ``plain`` the one it stands for.
    """
    from anyres_checkpoints import ANYRES_CHECKPOINTS, write_anyres_checkpoint
    from qwen_checkpoints import QWEN_CHECKPOINTS, write_qwen_checkpoint
    from tiled_checkpoints import TILED_CHECKPOINTS, write_tiled_checkpoint

    from tests.export.checkpoint.quantization.packed_checkpoints import write_packed

    writers: dict[str, Callable[[Path, str], Path]] = {
        **dict.fromkeys(ANYRES_CHECKPOINTS, write_anyres_checkpoint),
        **dict.fromkeys(QWEN_CHECKPOINTS, write_qwen_checkpoint),
        **dict.fromkeys(TILED_CHECKPOINTS, write_tiled_checkpoint),
    }
    folder = tmp_path_factory.mktemp("any-checkpoints")

    def get(name: str) -> Path:
        path = folder / name
        if path.exists():
            return path
        if name in ("packed", "plain"):
            source = checkpoint("clip-llama-v5-layers-biases")
            write_packed(source, folder / "packed", folder / "plain", "gptq")
            return path
        return writers[name](path, name) if name in writers else checkpoint(name)

    return get
