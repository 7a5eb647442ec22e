"""The TensorRT backend on stand-ins for TensorRT and CUDA that compute the same graphs.

What a GPU would do is not tested here; what it is told to do, in which order, with which
shapes and addresses, is: wrong ones give other tokens than ONNX Runtime, or garbage.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune.runtime import Pipeline, SamplingOptions
from divprune.runtime.backends import load_backend, load_selection
from divprune.runtime.backends.tensorrt import backend as tensorrt
from divprune.runtime.backends.tensorrt.backend import TensorRTBackend
from divprune.runtime.cli.bench import main as bench
from divprune.runtime.cli.build import main as build
from divprune.runtime.cli.run import main as run
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import GraphSpec, TensorSpec
from divprune.runtime.errors import BackendError, NumericalError, OptionError
from tests.runtime.engine_copies import copy_engine, read_manifest
from tests.runtime.fake_machine import QUESTION, Machine, answer, picture

pytest.importorskip("onnxruntime")

LONG_QUESTION = QUESTION * 10


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture(scope="module")
def host(engine_dir: Path) -> Pipeline:
    """ONNX Runtime: the truth."""
    return Pipeline.from_dir(engine_dir, threads=1)


@pytest.fixture(params=["onnx", "delta"])
def directory(request: pytest.FixtureRequest, engine_dir: Path, tmp_path: Path) -> Path:
    return write_directory(engine_dir, tmp_path / "e", request.param)


def write_directory(engine_dir: Path, path: Path, dialect: str) -> Path:
    """The graphs of an export for ONNX Runtime, described as those of a TensorRT target."""
    manifest = read_manifest(engine_dir)
    spec, llm = manifest.kv_cache, manifest.decoder_graph("llm")
    files = {"llm/model.onnx": with_fixed_cache(engine_dir / "llm/model.onnx", llm)}
    if dialect == "onnx":
        graphs = manifest.graphs | {"llm": llm}
        fields = {"target": "tensorrt", "dialect": "onnx", "graphs": graphs}
        return copy_engine(engine_dir, path, files=files, **fields)
    shape = (1, spec.num_kv_heads, "sequence", spec.head_dim)
    new = [
        TensorSpec(tensor.name.replace("present_", "new_"), spec.dtype, shape)
        for tensor in llm.outputs[1:]
    ]
    graphs = manifest.graphs | {"llm": replace(llm, outputs=(llm.outputs[0], *new))}
    fields = {"target": "jetpack6", "dialect": "delta", "graphs": graphs}
    return copy_engine(engine_dir, path, files=files, **fields)


def with_fixed_cache(path: Path, described: GraphSpec) -> bytes:
    """The graph with the shapes of ``described``: for TensorRT the cache's length is a number."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path, load_external_data=False)
    shapes = {tensor.name: tensor.shape for tensor in (*described.inputs, *described.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            if isinstance(size, int):
                dim.dim_value = size
    return model.SerializeToString()


@pytest.fixture
def built(machine: Machine, directory: Path) -> Path:
    assert build([str(directory), "-q"]) == 0
    machine.library.script.calls.clear()
    return directory


@pytest.fixture
def pipeline(built: Path) -> Pipeline:
    return Pipeline.from_dir(built)


@pytest.fixture
def load(built: Path) -> Callable[[], TensorRTBackend]:
    def load_it() -> TensorRTBackend:
        backend = load_backend(None, EngineDirectory.open(built), device=None, threads=None)
        assert isinstance(backend, TensorRTBackend)
        return backend

    return load_it


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": 1.0},
        {"keep": 0.04},
        {"images": [picture(1), picture(2)]},
        {"images": [picture(1), picture(2)], "keep": 0.04},
        {"sampling": SamplingOptions(temperature=1.0, top_p=0.9, seed=3)},
        {"max_new_tokens": 1},
    ],
    ids=["as exported", "baseline", "prefix", "two", "two, prefix", "drawn", "one token"],
)
def test_answers_are_those_of_onnxruntime(pipeline, host, options):
    expected, found = answer(host, **options), answer(pipeline, **options)
    assert found.token_ids == expected.token_ids
    assert found.images == expected.images
    assert found.prompt_tokens == expected.prompt_tokens


