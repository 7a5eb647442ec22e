"""The token ids that end an answer, from ``generation_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from divprune.runtime.errors import EngineDirectoryError

__all__ = ["load_eos_token_ids"]


def load_eos_token_ids(path: Path) -> tuple[int, ...]:
    """Read ``eos_token_id``, which is one id or a list of them.

    Args:
        path: The file ``generation_config.json``.

    Returns:
        At least one id, in the order of the file.

    Raises:
        EngineDirectoryError: The file or the key is missing, or the value is not token ids.
    """
    value = _read(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise EngineDirectoryError(
            f"{path.name} does not say which token ends an answer",
            expected='"eos_token_id": a token id or a list of them',
            found="no such key" if value is None else json.dumps(value),
            fix="add eos_token_id to the checkpoint's generation_config.json and export again",
        )
    return tuple(ids)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineDirectoryError(
            f"{path.name} cannot be read",
            expected=f"a JSON object in {path}",
            found=error,
            fix="export the model again",
        ) from error
    if not isinstance(content, dict):
        raise EngineDirectoryError(
            f"{path.name} is damaged",
            expected="a JSON object",
            found=type(content).__name__,
            fix="export the model again",
        )
    return content
