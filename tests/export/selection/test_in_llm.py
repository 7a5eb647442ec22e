"""Selectors between decoder layers: definition, NumPy reference and deployed graph agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection import (
    IN_LLM_FLAGS,
    IN_LLM_SELECTORS,
    InLLMSelector,
    get_in_llm_selector,
)
from divprune.export.selection.contract import check_order
from divprune.export.selection.greedyprune import (
    greedy_salient,
    salient_regret,
    write_greedy_salient,
)
from divprune.export.selection.sizes import size_of
from divprune.runtime.errors import NumericalError, OptionError

N, WIDTH, HEADS, KV_HEADS, HEAD_DIM, SLOTS = 24, 16, 4, 2, 8, 48
SPANS = np.r_[5:9, 12 : N + 8]
"""Slots of a picture in two spans with three rows of text between them."""

Values = Mapping[str, np.ndarray]


def graph(selector: InLLMSelector, values: Values, num_kept: int, *, open_: bool = False) -> bytes:
    """The subgraph alone; ``open_`` leaves the length of the cache to the runtime."""
    op = GraphWriter()
    types = {np.dtype("float32"): ir.DataType.FLOAT, np.dtype("int64"): ir.DataType.INT64}
    shapes = {name: values[name].shape for name in selector.inputs}
    if open_:
        shapes["keys"] = (1, KV_HEADS, "max_seq_len", HEAD_DIM)
    inputs = {
        name: ir.val(name, types[values[name].dtype], shapes[name]) for name in selector.inputs
    }
    return serialised(op, list(inputs.values()), selector.write(op, inputs, N, num_kept))


def serialised(op: GraphWriter, inputs: list[ir.Value], order: ir.Value) -> bytes:
    order.name, order.shape, order.dtype = "order", ir.Shape(["K"]), ir.DataType.INT64
    found = ir.Graph(
        inputs,
        [order],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": 20},
        name="selection",
    )
    return ir.to_proto(ir.Model(found, ir_version=10)).SerializeToString()


def session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def deployed(selector: InLLMSelector, values: Values, num_kept: int) -> np.ndarray:
    feeds = {name: values[name] for name in selector.inputs}
    (order,) = session(graph(selector, values, num_kept)).run(None, feeds)
    assert order.dtype == np.int64
    return order


def random_values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "visual_states": normal(N, WIDTH),
        "last_state": normal(1, WIDTH),
        "last_query": normal(1, 1, HEADS * HEAD_DIM),
        "keys": normal(1, KV_HEADS, SLOTS, HEAD_DIM),
        "visual_slots": SPANS,
        "num_slots": np.array([N + 9], np.int64),
    }


def adversarial_values() -> dict[str, dict[str, np.ndarray]]:
    """Ties, duplicates, zeros, and sizes far apart."""
    base = random_values(0)
    equal = np.ones_like(base["visual_states"])
    pairs = np.repeat(base["visual_states"][: N // 2], 2, axis=0)
    zeros = base["visual_states"].copy()
    zeros[::3] = 0
    sizes = base["visual_states"] * np.logspace(-6, 6, N, dtype=np.float32)[:, None]
    return {
        "all-equal": base | {"visual_states": equal, "keys": np.ones_like(base["keys"])},
        "pairs": base | {"visual_states": pairs},
        "zero-rows": base | {"visual_states": zeros, "last_query": 0 * base["last_query"]},
        "last-is-zero": base | {"last_state": 0 * base["last_state"]},
        "sizes": base | {"visual_states": sizes},
        "sharp": base | {"last_query": 80 * base["last_query"]},
    }


CHOOSING = [
    get_in_llm_selector("greedyprune", tau=0.9),
    get_in_llm_selector("greedyprune", tau=0.1),
    get_in_llm_selector("greedyprune", tau=-0.9),
    get_in_llm_selector("greedyprune", tau=1.0),
    get_in_llm_selector("fastv"),
]
IDS = [f"{selector.name}-{selector.parameters.get('tau', '')}" for selector in CHOOSING]


@pytest.mark.parametrize("selector", CHOOSING, ids=IDS)
@pytest.mark.parametrize("num_kept", [1, 7, N])
def test_the_graph_chooses_as_the_reference_on_random_numbers(
    selector: InLLMSelector, num_kept: int
) -> None:
    for seed in range(6):
        values = random_values(seed)
        reference = selector.select(values, N, num_kept)
        check_order(selector.name, reference, num_kept, N)
        np.testing.assert_array_equal(deployed(selector, values, num_kept), reference)
        assert selector.regret(values, N, reference) <= 1e-6


@pytest.mark.parametrize("selector", CHOOSING, ids=IDS)
@pytest.mark.parametrize("case", adversarial_values())
def test_the_graph_is_a_right_choice_on_adversarial_numbers(
    selector: InLLMSelector, case: str
) -> None:
    values = adversarial_values()[case]
    for num_kept in (1, 9, N):
        order = deployed(selector, values, num_kept)
        check_order(selector.name, order, num_kept, N)
        assert selector.regret(values, N, order) <= 1e-5
        check_order(selector.name, selector.select(values, N, num_kept), num_kept, N)


@pytest.mark.parametrize("selector", CHOOSING, ids=IDS)
def test_a_prefix_is_what_the_smaller_count_chooses(selector: InLLMSelector) -> None:
    assert selector.nested
    values = random_values(3)
    longest = selector.select(values, N, N)
    for num_kept in range(1, N):
        np.testing.assert_array_equal(selector.select(values, N, num_kept), longest[:num_kept])


@pytest.mark.parametrize("selector", CHOOSING, ids=IDS)
def test_a_choice_turned_round_has_a_large_regret(selector: InLLMSelector) -> None:
    values = random_values(4)
    order = selector.select(values, N, 8)
    assert selector.regret(values, N, order[::-1]) > 1e-3
    assert selector.regret(values, N, np.full(2, order[0])) > 1e-3


@pytest.mark.parametrize("selector", CHOOSING, ids=IDS)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nan_is_refused_by_the_reference_and_ends_the_graph_with_indices_in_range(
    selector: InLLMSelector, broken: float
) -> None:
    values = random_values(5)
    for name in ("visual_states", "last_query"):
        values[name].flat[3] = broken
    with pytest.raises(NumericalError):
        selector.select(values, N, 4)
    order = deployed(selector, values, 4)
    assert order.shape == (4,)
    assert ((order >= 0) & (order < N)).all()


@pytest.mark.parametrize("selector", CHOOSING, ids=IDS)
@pytest.mark.parametrize("num_kept", [0, N + 1])
def test_a_count_outside_the_range_is_refused(selector: InLLMSelector, num_kept: int) -> None:
    with pytest.raises(OptionError):
        selector.select(random_values(0), N, num_kept)
    with pytest.raises(OptionError):
        graph(selector, random_values(0), num_kept)


def by_definition(cosines: np.ndarray, tau: float) -> list[int]:
    """Sorted by saliency, stable; what is too close to a kept one waits, in that order."""
    saliency = cosines[-1, :-1]
    ranked = sorted(range(len(saliency)), key=lambda token: -saliency[token])
    kept: list[int] = []
    for token in ranked:
        if not any(cosines[other, token] > np.float32(tau) for other in kept):
            kept.append(token)
    return kept + [token for token in ranked if token not in kept]


@pytest.mark.parametrize("tau", [-0.5, 0.0, 0.25, 0.5, 0.9, 1.0])
def test_greedyprune_is_its_definition_given_the_same_cosines(tau: float) -> None:
    """Quantised cosines: ties everywhere, and many that equal tau, which is not above it."""
    rng = np.random.default_rng(11)
    op = GraphWriter()
    cosines = ir.val("cosines", ir.DataType.FLOAT, (N + 1, N + 1))
    run = session(serialised(op, [cosines], write_greedy_salient(op, cosines, tau, N, N)))
    for _ in range(20):
        table = np.round(rng.uniform(-1, 1, (N + 1, N + 1)) * 4).astype(np.float32) / 4
        table = np.minimum(table, table.T)
        expected = by_definition(table, tau)
        found = greedy_salient(table, tau, N)
        assert found.tolist() == expected
        assert run.run(None, {"cosines": table})[0].tolist() == expected
        assert salient_regret(table, tau, found) == 0


def test_fastv_is_the_softmax_of_the_filled_slots_and_reads_no_other() -> None:
    selector = get_in_llm_selector("fastv")
    values = random_values(8)
    filled = int(values["num_slots"][0])
    values["keys"][:, :, filled:] = np.nan
    query, keys = values["last_query"].reshape(HEADS, HEAD_DIM), values["keys"][0, :, :filled]
    weights = np.zeros(filled)
    for head in range(HEADS):
        scores = keys[head // (HEADS // KV_HEADS)] @ query[head] / math.sqrt(HEAD_DIM)
        weights += np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    expected = np.argsort(-weights[SPANS], kind="stable")[:10]
    np.testing.assert_array_equal(selector.select(values, N, 10), expected)
    np.testing.assert_array_equal(deployed(selector, values, 10), expected)


def test_fastv_takes_a_cache_of_any_length_where_the_graph_leaves_it_open() -> None:
    selector, values = get_in_llm_selector("fastv"), random_values(9)
    chosen = session(graph(selector, values, 7, open_=True))
    for slots in (N + 9, SLOTS):
        feeds = {name: values[name] for name in selector.inputs}
        feeds["keys"] = np.ascontiguousarray(values["keys"][:, :, :slots])
        np.testing.assert_array_equal(chosen.run(None, feeds)[0], selector.select(values, N, 7))


@pytest.mark.parametrize("selector", [CHOOSING[0], CHOOSING[-1]], ids=["greedyprune", "fastv"])
def test_one_graph_takes_pictures_of_any_size(selector: InLLMSelector) -> None:
    values = random_values(4)
    types = {np.dtype("float32"): ir.DataType.FLOAT, np.dtype("int64"): ir.DataType.INT64}
    shapes = {name: values[name].shape for name in selector.inputs}
    varying = {"visual_states": ("tokens", WIDTH), "visual_slots": ("tokens",)}
    shapes |= {name: shape for name, shape in varying.items() if name in shapes}
    inputs = {
        name: ir.val(name, types[values[name].dtype], shape) for name, shape in shapes.items()
    }
    slots = ir.val("kept_slots", ir.DataType.INT32, ["kept"])
    op = GraphWriter()
    (tokens,) = (value for name, value in inputs.items() if name in varying)
    sizes = size_of(op, tokens), size_of(op, slots)
    order = selector.write(op, inputs, *sizes)
    chosen = session(serialised(op, [*inputs.values(), slots], order))
    for num_tokens, num_kept in ((N, 7), (1, 1), (13, 13), (N, N)):
        given = values | {name: values[name][:num_tokens] for name in varying}
        expected = selector.select(given, num_tokens, num_kept)
        feeds = {name: given[name] for name in shapes}
        feeds["kept_slots"] = np.zeros(num_kept, np.int32)
        np.testing.assert_array_equal(chosen.run(None, feeds)[0], expected)


@pytest.mark.parametrize("selector", [CHOOSING[0], CHOOSING[-1]], ids=["greedyprune", "fastv"])
def test_tensorrt_rtx_builds_the_graph(selector: InLLMSelector) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(graph(selector, random_values(0), 7))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert builder.build_serialized_network(network, builder.create_builder_config()) is not None


def test_vtw_keeps_nothing_and_refuses_to() -> None:
    selector = get_in_llm_selector("vtw")
    order = selector.select({}, N, 0)
    assert order.tolist() == []
    assert selector.regret({}, N, order) == 0
    assert selector.regret({}, N, np.array([1])) == math.inf
    for refuse in (selector.select, lambda *a: selector.write(GraphWriter(), *a)):
        with pytest.raises(OptionError, match="keeps no visual token"):
            refuse({}, N, 1)


def test_flags_and_defaults_are_those_of_the_registry() -> None:
    assert IN_LLM_FLAGS.keys() == IN_LLM_SELECTORS.keys()
    parameters: dict[str, Any] = {n: get_in_llm_selector(n).parameters for n in IN_LLM_SELECTORS}
    assert parameters == {
        "greedyprune": {"layer": 2, "tau": 0.9},
        "fastv": {"layer": 2},
        "vtw": {"layer": 15},
    }
    for name, flags in IN_LLM_FLAGS.items():
        selector = get_in_llm_selector(name, layer=7, tau=0.3)
        assert set(selector.parameters) == set(flags) - {"keep"}
        assert selector.layer == 7
        assert (selector.name, selector.inside_llm, selector.merges) == (name, True, False)
