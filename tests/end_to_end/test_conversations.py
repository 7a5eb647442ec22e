"""Conversations about pictures of any size: every turn answers as a fresh run, in every dialect.

Qwen3-VL has three positions a row and rows for later decoder layers, LLaVA-1.6 and InternVL rows of
tiles; the directories for TensorRT run on ONNX Runtime here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyres_checkpoints import write_anyres_checkpoint
from qwen_checkpoints import write_qwen_checkpoint
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from tests.runtime.families.anyres_cases import noise

TARGETS = ("onnxruntime", "tensorrt", "jetpack6")
FAMILIES: dict[str, tuple[Callable[[Path, str], Path], str, dict[str, Any]]] = {
    "llava_next": (write_anyres_checkpoint, "next-llama-hub", {}),
    "internvl": (write_tiled_checkpoint, "internvl-qwen2-hub", {}),
    "qwen3_vl": (write_qwen_checkpoint, "qwen3-v5", {"max_image_tokens": 160}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("conversations")

    def get(family: str) -> Path:
        write, name, _ = FAMILIES[family]
        path = folder / name
        return path if path.exists() else write(path, name)

    return get


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_gives_the_token_ids_of_a_fresh_run(family, target, checkpoint, tmp_path):
    engine = tmp_path / "engine"
    options = {"keep": 0.3, "dtype": "fp32", "verify": False, "target": target}
    options |= FAMILIES[family][2]
    export_model(ExportOptions(model=str(checkpoint(family)), output=engine, **options))
    growing, fresh = (Pipeline.from_dir(engine, backend="onnxruntime") for _ in range(2))
    first, second, third = noise((64, 48)), noise((30, 70), 1), noise((48, 40), 2)
    turns: list[dict[str, Any]] = []
    reused = []
    for pictures, words in (
        ((), "Say something."),
        ((first,), "What is this?"),
        ((), "And what else?"),
        ((second, third), "What differs?"),
    ):
        content = [{"type": "image", "image": picture} for picture in pictures]
        asked = {"role": "user", "content": [*content, {"type": "text", "text": words}]}
        turns = [*turns, asked]
        found = growing.chat(turns, max_new_tokens=6).result
        expected = fresh.chat(turns, max_new_tokens=6, reuse=False).result
        assert found.token_ids == expected.token_ids
        assert found.images == expected.images
        assert expected.cached_tokens == 0
        reused.append(found.cached_tokens)
        turns = [*turns, {"role": "assistant", "content": found.text or "nothing"}]
    assert reused[2] > found.images[0].num_kept, "the first picture is not computed again"
