"""The LLM graph against transformers: chunks, positions, the cache in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from checkpoints import TINY_CHECKPOINTS
from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.checkpoint.packed_layers import PackedLayer
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.dialects import DIALECTS, get_dialect
from divprune.export.decoder.graph import DecoderPart, write_decoder
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.families.llava import LlavaFamily
from divprune.export.graphs.files import describe_graph, save_graph
from divprune.export.graphs.progress import Progress
from divprune.runtime.directory.manifest import CACHE_LENGTH, LIVE_SLOTS, TensorSpec

MAX_SEQ_LEN = 32
HIDDEN = 64
# Two chunks of prefill, then single steps.
CHUNKS = (6, 3, 1, 1, 1)
ROWS = sum(CHUNKS)
VARIANTS = [
    "clip-llama-v4-gqa2-full",
    "clip-llama-v5-layers-biases",
    "clip-llama-v5-llama3-rope",
    "clip-mistral-hub-gqa1",
    "siglip-llama-v4-linear-rope",
    "siglip-qwen2-v4-tied",
    "siglip-qwen3-v5",
]


class Decoder:
    """An LLM graph on disk, with cache buffers that are its inputs and outputs at once.

    Where the graph yields new rows only, they are written into the buffers as a runtime would.
    """

    def __init__(self, path: Path, model: ir.Model, garbage: float = 0.0) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.spec = describe_graph(model, "llm/model.onnx")
        self.dtype = np.dtype(self.spec.inputs[0].dtype)
        self.cache = {
            tensor.name.removeprefix("past_"): onnxruntime.OrtValue.ortvalue_from_numpy(
                np.full([_size(dim) for dim in tensor.shape], garbage, self.dtype)
            )
            for tensor in self.spec.inputs
            if tensor.name.startswith("past_")
        }
        self.filled = 0
        self.live = 0  # slots that attention looks at; 0 for as many as there are with the new ones

    def forward(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        binding = self.session.io_binding()
        binding.bind_output("logits")
        feeds = {  # alive until the run is over: the binding does not own their memory
            "inputs_embeds": rows[None].astype(self.dtype),
            "position_ids": positions[None].astype(np.int64),
            "write_indices": np.array([self.filled], np.int64),
        }
        if any(tensor.name == LIVE_SLOTS for tensor in self.spec.inputs):
            feeds[LIVE_SLOTS] = np.arange(self.live or self.filled + len(rows))
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        in_place = "present_key_0" in {tensor.name for tensor in self.spec.outputs}
        for name, buffer in self.cache.items():
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            if in_place:
                binding.bind_ortvalue_output(f"present_{name}", buffer)
            else:
                binding.bind_output(f"new_{name}")
        self.session.run_with_iobinding(binding)
        logits, *new = binding.copy_outputs_to_cpu()
        if not in_place:
            for buffer, part in zip(self.cache.values(), new, strict=True):
                assert part.shape[2] == len(rows)
                slots = buffer.numpy().copy()
                slots[:, :, self.filled : self.filled + len(rows)] = part
                buffer.update_inplace(slots)
        self.filled += len(rows)
        assert logits.shape[:2] == (1, 1)
        return logits[0, 0]

    def run(self, rows: np.ndarray, positions: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
        """Logits [chunks, vocabulary]: those of the last row of every chunk."""
        ends = np.cumsum(chunks)
        pieces = [slice(end - count, end) for count, end in zip(chunks, ends, strict=True)]
        return np.stack([self.forward(rows[piece], positions[piece]) for piece in pieces])


def _size(dim: int | str) -> int:
    return MAX_SEQ_LEN if dim == CACHE_LENGTH else int(dim)


class Writer:
    """Writes the decoders of tiny checkpoints, each once."""

    def __init__(self, checkpoint: Callable[[str], Path], folder: Path, dialect: str) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.dialect = dialect
        self.models: dict[tuple[str, str], ir.Model] = {}
        self.weights: dict[tuple[str, str], WeightSource] = {}
        self.sources: dict[tuple[str, str], Counting] = {}

    def __call__(self, name: str, dtype: str = "fp32", garbage: float = 0.0) -> Decoder:
        path = self.folder / f"{name}-{dtype}" / "model.onnx"
        key = (name, dtype)
        if key not in self.models:
            self.models[key] = self.write(key)
            save_graph(self.models[key], path, "writing", Progress(bars=False))
        return Decoder(path, self.models[key], garbage)

    def write(self, key: tuple[str, str], max_bytes: int | None = None) -> ir.Model:
        source: Any = Counting(Checkpoint.open(self.checkpoint(key[0])))
        config = source.checkpoint.config
        family = LlavaFamily(config)
        spec = DecoderSpec.from_config(family.text_config, tied_head=family.tied_head)
        self.sources[key] = source
        self.weights[key] = WeightSource(
            source, expected_tensors(config), key[1], max_bytes=max_bytes
        )
        part = DecoderPart("llm", range(spec.num_layers), MAX_SEQ_LEN)
        model = write_decoder(spec, get_dialect(self.dialect), self.weights[key], part)
        assert source.reads == [], "weights are read when the model is saved"
        return model


class Counting:
    """A checkpoint that remembers what was read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.reads: list[str] = []

    def packed(self, name: str) -> PackedLayer | None:
        return self.checkpoint.packed(name)

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.checkpoint.read(name)


