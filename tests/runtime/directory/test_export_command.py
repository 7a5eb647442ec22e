from __future__ import annotations

import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="engine directories are exported here")

from divprune.export.cli import add_arguments, read_options
from divprune.export.export_model import export_model
from divprune.export.planning.options import ExportOptions
from divprune.runtime.cli.main_guard import ToolParser
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.directory.manifest import Manifest, QuantInfo
from tests.runtime.example_manifest import example_manifest, with_changes

INT4 = QuantInfo("int4-g32", "mse", 4, 32, True)
INT8 = QuantInfo("int8", "rtn", 8, None, True)


def _read(command: str) -> ExportOptions:
    """What the tool itself makes of the command."""
    program, *words = shlex.split(command)
    assert program == "divprune-export"
    parser = ToolParser()
    add_arguments(parser)
    return read_options(parser.parse_args(words))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quant": INT4},
        {"quant": INT8, "vision_quant": "int8"},
        {"baseline": False, "max_seq_len": 40},
        {"model__id": "./a folder/it's", "dtype": "fp16"},
        {"selector__name": "random", "selector__parameters": {"seed": 7}},
    ],
)
@pytest.mark.parametrize("target", [None, "onnxruntime", "tensorrt", "jetpack6"])
def test_the_tool_takes_the_command_for_every_target(changes, target):
    manifest = with_changes(example_manifest(), **changes)
    options = _read(export_command(manifest, Path("an engine"), target=target))
    assert options.model == manifest.model.id
    assert (options.keep, options.max_seq_len) == (manifest.selector.keep, manifest.max_seq_len)
    assert options.target == (target or manifest.target)
    assert options.baseline == manifest.baseline
    assert (options.output, options.force) == (Path("an engine"), True)
    assert options.selector == manifest.selector.name


def test_a_fraction_and_the_baseline_are_changed_alone():
    manifest = with_changes(example_manifest(), baseline=False)
    options = _read(export_command(manifest, keep=0.3, baseline=True))
    assert (options.keep, options.baseline) == (0.3, True)
    assert (options.output, options.force) == (None, False)


def test_the_command_makes_the_same_directory_again(engine_dir: Path, tmp_path: Path):
    manifest = Manifest.from_json((engine_dir / "manifest.json").read_text())
    options = _read(export_command(manifest, tmp_path / "again"))
    again = export_model(options).manifest
    assert again.files == manifest.files
