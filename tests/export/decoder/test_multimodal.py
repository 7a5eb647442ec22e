"""Decoders with three positions a token and vision features for early layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.dialects import DIALECTS, get_dialect
from divprune.export.decoder.graph import DecoderPart, write_decoder
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.graphs.files import save_graph
from divprune.export.graphs.progress import Progress
from divprune.runtime.directory.manifest import CACHE_LENGTH
from divprune.runtime.directory.quant_scheme import INT8, QuantScheme
from divprune.runtime.errors import UnsupportedError

KINDS = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
HIDDEN, HEAD_DIM, SLOTS, ROWS, LAYERS = 32, 16, 16, 11, 4
SECTIONS = {"qwen3_vl_text": [4, 2, 2]}


def text_config(kind: str, **changes: Any) -> Any:
    fields = {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": SECTIONS.get(kind, [2, 3, 3]),
        },
    }
    return transformers.AutoConfig.for_model(kind, **(fields | changes))


class Model:
    """A random text model of transformers, and its tensors as an exporter reads them."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(KINDS.index(kind))
        self.config = text_config(kind)
        self.text: Any = transformers.AutoModel.from_config(self.config).eval()
        with torch.no_grad():
            for name, parameter in self.text.named_parameters():
                scale = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.copy_(scale + 0.2 * torch.randn(parameter.shape))
        self.tensors = {
            f"language_model.{name}": value for name, value in self.text.state_dict().items()
        }

    def packed(self, name: str) -> None:
        return None

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def weights(self, scheme: QuantScheme | None = None) -> WeightSource:
        shapes = {name: tuple(value.shape) for name, value in self.tensors.items()}
        return WeightSource(self, shapes, "fp32", scheme=scheme)  # type: ignore[arg-type]

    def take_over(self, weights: WeightSource) -> None:
        """Make the reference's numbers those that quantised weights stand for."""
        with torch.no_grad():
            for name, parameter in self.text.named_parameters():
                parameter.copy_(weights.reference(f"language_model.{name}"))

    def session(
        self,
        dialect: str,
        path: Path,
        planes: tuple[str, ...] = (),
        scheme: QuantScheme | None = None,
    ) -> onnxruntime.InferenceSession:
        spec = DecoderSpec.from_config(self.config, tied_head=True, planes=planes)
        weights = self.weights(scheme)
        spelling = get_dialect(dialect, quantized=scheme is not None)
        model = write_decoder(spec, spelling, weights, DecoderPart("llm", range(LAYERS), SLOTS))
        save_graph(model, path / "model.onnx", "writing", Progress(bars=False))
        return onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])

    def logits(
        self, rows: np.ndarray, positions: np.ndarray, planes: list[np.ndarray]
    ) -> np.ndarray:
        more: dict[str, Any] = {}
        if planes:
            more["visual_pos_masks"] = torch.ones(1, len(rows), dtype=torch.bool)
            more["deepstack_visual_embeds"] = [torch.from_numpy(plane) for plane in planes]
        with torch.no_grad():
            found = self.text(
                inputs_embeds=torch.from_numpy(rows)[None],
                position_ids=torch.from_numpy(positions),
                attention_mask=torch.ones(1, len(rows), dtype=torch.long),
                use_cache=False,
                **more,
            )
            return (found.last_hidden_state[0] @ self.text.embed_tokens.weight.T).numpy()


def run(
    session: onnxruntime.InferenceSession,
    rows: np.ndarray,
    positions: np.ndarray,
    planes: dict[str, np.ndarray],
    chunks: tuple[int, ...],
) -> np.ndarray:
    """Logits [chunks, vocabulary] of each chunk's last row; the cache is kept here."""
    caches = {
        value.name: np.zeros([SLOTS if d == CACHE_LENGTH else d for d in value.shape], np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    names = [value.name for value in session.get_outputs()]
    logits, start = [], 0
    for count in chunks:
        piece = slice(start, start + count)
        feeds = {
            "inputs_embeds": rows[None, piece],
            "position_ids": positions[..., piece],
            "write_indices": np.array([start]),
            "live_slots": np.arange(start + count),
            **{name: plane[None, piece] for name, plane in planes.items()},
        }
        inputs = {value.name for value in session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in inputs}
        found = dict(zip(names, session.run(None, feeds | caches), strict=True))
        for name, cache in caches.items():
            rest = name.removeprefix("past_")
            if f"present_{rest}" in found:
                caches[name] = found[f"present_{rest}"]
            else:
                cache[:, :, piece] = found[f"new_{rest}"]
        logits.append(found["logits"][0, 0])
        start += count
    return np.stack(logits)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(
        (np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()
    )


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, HIDDEN)).astype(np.float32)


@pytest.fixture(scope="module")
def positions() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, (3, 1, ROWS))


