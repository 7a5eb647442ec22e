"""ONNX Runtime writes nothing outside the engine directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from divprune.runtime import Pipeline
import numpy as np
pipeline = Pipeline.from_dir(sys.argv[1])
pipeline.generate(np.zeros((8, 8, 3), np.uint8), "What?", max_new_tokens=1).result
"""


@pytest.mark.parametrize("writable", [True, False])
def test_nothing_is_written_to_the_home_folder(
    engine_dir: Path, tmp_path: Path, writable: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if not writable:
        home = home / "missing"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))},
        "HOME": str(home),
        "DIVPRUNE_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(engine_dir)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "elemetry" not in done.stderr
    assert not home.exists() or list(home.rglob("*")) == []
