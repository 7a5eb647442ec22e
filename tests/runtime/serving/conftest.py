"""A server on the tiny export, and one that asks for a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

KEYS = ("first-key-of-two", "second-key-of-two")


@pytest.fixture(scope="package")
def server(engine_dir: Path) -> Iterator[object]:
    """Without a key, with small limits."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from tests.runtime.serving.serving_process import ServingProcess

    with ServingProcess(engine_dir, "--max-body-mib", 1, "--max-megapixels", 1) as process:
        yield process


@pytest.fixture(scope="package")
def guarded_server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """With two keys."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from tests.runtime.serving.serving_process import ServingProcess

    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# of the tests\n" + "\n".join(KEYS) + "\n")
    # Short answers: long ones about a camera's picture would fill the cache of a conversation.
    with ServingProcess(engine_dir, "--api-key-file", keys, "--max-tokens", 48) as process:
        yield process
