"""The shipped model through an engine directory, as the figures of its card are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")


from PIL import Image

from models.small_scenes.evaluate import MAX_NEW_TOKENS, Transformers
from models.small_scenes.evaluate_engines import (
    RandomSelection,
    RememberedPictures,
    export_engines,
)
from models.small_scenes.exam import make_exam

CHECKPOINT = Path(__file__).parents[2] / "models" / "small_scenes" / "checkpoint"


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "small_scenes"
    export_engines(CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="module")
def exam():
    return make_exam("test", 3, first=20_000)


def test_engines_that_keep_everything_answer_as_transformers_does(engines, exam):
    from divprune.runtime.pipeline import Pipeline

    pipeline = Pipeline.from_dir(engines)
    model = Transformers(CHECKPOINT)
    for item in exam:
        picture = Image.fromarray(item.pixels)
        expected = model.answer([picture] * len(item.questions), list(item.questions))
        for question, text in zip(item.questions, expected, strict=True):
            given = pipeline.generate(
                picture, question.text, keep=1.0, max_new_tokens=MAX_NEW_TOKENS
            )
            assert given.result.text == text.strip()


def test_random_selection_keeps_as_many_tokens_but_others(engines, exam):
    from divprune.runtime.backends import load_backend
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.inputs.image_processor import ImageProcessor

    backend = load_backend(None, EngineDirectory.open(engines), device="cpu", threads=1)
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 112},
        "crop_size": {"height": 112, "width": 112},
    }
    pixels = ImageProcessor.from_config(config)(Image.fromarray(exam[0].pixels))
    inputs = {"pixel_values": pixels}
    chosen = backend.encode_image(inputs)
    chance = RememberedPictures(RandomSelection(backend, seed=0))
    drawn = chance.encode_image(inputs)
    assert drawn.selection_order.shape == chosen.selection_order.shape == (49,)
    assert len(set(drawn.selection_order.tolist())) == 49
    assert set(drawn.selection_order.tolist()) != set(chosen.selection_order.tolist())
    ascending = np.sort(drawn.selection_order)
    np.testing.assert_array_equal(drawn.selected_features, drawn.image_features[ascending])
    assert chance.encode_image(inputs) is drawn
