"""Recorded decode steps, on the CPU: the same graph, places and kernel, with nothing recorded."""

from __future__ import annotations

import ctypes
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune.plugins.driver import Driver
from divprune.runtime import Pipeline
from divprune.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from divprune.runtime.backends.onnxruntime.loading import load
from divprune.runtime.backends.onnxruntime.recorded import (
    PROMPT_LENGTHS,
    VARIABLE,
    Recorder,
    wanted_recorder,
)
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import BackendError, EngineDirectoryError, OptionError
from divprune.runtime.generation.sampling import SamplingOptions
from tests.plugins.emulator import EmulatedReductions
from tests.runtime.test_pipeline import make_picture

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

# What the CUDA provider computes on the device, with every output there.
ON_DEVICE = {
    "Add",
    "Cast",
    "Cos",
    "Gather",
    "GroupQueryAttention",
    "MatMul",
    "MatMulNBits",
    "Mul",
    "Reshape",
    "RotaryEmbedding",
    "Sigmoid",
    "SimplifiedLayerNormalization",
    "Sin",
    "Transpose",
}
# Inputs that its kernels read on the host, by place.
ON_HOST = {"GroupQueryAttention": {6: "total_sequence_length"}, "Reshape": {1: "initializer"}}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedReductions:
    return EmulatedReductions(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three positions a token and DeepStack planes."""
    pytest.importorskip("torch", reason="exporting needs torch")
    from qwen_checkpoints import write_qwen_checkpoint

    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    folder = tmp_path_factory.mktemp("qwen")
    source = str(write_qwen_checkpoint(folder / "checkpoint", "qwen3-v5"))
    options = {"keep": 0.3, "dtype": "fp16", "verify": False}
    export_model(ExportOptions(model=source, output=folder / "engine", **options))
    return folder / "engine"


@pytest.fixture(scope="module", params=["fp16", "int4", "qwen3"])
def path(request: pytest.FixtureRequest, target_dir: Callable[..., Path], qwen_dir: Path) -> Path:
    if request.param == "qwen3":
        return qwen_dir
    return target_dir("onnxruntime", "fp16", "int4" if request.param == "int4" else None)


@pytest.fixture
def half(target_dir: Callable[..., Path]) -> EngineDirectory:
    return EngineDirectory.open(target_dir("onnxruntime", "fp16"))


def open_recorded(directory: EngineDirectory, driver: Driver, **options: Any) -> OnnxRuntimeBackend:
    recorder = Recorder("cpu", lambda: driver)
    return load(directory, device="cpu", threads=1, recorder=recorder, **options)


def open_both(
    directory: EngineDirectory, driver: Driver
) -> tuple[OnnxRuntimeBackend, OnnxRuntimeBackend]:
    return open_recorded(directory, driver), load(directory, device="cpu", threads=1)


class Rows:
    """Rows as the decoder takes them."""

    def __init__(self, directory: EngineDirectory) -> None:
        self._model, self._random = directory.manifest.model, np.random.default_rng(0)

    def some(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """``count`` rows and their positions, from ``start`` on."""
        rows = self._random.standard_normal((1, count, self._model.hidden_size)) / 2
        axes = (3, 1) if self._model.position_axes == 3 else (1,)
        positions = np.broadcast_to(np.arange(start, start + count), (*axes, count))
        return rows.astype(np.float16), positions


def check_steps(
    ours: OnnxRuntimeBackend, theirs: OnnxRuntimeBackend, rows: Rows, first: int, last: int
) -> None:
    """Steps for the slots from ``first`` to ``last`` - 1 give the same logits to the last bit."""
    for slot in range(first, last):
        row = rows.some(slot, 1)
        recorded, expected = ours.forward(*row), theirs.forward(*row)
        assert not isinstance(recorded, np.ndarray)
        assert isinstance(expected, np.ndarray)
        best = int(np.argmax(expected))
        assert recorded.best() == (best, float(expected[best]))
        np.testing.assert_array_equal(recorded.numpy(), expected)


# The graph


def test_the_graph_has_nothing_that_cuda_would_leave_to_the_host(path: Path) -> None:
    graph = onnx.load(path / "llm/decode.onnx", load_external_data=False).graph
    initializers = {tensor.name for tensor in graph.initializer}
    assert {node.op_type for node in graph.node} <= ON_DEVICE
    for node in graph.node:
        for place, what in ON_HOST.get(node.op_type, {}).items():
            name = node.input[place]
            assert name == what or (what == "initializer" and name in initializers)
    readers = [node.op_type for node in graph.node if "total_sequence_length" in node.input]
    assert set(readers) == {"GroupQueryAttention"}  # nothing makes a copy of it on the device


def test_the_graph_is_the_decoder_but_for_its_lengths(path: Path) -> None:
    graphs = EngineDirectory.open(path).manifest.graphs
    usual, ours = graphs["llm"], graphs["llm_decode"]
    assert ours.outputs == usual.outputs
    names = [tensor.name for tensor in usual.inputs]
    at = names.index("write_indices")
    names[at : at + 1] = ["seqlens_k", "total_sequence_length", "last_row"]
    assert [tensor.name for tensor in ours.inputs] == names
    made = [Counter(node.op_type for node in nodes(path, name)) for name in ("model", "decode")]
    assert made[0] - made[1] == Counter(["Shape", "Add", "Sub", "Cast", "Cast"])
    assert not made[1] - made[0]


def nodes(path: Path, name: str) -> list[Any]:
    return onnx.load(path / f"llm/{name}.onnx", load_external_data=False).graph.node


def test_weights_are_in_the_decoders_file(half: EngineDirectory) -> None:
    model = onnx.load(half.path / "llm/decode.onnx", load_external_data=False)
    stored = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert stored == {"model.onnx.data"}
    assert not (half.path / "llm/decode.onnx.data").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "fp32"},
        {"dtype": "fp32", "quant": "int8", "vision_quant": "int8"},
        {"dtype": "fp16", "quant": "int4", "prefill_quant": "int8"},
        {"dtype": "fp16", "selector": "fastv", "keep": 0.2},
        {"target": "tensorrt", "dtype": "fp32"},
    ],
)
def test_it_is_left_out_where_nothing_can_record_it(target_dir, options):
    target = options.pop("target", "onnxruntime")
    manifest = EngineDirectory.open(target_dir(target, **options)).manifest
    assert "llm_decode" not in manifest.graphs
    assert "llm/decode.onnx" not in manifest.files


# Steps


def test_every_step_up_to_a_full_cache_gives_the_same_logits(path: Path, driver: Driver) -> None:
    directory = EngineDirectory.open(path, max_seq_len=40)
    (ours, theirs), rows = open_both(directory, driver), Rows(directory)
    prompt = rows.some(0, 9)
    np.testing.assert_array_equal(ours.forward(*prompt), theirs.forward(*prompt))
    check_steps(ours, theirs, rows, 9, 40)
    with pytest.raises(BackendError, match="the KV cache is full") as caught:
        ours.forward(*rows.some(40, 1))
    assert caught.value.expected == "at most 40 slots"
    assert "(CPU, decode: at fixed addresses)" in ours.name


LENGTHS = (16, 32)


@pytest.fixture
def with_prompts(path: Path, driver: Driver) -> OnnxRuntimeBackend:
    recorder = Recorder("cpu", lambda: driver, LENGTHS)
    directory = EngineDirectory.open(path, max_seq_len=64)
    return load(directory, device="cpu", threads=1, recorder=recorder)


def check_close(recorded: Any, expected: np.ndarray) -> None:
    """Padding changes the shape of products, and so the last digits of their sums."""
    assert not isinstance(recorded, np.ndarray)
    assert recorded.best()[0] == int(np.argmax(expected))
    np.testing.assert_allclose(recorded.numpy(), expected, atol=0.02, rtol=0.02)


def test_padded_prompts_give_the_logits_of_their_last_row(path, with_prompts) -> None:
    directory = EngineDirectory.open(path, max_seq_len=64)
    theirs, rows = load(directory, device="cpu", threads=1), Rows(directory)
    for start, count in ((0, 9), (9, 1), (10, 20), (30, 1), (31, 16), (47, 1)):
        piece = rows.some(start, count)
        check_close(with_prompts.forward(*piece), theirs.forward(*piece))
    recorded = with_prompts._residents.decoder().recorded
    assert recorded is not None
    assert recorded.num_steps == 6
    assert "(CPU, prefill and decode: at fixed addresses)" in with_prompts.name
    piece = rows.some(48, 9)  # 16 are just the room that is left
    check_close(with_prompts.forward(*piece), theirs.forward(*piece))
    piece = rows.some(57, 3)  # no room for a padded prompt
    ours, expected = with_prompts.forward(*piece), theirs.forward(*piece)
    assert isinstance(ours, np.ndarray)
    np.testing.assert_allclose(ours, expected, atol=0.02, rtol=0.02)
    for backend in (with_prompts, theirs):
        backend.reset()
    piece = rows.some(0, 5)
    check_close(with_prompts.forward(*piece), theirs.forward(*piece))


def test_rows_that_later_layers_add_are_padded_too(qwen_dir: Path, driver: Driver) -> None:
    directory = EngineDirectory.open(qwen_dir)
    recorder = Recorder("cpu", lambda: driver, LENGTHS)
    ours = load(directory, device="cpu", threads=1, recorder=recorder)
    theirs, rows = load(directory, device="cpu", threads=1), Rows(directory)
    prompt = rows.some(0, 11)
    planes = [rows.some(0, 11)[0] for _ in range(2)]
    check_close(ours.forward(*prompt, planes), theirs.forward(*prompt, planes))
    text = rows.some(11, 7)  # what was added before is zero again
    check_close(ours.forward(*text), theirs.forward(*text))


def test_answers_with_recorded_prompts_are_those_of_the_decoder(
    half: EngineDirectory, driver: Driver
) -> None:
    recorder = Recorder("cpu", lambda: driver, PROMPT_LENGTHS)
    ours = load(half, device="cpu", threads=1, recorder=recorder)
    theirs = load(half, device="cpu", threads=1)
    picture = np.random.default_rng(5).integers(0, 256, (56, 56, 3), np.uint8)
    found = [
        Pipeline(half, backend).generate(picture, "What is it?", max_new_tokens=12).result.token_ids
        for backend in (ours, theirs)
    ]
    assert found[0] == found[1]


def test_a_long_cache_gives_the_logits_of_its_filled_part(
    half: EngineDirectory, driver: Driver
) -> None:
    (ours, theirs), rows = open_both(half, driver), Rows(half)
    assert half.manifest.max_seq_len > 500
    prompt = rows.some(0, half.manifest.max_seq_len - 3)
    np.testing.assert_array_equal(ours.forward(*prompt), theirs.forward(*prompt))
    check_steps(ours, theirs, rows, half.manifest.max_seq_len - 3, half.manifest.max_seq_len)
    for backend in (ours, theirs):
        assert backend.reset(5) == 5  # what a second turn keeps of the first
    prompt = rows.some(5, 4)
    np.testing.assert_array_equal(ours.forward(*prompt), theirs.forward(*prompt))
    check_steps(ours, theirs, rows, 9, 14)
    for backend in (ours, theirs):
        backend.reset()
    check_steps(ours, theirs, rows, 0, 3)


@pytest.mark.parametrize("slots", [None, 60])
def test_kernels_are_told_the_length_of_the_whole_cache(
    half: EngineDirectory, driver: Driver, slots: int | None
) -> None:
    """The CPU's kernel goes by seqlens_k alone, so no answer here depends on it."""
    directory = EngineDirectory.open(half.path, max_seq_len=slots)
    recorded = open_recorded(directory, driver)._residents.decoder().recorded
    assert recorded is not None
    told = recorded._recordings[1].values["total_sequence_length"]
    assert told.numpy().tolist() == [slots or half.manifest.max_seq_len]
    assert told.device_name() == "cpu"


def test_a_row_with_planes_is_not_taken_for_text(qwen_dir: Path, driver: Driver) -> None:
    directory = EngineDirectory.open(qwen_dir)
    (ours, theirs), rows = open_both(directory, driver), Rows(directory)
    planes = [rows.some(0, 1)[0] for _ in range(2)]
    row = rows.some(0, 1)
    expected = theirs.forward(*row, planes)
    np.testing.assert_array_equal(ours.forward(*row, planes), expected)
    check_steps(ours, theirs, rows, 1, 3)


def test_answers_and_conversations_have_the_same_token_ids(path: Path, driver: Driver) -> None:
    directory = EngineDirectory.open(path)
    pipelines = [Pipeline(directory, backend) for backend in open_both(directory, driver)]
    turns: list[dict[str, Any]] = []
    for number in range(3):
        content = [
            {"type": "image", "image": make_picture(number)},
            {"type": "text", "text": "And this?"},
        ]
        turns = [*turns, {"role": "user", "content": content[number == 1 :]}]
        for sampling in (SamplingOptions(), SamplingOptions(temperature=0.8, seed=number)):
            ours, theirs = (
                each.chat(turns, max_new_tokens=8, ignore_eos=True, sampling=sampling).result
                for each in pipelines
            )
            assert ours.token_ids == theirs.token_ids
            assert ours.cached_tokens == theirs.cached_tokens
        turns = [*turns, {"role": "assistant", "content": ours.text or "nothing"}]
    assert "decode:" in ours.backend


def test_sequential_residency_opens_the_recording_anew(
    half: EngineDirectory, driver: Driver
) -> None:
    ours = Pipeline(half, open_recorded(half, driver, residency="sequential"))
    theirs = Pipeline(half, load(half, device="cpu", threads=1))
    for number in range(2):
        picture = make_picture(number)
        results = [
            each.generate(picture, "What?", max_new_tokens=6, ignore_eos=True).result
            for each in (ours, theirs)
        ]
        assert results[0].token_ids == results[1].token_ids


def test_logits_that_were_written_over_are_not_given_out(
    half: EngineDirectory, driver: Driver
) -> None:
    ours, rows = open_recorded(half, driver), Rows(half)
    first = ours.forward(*rows.some(0, 1))
    ours.forward(*rows.some(1, 1))
    assert not isinstance(first, np.ndarray)
    for read in (first.best, first.numpy):
        with pytest.raises(RuntimeError, match="the next step has written over"):
            read()


def test_no_picture_is_encoded_beside_a_recording(half: EngineDirectory, driver: Driver) -> None:
    ours, theirs = open_both(half, driver)
    assert (ours.encodes_beside_decoding, theirs.encodes_beside_decoding) == (False, True)


# What is refused


def test_nothing_is_recorded_unless_asked_for():
    assert wanted_recorder({}) is wanted_recorder({VARIABLE: "0"}) is None
    for choice, lengths in (("1", ()), ("all", PROMPT_LENGTHS)):
        recorder = wanted_recorder({VARIABLE: choice})
        assert recorder is not None
        assert recorder.lengths == lengths


def test_another_value_is_refused(half, monkeypatch):
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(OptionError, match=r"(?s)DIVPRUNE_CUDA_GRAPHS.*0 or 1 or all.*yes"):
        load(half, device="cuda", threads=1)
    load(half, device="cpu", threads=1)  # there is nothing to record


def test_what_is_asked_for_reaches_the_session(half, driver, monkeypatch):
    """As far as the library: the session itself cannot start on CUDA here."""
    seen = []

    def refuse(*_: object, providers: list[Any], **__: object) -> None:
        seen.append(providers[0])
        raise RuntimeError("no CUDA")

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    recorder = Recorder("cuda", lambda: driver)
    with pytest.raises(BackendError, match=r"refuses llm/model.onnx"):
        load(half, device="cuda", threads=1, recorder=recorder)
    stream = seen[0][1]["user_compute_stream"]
    assert seen == [
        (
            "CUDAExecutionProvider",
            {"use_tf32": "0", "enable_cuda_graph": "1", "user_compute_stream": stream},
        ),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
    ]
    assert int(stream) > 0
    assert not recorder.is_on


def test_without_the_graph_steps_run_one_by_one(target_dir, driver, caplog):
    directory = EngineDirectory.open(target_dir("onnxruntime", "fp32"))
    with caplog.at_level(logging.WARNING, "divprune"):
        backend = open_recorded(directory, driver)
    assert "has no llm/decode.onnx" in caplog.text
    assert backend.name == f"onnxruntime {ort.__version__} (CPU, decode: not recorded)"
    assert backend.encodes_beside_decoding


def test_without_a_driver_steps_run_one_by_one(half, tmp_path, caplog):
    def no_driver() -> Driver:
        return Driver(ctypes.CDLL(str(tmp_path / "libcuda.so")))

    rows = Rows(half)
    with caplog.at_level(logging.WARNING, "divprune"):
        backend = load(half, device="cpu", threads=1, recorder=Recorder("cpu", no_driver))
    assert "decode steps are not recorded as CUDA graphs, but run one by one" in caplog.text
    assert isinstance(backend.forward(*rows.some(0, 1)), np.ndarray)


def test_a_graph_other_than_the_manifest_describes_is_an_error(half, driver):
    spec = half.manifest.graphs["llm_decode"]
    vision = replace(spec, path=half.manifest.graphs["vision"].path)
    other = replace(half.manifest, graphs={**half.manifest.graphs, "llm_decode": vision})
    with pytest.raises(EngineDirectoryError, match="is not the graph that manifest"):
        open_recorded(replace(half, manifest=other), driver)


def test_a_sequence_goes_on_where_a_recording_fails(half, driver, caplog):
    (ours, theirs), rows = open_both(half, driver), Rows(half)
    prompt = rows.some(0, 6)
    np.testing.assert_array_equal(ours.forward(*prompt), theirs.forward(*prompt))
    check_steps(ours, theirs, rows, 6, 8)
    recorded = ours._residents.decoder().recorded
    assert recorded is not None
    binding = recorded._recordings[1].binding
    binding.clear_binding_outputs()  # the library runs into it, as into any refusal
    binding.bind_ortvalue_output("logits", recorded._best)  # of another type and shape
    with caplog.at_level(logging.WARNING, "divprune"):
        row = rows.some(8, 1)
        np.testing.assert_array_equal(ours.forward(*row), theirs.forward(*row))
    assert "decode steps are not recorded" in caplog.text
    for slot in range(9, 12):
        row = rows.some(slot, 1)
        np.testing.assert_array_equal(ours.forward(*row), theirs.forward(*row))
    assert "decode: not recorded" in ours.name