CHUNKS = (6, 3, 1, 1)
ENDS = np.cumsum(CHUNKS) - 1


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_three_positions_a_token_give_the_logits_of_transformers(
    kind: str, dialect: str, rows: np.ndarray, positions: np.ndarray, tmp_path: Path
) -> None:
    model = Model(kind)
    found = run(model.session(dialect, tmp_path), rows, positions, {}, CHUNKS)
    expected = model.logits(rows, positions, [])
    assert error(found, expected[ENDS]) < 1e-5
    for axis in range(3):
        moved = positions.copy()
        moved[axis] += np.arange(ROWS)
        assert error(model.logits(rows, moved, [])[ENDS], expected[ENDS]) > 1e-3


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("count", [3, LAYERS])
def test_planes_are_added_to_what_the_first_layers_make(
    dialect: str, count: int, rows: np.ndarray, positions: np.ndarray, tmp_path: Path
) -> None:
    model = Model("qwen3_vl_text")
    names = tuple(f"deepstack_{i}" for i in range(count))
    values = list(np.random.default_rng(2).standard_normal((count, ROWS, HIDDEN), np.float32))
    session = model.session(dialect, tmp_path, names)
    found = run(session, rows, positions, dict(zip(names, values, strict=True)), CHUNKS)
    expected = model.logits(rows, positions, values)[ENDS]
    assert error(found, expected) < 1e-5
    assert error(model.logits(rows, positions, [])[ENDS], expected) > 1e-2


@pytest.mark.parametrize(
    ("dialect", "scheme"),
    [*((dialect, QuantScheme(4, 32, symmetric=True)) for dialect in DIALECTS), ("ort", INT8)],
)
def test_quantised_weights_leave_positions_and_planes_as_they_are(
    dialect: str, scheme: QuantScheme, rows: np.ndarray, positions: np.ndarray, tmp_path: Path
) -> None:
    model, names = Model("qwen3_vl_text"), ("deepstack_0", "deepstack_1")
    values = list(np.random.default_rng(2).standard_normal((2, ROWS, HIDDEN), np.float32))
    session = model.session(dialect, tmp_path, names, scheme)
    found = run(session, rows, positions, dict(zip(names, values, strict=True)), CHUNKS)
    model.tensors = {name: value.clone() for name, value in model.tensors.items()}
    model.take_over(model.weights(scheme))
    expected = model.logits(rows, positions, values)[ENDS]
    assert error(found, expected) < (0.03 if scheme.bits == 4 else 0.06)  # int8 rounds rows too
    assert error(model.logits(rows, positions, [])[ENDS], expected) > 0.1


@pytest.mark.parametrize("sections", [[2, 3, 2], [2, 3, 4], [8], None, [4, 4, 0, 0]])
@pytest.mark.parametrize("kind", KINDS)
def test_sections_that_do_not_add_up_are_refused(kind: str, sections: list[int] | None) -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    config = text_config(kind)
    config.rope_parameters = parameters
    with pytest.raises(UnsupportedError, match="sections of the multimodal rotary"):
        DecoderSpec.from_config(config, tied_head=False)


def test_interleaved_sections_that_overrun_the_head_are_refused() -> None:
    config = text_config("qwen3_vl_text")
    config.rope_parameters = {**config.rope_parameters, "mrope_section": [0, 4, 4]}
    with pytest.raises(UnsupportedError, match="do not add up"):
        DecoderSpec.from_config(config, tied_head=False)


def test_frequencies_follow_the_axes_of_the_published_models() -> None:
    parameters = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    config = text_config("qwen3_vl_text", head_dim=128, rope_parameters=parameters)
    axes = DecoderSpec.from_config(config, tied_head=False).rotary_axes
    assert axes[:6] == (0, 1, 2, 0, 1, 2)
    assert axes[57:] == (0, 1, 2, 0, 0, 0, 0)
    assert [axes.count(axis) for axis in range(3)] == [24, 20, 20]


def test_a_cut_among_the_layers_with_planes_leaves_each_plane_to_its_layer() -> None:
    model = Model("qwen3_vl_text")
    planes = ("deepstack_0", "deepstack_1", "deepstack_2")
    spec = DecoderSpec.from_config(model.config, tied_head=True, planes=planes)
    weights = model.weights()
    found = []
    for name, layers in (("llm_front", range(2)), ("llm_back", range(2, LAYERS))):
        part = DecoderPart(name, layers, SLOTS)
        graph = write_decoder(spec, get_dialect("ort"), weights, part).graph
        found.append([value.name for value in graph.inputs if value.name in planes])
    assert found == [["deepstack_0", "deepstack_1"], ["deepstack_2"]]


def test_more_planes_than_layers_are_refused() -> None:
    planes = tuple(f"deepstack_{i}" for i in range(LAYERS + 1))
    with pytest.raises(UnsupportedError, match="more decoder layers than there are"):
        DecoderSpec.from_config(text_config("qwen3_vl_text"), tied_head=True, planes=planes)
