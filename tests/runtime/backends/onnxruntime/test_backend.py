from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from divprune.runtime.backends import choose_device, load_backend
from divprune.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from divprune.runtime.backends.onnxruntime.decoder import DecoderSession
from divprune.runtime.backends.onnxruntime.loading import load
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.errors import (
    BackendError,
    EngineDirectoryError,
    OptionError,
    UnsupportedError,
)
from tests.runtime.engine_copies import copy_engine

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def directory(engine_dir: Path) -> EngineDirectory:
    return EngineDirectory.open(engine_dir)


@pytest.fixture(scope="module")
def backend(directory: EngineDirectory) -> OnnxRuntimeBackend:
    return load(directory, device="cpu", threads=1)


@pytest.fixture
def rows(directory: EngineDirectory) -> np.ndarray:
    shape = (1, 9, directory.manifest.model.hidden_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def positions(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop)[np.newaxis]


@pytest.fixture(params=["tensorrt", "jetpack6"])
def backend_for_tensorrt(
    request: pytest.FixtureRequest, target_dir: Callable[[str], Path]
) -> OnnxRuntimeBackend:
    directory = EngineDirectory.open(target_dir(request.param))
    return load(directory, device="cpu", threads=1)


def caches(backend: OnnxRuntimeBackend) -> list[np.ndarray]:
    return [buffer.numpy() for buffer in decoder(backend).cache.values.values()]


def decoder(backend: OnnxRuntimeBackend) -> DecoderSession:
    (part,) = backend._residents.decoder().parts
    return part


def test_the_name_says_library_version_and_device(backend):
    assert backend.name == f"onnxruntime {ort.__version__} (CPU)"


def test_the_vision_graph_gives_features_order_and_kept_rows(backend, directory):
    selector = directory.manifest.selector
    (pixels,) = directory.manifest.graphs["vision"].inputs
    picture = np.random.default_rng(1).standard_normal(pixels.shape).astype(np.float32)

    features = backend.encode_image({"pixel_values": picture})

    hidden = directory.manifest.model.hidden_size
    assert features.image_features.shape == (selector.num_image_tokens, hidden)
    assert features.selection_order.dtype == np.int64
    assert len(set(features.selection_order.tolist())) == selector.num_kept
    np.testing.assert_array_equal(
        features.selected_features, features.image_features[np.sort(features.selection_order)]
    )


def test_prefill_at_once_and_row_by_row_agree(backend, directory, rows):
    backend.reset()
    at_once = backend.forward(rows, positions(0, 9))
    backend.reset()
    for row in range(9):
        one_by_one = backend.forward(rows[:, row : row + 1], positions(row, row + 1))

    assert at_once.shape == (directory.manifest.model.vocab_size,)
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-5)
    assert np.argmax(one_by_one) == np.argmax(at_once)


def test_only_what_was_fed_since_reset_counts(backend, rows):
    backend.reset()
    expected = backend.forward(rows[:, :3], positions(0, 3))
    backend.forward(rows[:, 3:], positions(3, 9))
    backend.reset()
    np.testing.assert_array_equal(backend.forward(rows[:, :3], positions(0, 3)), expected)


def test_logits_are_not_overwritten_by_the_next_step(backend, rows):
    backend.reset()
    first = backend.forward(rows[:, :3], positions(0, 3))
    copy = first.copy()
    backend.forward(rows[:, 3:4], positions(3, 4))
    np.testing.assert_array_equal(first, copy)


def test_positions_matter_but_do_not_decide_which_slot_is_written(backend, rows):
    backend.reset()
    contiguous = backend.forward(rows, positions(0, 9))
    backend.reset()
    gaps = positions(0, 9) * 3
    spread = backend.forward(rows, gaps)
    assert np.abs(contiguous - spread).max() > 1e-4

    # row by row with the same gaps: the slots are 0, 1, 2 ... all the same
    backend.reset()
    for row in range(9):
        stepped = backend.forward(rows[:, row : row + 1], gaps[:, row : row + 1])
    np.testing.assert_allclose(stepped, spread, atol=1e-5)


def test_the_cache_is_one_buffer_that_is_updated_in_place(directory, rows):
    backend = load(directory, device="cpu", threads=1)
    addresses = [buffer.data_ptr() for buffer in decoder(backend).cache.values.values()]
    assert all(not cache.any() for cache in caches(backend))

    backend.forward(rows[:, :5], positions(0, 5))
    after_prefill = [cache.copy() for cache in caches(backend)]
    for cache in after_prefill:
        assert cache[:, :, :5].all(axis=-1).all()
        assert not cache[:, :, 5:].any()
    backend.forward(rows[:, 5:6], positions(5, 6))

    for before, cache in zip(after_prefill, caches(backend), strict=True):
        np.testing.assert_array_equal(cache[:, :, :5], before[:, :, :5])
        assert cache[:, :, 5].any()
        assert not cache[:, :, 6:].any()
    presents = [value.data_ptr() for value in decoder(backend)._binding.get_outputs()]
    assert set(addresses) <= set(presents)
    assert [cache.ctypes.data for cache in caches(backend)] == addresses


