from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.keep import describe_keep
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.inputs.image_processor import ImageProcessor
from divprune.runtime.reports.bench import picture as module
from divprune.runtime.reports.bench.picture import (
    BUILT_IN,
    built_in_picture,
    draw_kept_patches,
    image_facts,
)
from tests.runtime.reports.bench.made_up_report import made_up_report, made_up_run


def test_the_built_in_picture_is_the_same_everywhere():
    picture = built_in_picture()
    assert (picture.mode, picture.size) == ("RGB", (640, 480))
    # Reports of different machines are compared by this hash.
    facts = image_facts(BUILT_IN, picture)
    assert facts.sha256 == "f8e745ddd0185eaedecfa2126c4ed09fcabd8ac21b6d1566042dec34940717ed"
    assert image_facts(BUILT_IN, built_in_picture()) == facts


def test_a_picture_is_identified_by_its_pixels():
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    facts = image_facts("a.png", picture)
    assert (facts.source, facts.width, facts.height) == ("a.png", 3, 2)
    assert facts.sha256 == hashlib.sha256(bytes((1, 2, 3)) * 6).hexdigest()


@pytest.fixture
def directory(engine_dir):
    return EngineDirectory.open(engine_dir)


@pytest.fixture
def report(directory):
    total = directory.manifest.selector.num_image_tokens
    runs = (made_up_run(1.0, total, 800.0), made_up_run(0.1, 5, 200.0))
    return made_up_report(runs=runs, engine__num_image_tokens=total)


def test_every_fraction_below_1_has_a_picture(directory, report):
    picture = built_in_picture()
    pictures = draw_kept_patches(report, directory, picture)
    total = directory.manifest.selector.num_image_tokens
    assert list(pictures) == [f"keep 0.1: {describe_keep(5, total)}"]
    drawn = Image.open(io.BytesIO(*pictures.values()))
    assert drawn.size == picture.size
    assert np.asarray(drawn).mean() < np.asarray(picture).mean()  # most of it is dimmed


def test_a_large_picture_is_made_smaller_and_itself_left_alone(directory, report):
    picture = Image.new("RGB", (3000, 1500))
    (file,) = draw_kept_patches(report, directory, picture).values()
    assert Image.open(io.BytesIO(file)).size == (1024, 512)
    assert picture.size == (3000, 1500)


def test_where_patches_are_unknown_there_is_a_warning_and_no_picture(
    directory, report, monkeypatch, caplog
):
    def unknown(_):
        raise UnsupportedError("unknown")

    monkeypatch.setattr(module, "load_family", unknown)
    assert draw_kept_patches(report, directory, built_in_picture()) == {}
    assert "the report shows no kept patches" in caplog.text


def test_a_caption_says_how_many_kept_patches_lie_in_the_padding(directory, report, monkeypatch):
    config = json.loads(directory.file("preprocessor_config.json").read_text())
    height, width = ImageProcessor.from_config(config).size
    config |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    config |= {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": width}
    padding = ImageProcessor.from_config(config)
    monkeypatch.setattr(ImageProcessor, "from_config", lambda _: padding)
    strip = Image.new("RGB", (400, 10))  # far from the first patches, which were kept
    (caption,) = draw_kept_patches(report, directory, strip)
    assert caption.endswith("; 5 of them outside the picture (padding), not drawn")
