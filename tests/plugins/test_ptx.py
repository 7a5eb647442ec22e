from __future__ import annotations

from pathlib import Path

import pytest

from divprune.plugins import ptx
from divprune.runtime.errors import BackendError


def test_missing_ptx_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ptx, "PTX_FILE", tmp_path / "none.ptx")
    with pytest.raises(BackendError, match=r"(?s)none\.ptx.*divprune\.plugins\.compile_ptx"):
        ptx.read_ptx()