def test_slots_that_are_not_filled_are_never_read(directory, rows):
    backend = load(directory, device="cpu", threads=1)
    clean = backend.forward(rows, positions(0, 9))
    for cache in caches(backend):
        cache[:] = 1e30
    backend.reset()
    np.testing.assert_array_equal(backend.forward(rows, positions(0, 9)), clean)


def test_more_rows_than_the_cache_has_slots_are_refused(engine_dir, tmp_path, rows):
    backend = load(EngineDirectory.open(engine_dir), device="cpu", threads=1)
    capacity = decoder(backend).cache.capacity
    row = rows[:, :1]
    full = np.repeat(row, capacity, axis=1)

    backend.forward(full, positions(0, capacity))
    with pytest.raises(BackendError) as caught:
        backend.forward(row, positions(capacity, capacity + 1))

    assert caught.value.expected == f"at most {capacity} slots"
    assert caught.value.found == f"{capacity} filled and 1 to write"
    backend.reset()
    backend.forward(row, positions(0, 1))


def test_a_shorter_cache_is_allocated_and_gives_the_same(engine_dir, backend, rows):
    short = load(EngineDirectory.open(engine_dir, max_seq_len=60), device="cpu", threads=1)
    assert {cache.shape[2] for cache in caches(short)} == {60}
    backend.reset()
    np.testing.assert_array_equal(
        short.forward(rows, positions(0, 9)), backend.forward(rows, positions(0, 9))
    )
    short.forward(np.repeat(rows[:, :1], 51, axis=1), positions(9, 60))
    with pytest.raises(BackendError, match=r"(?s)at most 60 slots.*larger --max-seq-len"):
        short.forward(rows[:, :1], positions(60, 61))


def test_threads_do_not_change_the_answer(directory, rows):
    one, two = (load(directory, device="cpu", threads=threads) for threads in (1, 2))
    np.testing.assert_allclose(
        one.forward(rows, positions(0, 9)), two.forward(rows, positions(0, 9)), atol=1e-5
    )


def test_without_a_name_the_target_decides(directory):
    assert load_backend(None, directory, device="cpu", threads=1).name.startswith("onnxruntime")


def test_an_unknown_backend_lists_the_known_ones(directory):
    with pytest.raises(OptionError, match=r"(?s)unknown backend 'onnx'.*expected: +onnxruntime"):
        load_backend("onnx", directory, device="cpu", threads=None)


def test_an_unknown_device_lists_the_known_ones(directory):
    with pytest.raises(OptionError, match=r"(?s)unknown device 'tpu'.*cpu, cuda"):
        load_backend(None, directory, device="tpu", threads=None)


@pytest.mark.parametrize("threads", [0, -1, 5000, 2**31, 2**63, 10**30])
def test_threads_that_no_machine_has_are_refused(directory, threads):
    with pytest.raises(OptionError, match="--threads is no number"):
        load_backend(None, directory, device="cpu", threads=threads)


def test_directories_for_tensorrt_fill_the_slots_of_the_cache_in_order(
    backend_for_tensorrt, rows, target_dir
):
    backend = backend_for_tensorrt
    logits = backend.forward(rows[:, :6], positions(0, 6))
    assert all((slots[:, :, 6:] == 0).all() and slots[:, :, :6].all() for slots in caches(backend))
    stepwise = [backend.forward(rows[:, i : i + 1], positions(i, i + 1)) for i in range(6, 9)]
    assert all(slots[:, :, :9].all() for slots in caches(backend))

    same = load(EngineDirectory.open(target_dir("onnxruntime")), device="cpu", threads=1)
    np.testing.assert_allclose(logits, same.forward(rows[:, :6], positions(0, 6)), atol=1e-4)
    np.testing.assert_allclose(stepwise[-1], same.forward(rows[:, 6:], positions(6, 9)), atol=1e-4)


def test_a_nan_in_one_sequence_does_not_reach_the_next(backend_for_tensorrt, rows):
    backend = backend_for_tensorrt
    clean = backend.forward(rows[:, :4], positions(0, 4))
    backend.reset()
    assert np.isnan(backend.forward(rows * np.nan, positions(0, 9))).all()
    backend.reset()
    np.testing.assert_array_equal(backend.forward(rows[:, :4], positions(0, 4)), clean)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_backend_and_a_device(directory, target):
    other = replace(directory, manifest=replace(directory.manifest, target=target))
    expected = "cpu" if target == "onnxruntime" else "cuda"
    assert choose_device(None, other, None) == expected
    assert choose_device("onnxruntime", other, None) == "cpu"
    assert choose_device(None, other, "cpu") == "cpu"


def test_a_dialect_of_another_runtime_is_refused(directory):
    delta = replace(
        directory, manifest=replace(directory.manifest, target="jetpack6", dialect="delta")
    )
    with pytest.raises(BackendError, match=r"(?s)dialect 'delta' on cuda.*ort or onnx"):
        load_backend("onnxruntime", delta, device="cuda", threads=None)