@pytest.fixture(scope="module", params=DIALECTS)
def decoder(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Writer:
    folder = tmp_path_factory.mktemp(f"decoders-{request.param}")
    return Writer(checkpoint, folder, request.param)


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Callable[..., np.ndarray]:
    """transformers' logits [S, vocabulary] of rows at positions, all at once."""
    models: dict[str, Any] = {}

    def run(name: str, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if name not in models:
            kind = transformers.LlavaForConditionalGeneration
            models[name] = kind.from_pretrained(checkpoint(name), dtype=torch.float32).eval()
        model = models[name]
        with torch.no_grad():
            outputs = model.model.language_model(
                inputs_embeds=torch.from_numpy(rows)[None],
                position_ids=torch.from_numpy(positions)[None],
                # Without a mask, transformers takes gaps for the borders of packed texts.
                attention_mask=torch.ones(1, len(rows), dtype=torch.long),
                use_cache=False,
            )
            return model.lm_head(outputs.last_hidden_state[0]).numpy()

    return run


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((ROWS, HIDDEN)).astype(np.float32)


def last_rows(logits: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
    return logits[np.cumsum(chunks) - 1]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.linalg.norm(found - expected, axis=-1)
    return float((difference / np.linalg.norm(expected, axis=-1)).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_in_chunks_and_single_steps_give_the_logits_of_transformers(
    decoder: Writer, reference: Callable[..., np.ndarray], rows: np.ndarray, name: str
) -> None:
    positions = np.arange(ROWS)
    found = decoder(name).run(rows, positions, CHUNKS)
    expected = last_rows(reference(name, rows, positions), CHUNKS)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_positions_turn_the_rotary_embedding_and_nothing_else(
    decoder: Writer, reference: Callable[..., np.ndarray], rows: np.ndarray, name: str
) -> None:
    """Gaps, as original positions have them, and a shift that leaves slots far behind."""
    positions = np.concatenate([np.arange(4), 4 + 7 * np.arange(1, 6), np.arange(300, 303)])
    found = decoder(name).run(rows, positions, CHUNKS)
    expected = last_rows(reference(name, rows, positions), CHUNKS)
    assert relative_error(found, expected) < 1e-5
    contiguous = last_rows(reference(name, rows, np.arange(ROWS)), CHUNKS)
    assert relative_error(found, contiguous) > 1e-3


def test_repeated_positions_are_masked_by_slot(
    decoder: Writer, reference: Callable[..., np.ndarray], rows: np.ndarray
) -> None:
    positions = np.array([0, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5])
    name = VARIANTS[0]
    found = decoder(name).run(rows, positions, CHUNKS)
    expected = last_rows(reference(name, rows, positions), CHUNKS)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_slots_that_were_not_written_have_no_weight(
    decoder: Writer, rows: np.ndarray, dtype: str
) -> None:
    check_garbage_changes_nothing(decoder, rows, 1e4, dtype)


@pytest.mark.parametrize("decoder", ["ort"], indirect=True)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_slots_that_were_not_written_are_never_read(
    decoder: Writer, rows: np.ndarray, garbage: float, dtype: str
) -> None:
    check_garbage_changes_nothing(decoder, rows, garbage, dtype)


def check_garbage_changes_nothing(
    decoder: Writer, rows: np.ndarray, garbage: float, dtype: str
) -> None:
    positions = np.arange(ROWS)
    clean = decoder(VARIANTS[0], dtype).run(rows, positions, CHUNKS)
    dirty = decoder(VARIANTS[0], dtype, garbage).run(rows, positions, CHUNKS)
    np.testing.assert_array_equal(dirty, clean)


@pytest.mark.parametrize("decoder", ["ort", "onnx"], indirect=True)
def test_the_cache_is_written_in_place_and_only_where_rows_came_in(
    decoder: Writer, rows: np.ndarray
) -> None:
    model = decoder(VARIANTS[0], garbage=7.0)
    before = {name: buffer.data_ptr() for name, buffer in model.cache.items()}
    model.run(rows[:9], np.arange(9), (6, 3))
    for name, buffer in model.cache.items():
        assert buffer.data_ptr() == before[name]
        slots = buffer.numpy()
        assert (slots[:, :, 9:] == 7.0).all()
        assert not (slots[:, :, :9] == 7.0).any()


def test_a_sequence_may_start_over_in_a_used_cache(decoder: Writer, rows: np.ndarray) -> None:
    model = decoder(VARIANTS[0])
    first = model.run(rows, np.arange(ROWS), CHUNKS)
    model.filled = 0
    again = model.run(rows, np.arange(ROWS), CHUNKS)
    np.testing.assert_array_equal(again, first)


def test_the_last_slot_can_be_filled(decoder: Writer, reference: Callable[..., np.ndarray]) -> None:
    rows = np.random.default_rng(6).standard_normal((MAX_SEQ_LEN, HIDDEN)).astype(np.float32)
    positions, chunks = np.arange(MAX_SEQ_LEN), (MAX_SEQ_LEN - 1, 1)
    found = decoder(VARIANTS[0]).run(rows, positions, chunks)
    expected = last_rows(reference(VARIANTS[0], rows, positions), chunks)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["clip-llama-v4-gqa2-full", "siglip-qwen3-v5"])
def test_fp16_stays_close_to_float32(
    decoder: Writer, reference: Callable[..., np.ndarray], rows: np.ndarray, name: str
) -> None:
    positions = np.arange(ROWS)
    found = decoder(name, "fp16").run(rows, positions, CHUNKS)
    assert found.dtype == np.float32
    expected = last_rows(reference(name, rows, positions), CHUNKS)
    assert 1e-6 < relative_error(found, expected) < 1e-2


def test_large_activations_do_not_overflow_in_fp16(
    decoder: Writer, reference: Callable[..., np.ndarray], rows: np.ndarray
) -> None:
    """Their squares are far beyond 65504, the largest number of float16."""
    positions, large = np.arange(ROWS), 3000 * rows
    found = decoder(VARIANTS[0], "fp16").run(large, positions, CHUNKS)
    expected = last_rows(reference(VARIANTS[0], large, positions), CHUNKS)
    assert relative_error(found, expected) < 1e-2


def test_weights_that_were_split_give_the_same_logits(
    decoder: Writer, rows: np.ndarray, tmp_path: Path
) -> None:
    name, limit = VARIANTS[0], 20_000
    model = Writer(decoder.checkpoint, tmp_path, decoder.dialect).write((name, "fp32"), limit)
    save_graph(model, tmp_path / "model.onnx", "writing", Progress(bars=False))
    sizes = [value.const_value.nbytes for value in model.graph.initializers.values()]
    assert max(sizes) <= limit < 480 * HIDDEN * 4
    found = Decoder(tmp_path / "model.onnx", model).run(rows, np.arange(ROWS), CHUNKS)
    whole = decoder(name).run(rows, np.arange(ROWS), CHUNKS)
    assert relative_error(found, whole) < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_inputs_and_outputs_are_those_of_the_contract(decoder: Writer, dtype: str) -> None:
    number = {"fp32": "float32", "fp16": "float16"}[dtype]
    spec = decoder("clip-llama-v4-gqa2-full", dtype).spec
    length = CACHE_LENGTH if decoder.dialect == "ort" else MAX_SEQ_LEN
    cache = (1, 2, length, 16)
    parts = [f"{part}_{layer}" for layer in range(3) for part in ("key", "value")]
    assert spec.inputs == (
        TensorSpec("inputs_embeds", number, (1, "sequence", HIDDEN)),
        TensorSpec("position_ids", "int64", (1, "sequence")),
        TensorSpec("write_indices", "int64", (1,)),
        *([] if decoder.dialect == "ort" else [TensorSpec("live_slots", "int64", ("live",))]),
        *(TensorSpec(f"past_{part}", number, cache) for part in parts),
    )
    name, slots = ("new", "sequence") if decoder.dialect == "delta" else ("present", length)
    assert spec.outputs == (
        TensorSpec("logits", "float32", (1, 1, 480)),
        *(TensorSpec(f"{name}_{part}", number, (1, 2, slots, 16)) for part in parts),
    )
    assert spec.opset == {"ort": 20, "onnx": 24, "delta": 17}[decoder.dialect]


@pytest.mark.parametrize("decoder", ["onnx", "delta"], indirect=True)
@pytest.mark.parametrize("live", [ROWS, ROWS + 3, MAX_SEQ_LEN])
def test_logits_do_not_depend_on_how_many_slots_are_looked_at(
    decoder: Writer, rows: np.ndarray, live: int
) -> None:
    expected = decoder(VARIANTS[0]).run(rows, np.arange(ROWS), CHUNKS)
    wider = decoder(VARIANTS[0])
    wider.live = live
    assert relative_error(wider.run(rows, np.arange(ROWS), CHUNKS), expected) < 1e-5


@pytest.mark.parametrize("decoder", ["onnx"], indirect=True)
def test_slots_beyond_the_live_ones_are_not_even_read(decoder: Writer, rows: np.ndarray) -> None:
    expected = decoder(VARIANTS[0]).run(rows, np.arange(ROWS), CHUNKS)
    among_nan = decoder(VARIANTS[0], garbage=np.nan)
    assert relative_error(among_nan.run(rows, np.arange(ROWS), CHUNKS), expected) < 1e-6


@pytest.mark.parametrize("name", TINY_CHECKPOINTS)
def test_every_tensor_of_the_decoder_is_used_and_read_once(decoder: Writer, name: str) -> None:
    decoder(name)
    key = (name, "fp32")
    shapes = expected_tensors(decoder.sources[key].checkpoint.config)
    tensors = {n for n in shapes if n.startswith(("language_model.", "lm_head."))}
    if not TINY_CHECKPOINTS[name].text_options.get("tie_word_embeddings"):
        tensors.remove("language_model.embed_tokens.weight")  # it stays on the host
    assert decoder.weights[key].unused(tensors) == []
    assert sorted(decoder.sources[key].reads) == sorted(tensors)
    values = decoder.models[key].graph.initializers.values()
    assert [value.name for value in values if not value.uses()] == []
