"""A model family of an installed package: exported and run without a change to this project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxruntime")

AT_EXPORT = """
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig
from transformers import LlavaForConditionalGeneration

from divprune.export.families.llava import LlavaFamily


class ToyConfig(LlavaConfig):
    model_type = "toy"


class ToyForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = ToyConfig


AutoConfig.register("toy", ToyConfig)
AutoModelForImageTextToText.register(ToyConfig, ToyForConditionalGeneration)


class ToyFamily(LlavaFamily):
    name = "toy"

    @staticmethod
    def check(content):
        pass
"""
AT_RUN_TIME = """
from divprune.runtime.families.llava import FAMILY


class ToyFamily(FAMILY):
    name = "toy"

    def prepare_image(self, image, num_images=1):
        return super().prepare_image(image.convert("L").convert("RGB"), num_images)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder for the import path with an installed package that offers the family."""
    folder = tmp_path / "packages"
    info = folder / "toy_family-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "toy_at_export.py").write_text(AT_EXPORT)
    (folder / "toy_at_run_time.py").write_text(AT_RUN_TIME)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[divprune.export_families]\ntoy = toy_at_export:ToyFamily\n"
        "[divprune.runtime_families]\ntoy = toy_at_run_time:ToyFamily\n"
    )
    return folder


def run(package: Path, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"from {module} import main; raise SystemExit(main())",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def test_family_of_a_package_is_exported_and_prepares_its_pictures(
    package: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("clip-llama-hub"), source)
    content = json.loads((source / "config.json").read_text())
    content |= {"model_type": "toy", "architectures": ["ToyForConditionalGeneration"]}
    (source / "config.json").write_text(json.dumps(content))
    engine, picture, grey = tmp_path / "engine", tmp_path / "red.png", tmp_path / "grey.png"
    with Image.effect_mandelbrot((60, 60), (-2, -1, 1, 1), 50) as mandelbrot:
        tinted = Image.merge("RGB", (mandelbrot, mandelbrot.rotate(90), mandelbrot.rotate(180)))
    tinted.save(picture)
    tinted.convert("L").save(grey)

    done = run(package, "divprune.export.cli", "--model", source, "--keep", 0.3, "--output", engine)
    assert done.returncode == 0, done.stderr
    assert json.loads((engine / "manifest.json").read_text())["model"]["family"] == "toy"

    answers = [
        run(package, "divprune.runtime.cli.run", engine, each, "--json", "--max-new-tokens", 4)
        for each in (picture, grey)
    ]
    assert [answer.returncode for answer in answers] == [0, 0], answers[0].stderr
    coloured, colourless = (json.loads(answer.stdout) for answer in answers)
    assert coloured["token_ids"] == colourless["token_ids"]
    kept = [answer["images"][0]["kept_indices"] for answer in (coloured, colourless)]
    assert kept[0] == kept[1]

    refused = run(tmp_path, "divprune.runtime.cli.run", engine, picture)
    assert refused.returncode == 2
    assert "does not know the family" in refused.stderr
    assert "toy" in refused.stderr