@pytest.mark.parametrize("minimum", ["99.0", "99", f"{ort.__version__}.1"])
def test_an_onnxruntime_older_than_required_is_refused(directory, minimum):
    newer = replace(
        directory, manifest=replace(directory.manifest, requires={"onnxruntime": minimum})
    )
    with pytest.raises(BackendError) as caught:
        load(newer, device="cpu", threads=None)
    assert caught.value.expected == f"onnxruntime {minimum} or newer"
    assert caught.value.found == ort.__version__
    assert caught.value.fix == f'pip install --upgrade "onnxruntime>={minimum}"'


@pytest.mark.parametrize(
    "installed, enough",
    [("1.9.0", False), ("1.21.1", False), ("1.22", True), ("1.22.0rc1", True), ("2.0", True)],
)
def test_versions_are_compared_as_numbers(directory, monkeypatch, installed, enough):
    monkeypatch.setattr(ort, "__version__", installed)
    old = replace(directory, manifest=replace(directory.manifest, requires={"onnxruntime": "1.22"}))
    if enough:
        assert installed in load(old, device="cpu", threads=1).name
    else:
        with pytest.raises(BackendError, match="too old"):
            load(old, device="cpu", threads=1)


@pytest.mark.parametrize("device, extra", [("cpu", "cpu"), ("cuda", "gpu")])
def test_a_missing_onnxruntime_names_the_extra(directory, monkeypatch, device, extra):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError) as caught:
        load(directory, device=device, threads=None)
    assert f'pip install "divprune-edge[{extra}]"' in str(caught.value.fix)


def test_cuda_without_the_gpu_package_is_refused(directory, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"(?s)cannot run on cuda.*divprune-edge\[gpu\]"):
        load(directory, device="cuda", threads=None)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this one has CUDA"
)
def test_a_session_that_fell_back_to_the_cpu_is_refused(directory, monkeypatch):
    # What an onnxruntime-gpu without its CUDA libraries does: a log line and the CPU.
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    half = replace(directory, manifest=replace(directory.manifest, dtype="fp16"))
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(BackendError, match="would have used the CPU instead"),
    ):
        load(half, device="cuda", threads=None)


def test_a_graph_that_onnxruntime_refuses_is_the_users_to_mend(engine_dir, tmp_path):
    broken = copy_engine(engine_dir, tmp_path / "e", files={"llm/model.onnx": b"no graph"})
    with pytest.raises(BackendError, match=r"refuses llm/model.onnx") as caught:
        load(EngineDirectory.open(broken), device="cpu", threads=1)
    assert str(caught.value.fix).startswith("divprune-export ")


@pytest.mark.parametrize("part", ["dtype", "rank", "size", "name"])
def test_a_graph_other_than_the_manifest_describes_is_refused(directory, part):
    graphs = directory.manifest.graphs
    pixels, *rest = graphs["vision"].inputs
    changes = {
        "dtype": {"dtype": "float16"},
        "rank": {"shape": pixels.shape[1:]},
        "size": {"shape": (*pixels.shape[:-1], 99)},
        "name": {"name": "pixels"},
    }
    vision = replace(graphs["vision"], inputs=(replace(pixels, **changes[part]), *rest))
    other = replace(
        directory, manifest=replace(directory.manifest, graphs={**graphs, "vision": vision})
    )
    with pytest.raises(EngineDirectoryError, match=r"vision/model.onnx is not the graph"):
        load(other, device="cpu", threads=1)


def test_a_tensor_that_the_manifest_does_not_know_is_refused(directory):
    graphs = directory.manifest.graphs
    fewer = replace(graphs["vision"], outputs=graphs["vision"].outputs[1:])
    other = replace(
        directory, manifest=replace(directory.manifest, graphs={**graphs, "vision": fewer})
    )
    with pytest.raises(EngineDirectoryError, match=r"found: +also image_features"):
        load(other, device="cpu", threads=1)


def test_a_directory_that_prunes_in_front_of_the_llm_cannot_prune_inside_it(backend, rows):
    with pytest.raises(UnsupportedError, match="does not prune inside the LLM"):
        backend.prefill_pruned(rows, positions(0, 9), [np.arange(1, 5)], [2])


def test_a_long_prompt_goes_through_in_pieces_with_the_same_logits(directory, monkeypatch):
    spec = directory.manifest.graphs["llm"]
    hidden, positions = directory.manifest.model.hidden_size, np.arange(23)[None]
    rows = np.random.default_rng(0).standard_normal((1, 23, hidden))
    rows = rows.astype(next(t.dtype for t in spec.inputs if t.name == "inputs_embeds"))
    backend = load(directory, device="cpu", threads=1)
    backend.reset()
    at_once = backend.forward(rows, positions)
    seen = []
    run = decoder(backend).run
    monkeypatch.setattr(
        decoder(backend), "run", lambda r, *p: seen.append(r.shape[1]) or run(r, *p)
    )
    monkeypatch.setattr(backend, "rows_at_once", 6)
    backend.reset()
    np.testing.assert_allclose(backend.forward(rows, positions), at_once, rtol=1e-3, atol=1e-4)
    assert seen == [5, 6, 6, 6]
    assert decoder(backend).cache.filled == 23
