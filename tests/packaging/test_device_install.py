"""A device install stays small: what ``pip install divprune-edge[cpu]`` brings along."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST_MB = 300


def requirements(texts: list[str], extras: set[str]) -> list[Requirement]:
    """Those that this machine needs, with the extras asked for."""
    found = []
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            found.append(requirement)
    return found


def closure(texts: list[str]) -> set[str]:
    """Names of everything that the requirements install."""
    names: set[str] = set()
    left = requirements(texts, set())
    while left:
        requirement = left.pop()
        name = metadata.distribution(requirement.name).metadata["Name"]
        if name not in names:
            names.add(name)
            left += requirements(metadata.requires(name) or [], requirement.extras)
    return names


def installed_bytes(name: str) -> int:
    """Size of a distribution's files, compiled modules included."""
    files = metadata.files(name) or []
    paths = {Path(str(file.locate())) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file())


def test_requirements_are_followed_to_the_end() -> None:
    assert {"Jinja2", "MarkupSafe", "huggingface_hub"} <= closure(PROJECT["dependencies"])


def test_a_device_install_with_onnx_runtime_takes_at_most_300_mb() -> None:
    pytest.importorskip("onnxruntime")
    texts = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]
    sizes = {name: installed_bytes(name) / 1e6 for name in closure(texts)}
    assert sizes.keys().isdisjoint({"torch", "transformers", "onnx"})
    assert min(sizes.values()) > 0
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    assert sum(sizes.values()) <= LARGEST_MB, largest