def test_one_answer_after_another(pipeline, host):
    for options in ({"keep": 1.0}, {}, {"images": picture(5)}, {"keep": 1.0}, {}):
        assert answer(pipeline, **options).token_ids == answer(host, **options).token_ids


def test_the_narrowest_profile_runs_and_steps_become_one_launch(machine, pipeline):
    answer(pipeline)
    executed = machine.executed()
    assert executed[:4] == [("vision", 0), ("llm", 1), ("llm", 0), ("llm", 0)]
    # Eleven steps: the first as it is, the second recorded and launched, the others launched.
    assert len(executed) == 4
    assert machine.cuda.calls.count("launch graph") == 10
    answer(pipeline, keep=1.0, prompt=LONG_QUESTION)
    assert ("llm", 2) in machine.executed()


def test_a_step_is_one_launch_and_one_wait(machine, pipeline, built):
    answer(pipeline, max_new_tokens=4)
    machine.cuda.calls.clear()
    _, step = pipeline._prefiller._start(0, 0, None)
    step(5)
    machine.cuda.calls.clear()
    step(6)
    calls = machine.cuda.calls
    assert ("2D" in calls) == (read_manifest(built).dialect == "delta")
    assert [call for call in calls if call != "2D"] == ["launch graph", "synchronize"]


def test_features_do_not_come_to_the_host(machine, pipeline):
    answer(pipeline)
    machine.cuda.calls.clear()
    answer(pipeline, max_new_tokens=1)
    # Order, cover and broken rows of the picture in one copy, then the best token.
    assert machine.cuda.calls.count("DeviceToHost") == 2
    assert machine.cuda.calls.count("DeviceToDevice") == 1


def test_recording_is_made_anew_when_buffers_move(machine, pipeline, host):
    answer(pipeline)
    assert machine.cuda.calls.count("capture") == 1
    answer(pipeline, keep=1.0, prompt=LONG_QUESTION)  # another profile: the scratch grows
    assert answer(pipeline).token_ids == answer(host).token_ids
    assert machine.cuda.calls.count("destroy graph") == 1
    assert machine.cuda.calls.count("capture") == 2


def test_a_stream_that_cannot_be_recorded_is_said_once_and_works(machine, pipeline, host, caplog):
    machine.cuda.capture_fails = True
    with caplog.at_level("WARNING", "divprune"):
        assert answer(pipeline).token_ids == answer(host).token_ids
    assert caplog.text.count("not recorded as a CUDA graph") == 1


def test_engines_take_turns_where_memory_is_short(machine, built, host):
    record = built / "engines/tensorrt-sm87/record.json"
    assert record.exists()
    machine.cuda.memory_bytes = tensorrt._MARGIN + 1000
    pipeline = Pipeline.from_dir(built)
    for _ in range(2):
        assert answer(pipeline).token_ids == answer(host).token_ids
    assert not pipeline.backend._engines.together
    loads = [call for call in machine.library.script.calls if call[0] == "deserialize"]
    assert len(loads) == 4
    assert len(pipeline.backend._engines._loaded) == 1


def test_engines_take_turns_where_that_is_asked_for(machine, built, host):
    pipeline = Pipeline.from_dir(built, residency="sequential")
    assert answer(pipeline).token_ids == answer(host).token_ids
    assert list(pipeline.backend._engines._loaded) == ["llm"]
    loads = [call for call in machine.library.script.calls if call[0] == "deserialize"]
    assert len(loads) == 2


