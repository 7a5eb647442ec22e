"""Facts of a manifest that no export wrote are refused, not tripped over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import Manifest
from divprune.runtime.errors import DivPruneError, EngineDirectoryError
from divprune.runtime.families import load_family
from divprune.runtime.generation.media_encoder import MediaEncoder, Opened
from divprune.runtime.generation.picture_cache import PictureCache

pytest.importorskip("torch", reason="the engine directories are exported here")

VALUES: tuple[Any, ...] = (None, "x", [], {}, -1, 0, 1.5, True, [1], "", 10**9)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> EngineDirectory:
    """The family with most to say to its run time."""
    from qwen_checkpoints import write_qwen_checkpoint

    from divprune.export.export_model import ExportOptions, export_model

    folder = tmp_path_factory.mktemp("facts")
    model = str(write_qwen_checkpoint(folder / "checkpoint", "qwen25-hub"))
    output = folder / "engine"
    export_model(ExportOptions(model=model, keep=0.3, dtype="fp32", verify=False, output=output))
    return EngineDirectory.open(output)


def prepare(opened: EngineDirectory, manifest: Manifest) -> None:
    """As a run does it, short of the graphs."""
    family = load_family(replace(opened, manifest=manifest))
    backend: Any = None  # runs the graphs, which nothing is asked of here
    encoder = MediaEncoder(manifest, family, backend, PictureCache(0))
    encoder.prepare(Opened(Image.new("RGB", (40, 30))))


def test_every_fact_may_be_anything(opened: EngineDirectory) -> None:
    manifest = opened.manifest
    refused = 0
    for name in manifest.model.facts:
        for value in VALUES:
            try:
                model = replace(manifest.model, facts={**manifest.model.facts, name: value})
                prepare(opened, replace(manifest, model=model))
            except DivPruneError:
                refused += 1
    assert refused > len(manifest.model.facts)


def test_every_range_has_to_be_there(opened: EngineDirectory) -> None:
    manifest = opened.manifest
    for name in manifest.dims.keys() & load_family(opened).dims().keys():
        dims = {key: manifest.dims[key] for key in manifest.dims if key != name}
        with pytest.raises(EngineDirectoryError, match=name):
            prepare(opened, replace(manifest, dims=dims))
