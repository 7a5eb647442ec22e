"""The selection kernel between sessions, on host memory: against the vision graph with its Loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxruntime")

import onnxruntime as ort
from anyres_checkpoints import write_anyres_checkpoint
from qwen_checkpoints import write_qwen_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.selection.divprune import DivPrune
from divprune.plugins import driver as driver_module
from divprune.plugins.driver import Driver
from divprune.runtime.backends.image_features import LateFeatures
from divprune.runtime.backends.onnxruntime import loading as loading_module
from divprune.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from divprune.runtime.backends.onnxruntime.loading import (
    load,
    open_kernel,
    open_kernel_selection,
)
from divprune.runtime.backends.onnxruntime.selection_kernel import SelectionKernel
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import (
    BackendError,
    NumericalError,
    OptionError,
    UnsupportedError,
)
from divprune.runtime.generation.kept_tokens import take_kept
from divprune.runtime.pipeline import Pipeline
from tests.plugins.emulator import EmulatedDriver, EmulatedManyDriver

EXPORTS = {
    "fixed": (None, "clip-llama-hub"),
    "crops": (write_anyres_checkpoint, "next-llama-hub"),
    "planes": (write_qwen_checkpoint, "qwen3-v5"),
}
SIZES = {"fixed": [(56, 56)], "crops": [(64, 48), (90, 200)], "planes": [(64, 96), (128, 64)]}
KERNEL_GRAPHS = {"vision_features", "vision_similarities", "vision_rows"}


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDriver:
    return EmulatedDriver(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def many_driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedManyDriver:
    return EmulatedManyDriver(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def exported(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], EngineDirectory]:
    """Exports in fp16, by name."""
    made: dict[str, EngineDirectory] = {}

    def export(name: str) -> EngineDirectory:
        if name not in made:
            write, kind = EXPORTS[name]
            folder = tmp_path_factory.mktemp(name)
            source = checkpoint(kind) if write is None else write(folder / "checkpoint", kind)
            output = folder / "engine"
            export_model(
                ExportOptions(
                    model=str(source), output=output, keep=0.3, dtype="fp16", verify=False
                )
            )
            made[name] = EngineDirectory.open(output)
        return made[name]

    return export


def open_with_kernel(directory: EngineDirectory, driver: Driver, **options) -> OnnxRuntimeBackend:
    kernel = SelectionKernel(driver, "cpu")
    return load(directory, device="cpu", threads=1, kernel=kernel, **options)


def pictures(name: str) -> list[np.ndarray]:
    draw = np.random.default_rng(7)
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in SIZES[name]]


@pytest.mark.parametrize("name", EXPORTS)
def test_the_kernel_between_sessions_selects_as_the_loop_does(name, exported, driver) -> None:
    directory = exported(name)
    with_loop = Pipeline(directory, load(directory, device="cpu", threads=1))
    with_kernel = Pipeline(directory, open_with_kernel(directory, driver))
    for picture in pictures(name):
        expected = with_loop.encode_image(picture).features
        found = with_kernel.encode_image(picture).features
        np.testing.assert_array_equal(found.selection_order, expected.selection_order)
        assert found.num_image_tokens == expected.num_image_tokens
        for count in (len(expected.selection_order), 2, expected.num_image_tokens):
            kept, wanted = take_kept(found, count), take_kept(expected, count)
            np.testing.assert_array_equal(kept.indices, wanted.indices)
            np.testing.assert_array_equal(kept.features, wanted.features)
            assert len(kept.planes) == len(wanted.planes) == 2 * (name == "planes")
            for one, other in zip(kept.planes, wanted.planes, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_float16_loop_on_a_cpu_selects_by_the_features_that_it_gives(exported) -> None:
    """And not by what they were before they were rounded: noise has many near ties."""
    pipeline = Pipeline(exported("planes"), load(exported("planes"), device="cpu", threads=1))
    draw = np.random.default_rng(0)
    for _ in range(12):
        picture = draw.integers(0, 256, (*draw.integers(64, 160, 2), 3), np.uint8)
        found = pipeline.encode_image(picture).features
        order, cover = DivPrune().select_covered(found.image_features, len(found.selection_order))
        np.testing.assert_array_equal(found.selection_order, order)
        np.testing.assert_allclose(found.cover, cover, atol=1e-6)


@pytest.fixture(params=["one block", "float16, grid", "float16, cluster"])
def any_kernel(request, driver, many_driver, monkeypatch) -> Driver:
    """A driver, and what the environment says."""
    if request.param == "one block":
        return driver
    monkeypatch.setenv("DIVPRUNE_SIMILARITIES", "float16")
    monkeypatch.setenv("DIVPRUNE_SELECTION_BLOCKS", request.param.removeprefix("float16, "))
    return many_driver


@pytest.mark.parametrize("name", EXPORTS)
def test_the_kernel_selects_as_the_reference_does(name, exported, any_kernel) -> None:
    driver = any_kernel
    pipeline = Pipeline(exported(name), open_with_kernel(exported(name), driver))
    for picture in pictures(name):
        found = pipeline.encode_image(picture).features
        order, cover = DivPrune().select_covered(found.image_features, len(found.selection_order))
        np.testing.assert_array_equal(found.selection_order, order)
        np.testing.assert_allclose(found.cover, cover, atol=1e-6)


def test_all_tokens_stay_on_the_device_until_somebody_asks(exported, driver) -> None:
    pipeline = Pipeline(exported("planes"), open_with_kernel(exported("planes"), driver))
    features = pipeline.encode_image(pictures("planes")[0]).features
    assert isinstance(features, LateFeatures)
    num_kept = len(features.selection_order)
    take_kept(features, num_kept)
    assert "_everything" not in features.__dict__
    before = features.num_bytes
    kept = take_kept(features, 1)
    assert "_everything" in features.__dict__
    assert features.num_bytes > before
    assert kept.indices.tolist() == [features.selection_order[0]]


def test_answers_are_those_of_the_loop(exported, driver) -> None:
    directory = exported("crops")
    picture = pictures("crops")[1]
    answers = [
        Pipeline(directory, backend).generate(picture, "What is it?", max_new_tokens=8).result
        for backend in (
            load(directory, device="cpu", threads=1),
            open_with_kernel(directory, driver),
            open_with_kernel(directory, driver, residency="sequential"),
        )
    ]
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids


def test_a_feature_that_is_no_number_is_found_on_the_device(exported, driver) -> None:
    backend = open_with_kernel(exported("fixed"), driver)
    (pixels,) = exported("fixed").manifest.graphs["vision"].inputs
    broken = np.zeros(pixels.shape, np.float32)
    broken[0, 0, 0, 0] = np.nan
    features = backend.encode_image({"pixel_values": broken})
    with pytest.raises(NumericalError, match="49 of 49 tokens are not finite"):
        take_kept(features, len(features.selection_order))
    assert "_everything" not in features.__dict__


def test_a_feature_that_is_no_number_ends_the_choice_from_float16_too(
    exported, many_driver, monkeypatch
) -> None:
    monkeypatch.setenv("DIVPRUNE_SIMILARITIES", "float16")
    backend = open_with_kernel(exported("fixed"), many_driver)
    (pixels,) = exported("fixed").manifest.graphs["vision"].inputs
    features = backend.encode_image({"pixel_values": np.full(pixels.shape, np.nan, np.float32)})
    with pytest.raises(NumericalError, match="49 of 49 tokens are not finite"):
        take_kept(features, len(features.selection_order))


def test_a_width_that_tensor_cores_do_not_take_is_refused_with_the_way_out(
    many_driver, monkeypatch
) -> None:
    monkeypatch.setenv("DIVPRUNE_SIMILARITIES", "float16")
    kernel = SelectionKernel(many_driver, "cpu")
    assert kernel.from_features is not None
    with pytest.raises(UnsupportedError) as caught:
        kernel.from_features.launch(0, 0, 0, 0, num_tokens=8, width=48, num_kept=2)
    monkeypatch.setenv(*str(caught.value.fix).split("="))
    assert SelectionKernel(many_driver, "cpu").from_features is None


def test_similarities_of_another_kind_are_refused_with_those_there_are(driver, monkeypatch) -> None:
    monkeypatch.setenv("DIVPRUNE_SIMILARITIES", "bfloat16")
    with pytest.raises(OptionError, match="float32 or float16") as caught:
        SelectionKernel(driver, "cpu")
    advised, _, _ = str(caught.value.fix).partition(",")
    monkeypatch.setenv(*advised.split("="))
    assert SelectionKernel(driver, "cpu").title == "kernel"


def test_the_selection_alone_is_what_the_kernel_does(exported, driver) -> None:
    directory = exported("crops")
    pipeline = Pipeline(directory, open_with_kernel(directory, driver))
    kernel = SelectionKernel(driver, "cpu")
    select = open_kernel_selection(ort, directory, kernel, threads=1)
    features = pipeline.encode_image(pictures("crops")[1]).features
    np.testing.assert_array_equal(select(features.image_features), features.selection_order)


@pytest.mark.parametrize("kernel", [True, False])
def test_the_name_says_what_selects(kernel, exported, driver, monkeypatch, caplog) -> None:
    manifest = exported("fixed").manifest

    def refuse() -> Driver:
        raise BackendError("There is no NVIDIA driver on this machine")

    monkeypatch.setattr(driver_module, "Driver", (lambda: driver) if kernel else refuse)
    with caplog.at_level(logging.WARNING):
        opened = open_kernel(manifest)
    assert ("no NVIDIA driver" in caplog.text) is not kernel
    found = loading_module._places(manifest, "cuda", opened)
    assert found == ("CUDA", f"selection: {'kernel' if kernel else 'loop'}")


def test_a_directory_without_graphs_for_the_kernel_keeps_its_loop(engine_dir, caplog) -> None:
    manifest = EngineDirectory.open(engine_dir).manifest
    assert not KERNEL_GRAPHS & manifest.graphs.keys()  # in float32
    with caplog.at_level(logging.WARNING):
        assert open_kernel(manifest) is None
    assert "no vision/features.onnx" in caplog.text