def test_engines_that_take_turns_are_really_gone(machine, built):
    """Also after steps were recorded: a recording must not keep the engine it was made of."""
    pipeline = Pipeline.from_dir(built, residency="sequential")
    answer(pipeline)
    llm = weakref.ref(pipeline.backend._engines.get("llm"))
    assert machine.cuda.calls.count("launch graph") > 0
    pipeline.backend._engines.get("vision")
    gc.collect()
    assert llm() is None
    expected = answer(pipeline).token_ids
    assert answer(pipeline).token_ids == expected
    assert machine.cuda.graphs == 1  # that of the engine that is there now


def test_an_error_while_steps_are_recorded_leaves_nothing_behind(machine, pipeline, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    _, step = pipeline._prefiller._start(0, 0, None)
    step(5)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.backend._decoder._kernels, "largest_logit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step(6)
    assert machine.cuda.graphs == 0
    assert machine.cuda.cudaStreamSynchronize(pipeline.backend._engines.get("llm")._session.stream)
    answer(pipeline)
    assert machine.cuda.graphs == 1


def test_a_new_sequence_clears_what_the_last_one_wrote_and_no_more(machine, load, built):
    backend = load()
    manifest = read_manifest(built)
    hidden, spec = manifest.model.hidden_size, manifest.kv_cache
    rows = np.zeros((1, 9, hidden), spec.dtype)
    machine.cuda.calls.clear()
    backend.reset()
    assert not [call for call in machine.cuda.calls if call.startswith("Memset")]
    backend.forward(rows, np.arange(9)[np.newaxis])
    backend.forward(rows[:, :1], np.array([[9]]))
    backend.reset()
    cleared = [call for call in machine.cuda.calls if call.startswith("Memset2D")]
    assert sum(int(call.split()[1]) for call in cleared) == 10 * spec.bytes_per_token


def test_a_shape_that_was_refused_is_told_again(machine, load, built):
    """Otherwise the second run would go on with the shape that is in force."""
    backend = load()
    engine = backend._engines.get("llm")
    told = []

    class Refuses:
        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            told.append(shape)
            return False

        def set_tensor_address(self, name: str, address: int) -> bool:
            told.append(address)
            return False

    context = type(engine._make_context(0))(Refuses())
    for _ in range(2):
        assert not context.set_shape("x", (1, 2))
        assert not context.set_address("x", 256)
    assert told == [(1, 2), 256, (1, 2), 256]


@pytest.mark.parametrize("pieces", [True, False])
def test_engines_are_read_in_pieces_where_the_library_can(
    monkeypatch, engine_dir, tmp_path, host, pieces
):
    machine = Machine(monkeypatch, reads_streams=pieces)
    path = write_directory(engine_dir, tmp_path / "s", "onnx")
    assert build([str(path), "-q"]) == 0
    assert answer(Pipeline.from_dir(path)).token_ids == answer(host).token_ids
    assert machine.library.script.calls.count(("read",)) == (2 if pieces else 0)


def test_both_engines_stay_where_they_fit(machine, pipeline):
    answer(pipeline), answer(pipeline)
    loads = [call for call in machine.library.script.calls if call[0] == "deserialize"]
    assert len(loads) == 2


@pytest.mark.parametrize("free, streams", [(10_000, True), (1 << 40, False)])
def test_weights_stream_only_as_far_as_they_do_not_fit(
    monkeypatch, engine_dir, tmp_path, host, free, streams
):
    machine = Machine(monkeypatch, streamable_bytes=1 << 30)
    path = write_directory(engine_dir, tmp_path / "s", "onnx")
    assert build([str(path), "-q", "--weight-streaming"]) == 0
    machine.cuda.memory_bytes = tensorrt._MARGIN + (64 << 20) + free
    pipeline = Pipeline.from_dir(path)
    assert answer(pipeline).token_ids == answer(host).token_ids
    engine = pipeline.backend._engines.get("llm")
    assert engine.streams_weights == streams
    budget = engine._engine.weight_streaming_budget_v2
    assert budget == (1 << 30) if not streams else 0 < budget < 1 << 30
    # Weights that are fetched during a step cannot be part of a recording.
    assert ("capture" in machine.cuda.calls) != streams


def test_memory_is_given_back(machine, load):
    backend = load()
    assert machine.cuda.allocated > 0
    del backend
    gc.collect()
    assert machine.cuda.allocated == 0
    assert machine.cuda._pinned == {}


def test_features_of_pictures_share_buffers_once_nobody_needs_them(machine, load, built):
    backend = load()
    (pixels,) = read_manifest(built).graphs["vision"].inputs
    pixel_values = np.zeros(pixels.shape, np.float32)
    kept = [backend.encode_image({"pixel_values": pixel_values}) for _ in range(2)]
    allocated = machine.cuda.allocated
    del kept
    for _ in range(3):
        backend.encode_image({"pixel_values": pixel_values})
    assert machine.cuda.allocated == allocated


def test_rows_of_the_device_are_those_of_the_host(pipeline, host):
    found, expected = pipeline.image_features(picture(3)), host.image_features(picture(3))
    np.testing.assert_array_equal(np.asarray(found), expected)
    some = np.array([7, 8, 9, 3, 4, 40])
    np.testing.assert_array_equal(np.asarray(found[some]), expected[some])
    np.testing.assert_array_equal(np.asarray(found[some][np.array([5, 0])]), expected[[40, 7]])


def test_features_that_are_not_finite_are_noticed_on_the_device(machine, pipeline, monkeypatch):
    encode = pipeline.backend.encode_image

    def broken(inputs: Mapping[str, np.ndarray]) -> Any:
        return encode({name: np.full_like(array, np.nan) for name, array in inputs.items()})

    monkeypatch.setattr(pipeline.backend, "encode_image", broken)
    with pytest.raises(NumericalError, match=r"(\d+) of \1 tokens are not finite"):
        answer(pipeline)


def test_logits_can_be_read_until_the_next_step(load, built):
    backend = load()
    hidden = read_manifest(built).model.hidden_size
    rows = np.random.default_rng(0).standard_normal((1, 5, hidden)).astype(np.float32)
    first = backend.forward(rows, np.arange(5)[np.newaxis])
    values = first.numpy()
    assert first.best() == (int(values.argmax()), float(values.max()))
    backend.forward(rows[:, :1], np.array([[5]]))
    with pytest.raises(RuntimeError, match="written over"):
        first.numpy()


def test_a_prompt_that_was_replaced_is_refused(pipeline):
    features = pipeline.image_features(picture(0))
    ids = np.array([1, 2])
    first = features.splice(ids, ids == 470, [], pipeline._table)
    features.splice(ids, ids == 470, [], pipeline._table)
    with pytest.raises(RuntimeError, match="another prompt"):
        pipeline.backend.forward(first, np.arange(2)[np.newaxis])


def test_a_full_cache_is_refused(load, built):
    backend, manifest = load(), read_manifest(built)
    rows = np.zeros((1, manifest.max_prefill_len, manifest.model.hidden_size), np.float32)
    backend.forward(rows, np.zeros((1, rows.shape[1]), np.int64))
    backend.forward(rows[:, :1], np.zeros((1, 1), np.int64))
    with pytest.raises(BackendError, match="the KV cache is full"):
        backend.forward(rows[:, :1], np.zeros((1, 1), np.int64))


def test_the_selection_alone_gives_the_same_order(built, pipeline, host):
    select = load_selection(None, EngineDirectory.open(built), device=None, threads=None)
    assert select is not None
    features = host.image_features(picture(4))
    expected = host.encode_image(picture(4)).features.selection_order
    np.testing.assert_array_equal(select(features), expected)
    np.testing.assert_array_equal(select(pipeline.image_features(picture(4))), expected)


def test_the_name_says_library_and_realisation(load):
    assert load().name == "TensorRT 10.16.1.11 (CUDA, selection: loop)"


def test_an_engine_that_does_not_deserialise_says_how_to_build_it(machine, load, built):
    machine.library.script.loads = False
    with pytest.raises(BackendError) as caught:
        load()
    assert caught.value.found == "the plan is not for this platform"
    assert caught.value.fix == f"divprune-build {built} --force"


def test_mismatches_are_said_before_anything_is_deserialised(machine, load, built):
    machine.library.__version__ = "10.17.0"
    with pytest.raises(BackendError, match="another library version") as caught:
        load()
    assert (caught.value.expected, caught.value.found) == ("10.16.1.11", "10.17.0")
    assert machine.library.script.calls == []


def test_out_of_memory_says_what_to_do(machine, load):
    machine.cuda.memory_bytes = 1000
    with pytest.raises(BackendError, match=r"(?s)out of memory.*--weight-streaming"):
        load()


def test_a_directory_without_engines_says_to_build_them(machine, directory, capsys, tmp_path):
    path = tmp_path / "p.png"
    picture(0).save(path)
    assert run([str(directory), str(path)]) == 2
    error = capsys.readouterr().err
    assert "has not been built yet" in error
    assert f"divprune-build {directory}" in error


def test_divprune_run_answers(machine, built, host, capsys, tmp_path):
    path = tmp_path / "p.png"
    picture(0).save(path)
    assert run([str(built), str(path), "--max-new-tokens", "5", "-q"]) == 0
    expected = host.generate(str(path), "Describe the image.", max_new_tokens=5).result.text
    assert capsys.readouterr().out == expected + "\n"


def test_divprune_bench_reports_the_gpus_run(machine, built, capsys):
    options = ["--warmup", "0", "--iters", "1", "--max-new-tokens", "3", "--json", "-q"]
    assert bench([str(built), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["engine"]["backend"] == "TensorRT 10.16.1.11 (CUDA, selection: loop)"
    assert [run["keep"] for run in report["runs"]] == [1.0, 0.1]
    assert report["probe"] is None  # of the CPU, which does not do the work


def test_a_selection_that_cannot_be_timed_alone_is_said_and_left_out(
    machine, engine_dir, tmp_path, capsys
):
    whole = write_directory(engine_dir, tmp_path / "whole", "onnx")
    graphs = dict(read_manifest(whole).graphs)
    del graphs["selection"]
    path = copy_engine(whole, tmp_path / "e", graphs=graphs)
    assert build([str(path), "-q"]) == 0
    options = ["--warmup", "0", "--iters", "1", "--max-new-tokens", "2", "--json", "-q"]
    capsys.readouterr()
    assert bench([str(path), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [run["stages"]["selection"] for run in report["runs"]] == [None, None]
    assert any("not timed on its own" in note for note in report["notes"])


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"threads": 2}])
def test_options_that_mean_nothing_are_refused(built, options):
    arguments = {"device": None, "threads": None} | options
    with pytest.raises(OptionError, match=r"TensorRT"):
        load_backend(None, EngineDirectory.open(built), **arguments)


def test_without_gpu_there_is_nothing_to_run_on(monkeypatch, built):
    monkeypatch.setattr(tensorrt, "find_cuda_device", lambda: None)
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        load_backend(None, EngineDirectory.open(built), device=None, threads=None)


def test_a_plugin_of_the_process_is_registered_before_loading(monkeypatch, machine, built):
    path = built / "engines/tensorrt-sm87/record.json"
    path.write_text(path.read_text().replace('"selection": "loop"', '"selection": "ipluginv3"'))
    seen = []
    monkeypatch.setattr(
        tensorrt, "register_plugin", lambda module: seen.append(list(module.script.calls))
    )
    load_backend(None, EngineDirectory.open(built), device=None, threads=None)
    assert seen == [[]]
