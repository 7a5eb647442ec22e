"""A package of somebody else with a selector, installed into an environment or as a wheel."""

from __future__ import annotations

import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

__all__ = ["MODULE", "new_environment", "write_package", "write_wheel"]

MODULE = "first_rows_for_test"


def new_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's folder of packages, from which this process imports as well."""
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    monkeypatch.syspath_prepend(site)
    return site


def write_package(site: Path, version: str, code: str) -> None:
    """Put the files there that an installation leaves."""
    for name, content in _files(version, code).items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def write_wheel(folder: Path, version: str, code: str) -> None:
    """Put a wheel into a folder, which pip takes for an index."""
    folder.mkdir()
    with zipfile.ZipFile(folder / f"first_rows-{version}-py3-none-any.whl", "w") as wheel:
        for name, content in _files(version, code).items():
            wheel.writestr(name, content)


def _files(version: str, code: str) -> dict[str, str]:
    info = f"first_rows-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: first-rows\nVersion: {version}\n"
    entry = f"[divprune.selectors]\nfirst-rows = {MODULE}:FirstRows\n"
    files = {f"{MODULE}.py": code, f"{info}/METADATA": metadata}
    files |= {f"{info}/entry_points.txt": entry}
    files |= {f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    return files | {f"{info}/RECORD": "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])}
