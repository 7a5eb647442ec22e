"""Every selector of the package keeps the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from divprune.export.graphs.lanes import LANES, check_graph
from divprune.export.selection import SELECTORS, Selector, get_selector
from divprune.export.selection.checks import check_count
from divprune.export.selection.contract import cases, check_selector, selection_model
from divprune.export.selection.fixed_order import FixedOrder
from divprune.export.selection.prumerge import PruMerge


@pytest.mark.parametrize("name", SELECTORS)
def test_reference_and_graph_agree_and_keep_the_contract(name: str) -> None:
    check_selector(get_selector(name))


class LastRows(FixedOrder):
    """Keeps the contract; the tests below break it in one place each."""

    name, version = "last-rows", 1
    nested, merges, inside_llm = False, False, False

    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        return np.arange(num_tokens - num_kept, num_tokens)


class OtherGraph(LastRows):
    def write(self, op: Any, features: Any, num_tokens: int, num_kept: int, signals: Any = None):
        order = np.arange(num_kept)
        return op("Identity", op.constant(order, "order"))


class TooMany(LastRows):
    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        return np.arange(num_kept + 1)


class Twice(LastRows):
    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        return np.zeros(num_kept, np.int64)


class BelievedNested(LastRows):
    nested = True


class TakesNaN(LastRows):
    def select(self, features: Any, num_kept: int, signals: Any = None):
        check_count(num_kept, len(features))
        return self.order(len(features), num_kept)


class WrongMixture(PruMerge):
    def mix(self, order: Any, signals: Any) -> npt.NDArray[np.float32]:
        return super().mix(order, signals)[::-1]


def test_a_selector_that_keeps_the_contract_passes() -> None:
    check_selector(LastRows())


@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        (OtherGraph, "graph chooses"),
        (TooMany, "chooses"),
        (Twice, "chooses a token twice"),
        (BelievedNested, "is not nested"),
        (TakesNaN, "the reference takes nan in features"),
        (WrongMixture, "mixtures differ"),
    ],
)
def test_a_selector_that_breaks_the_contract_is_told_where(
    selector: type[Selector], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_selector(selector())


@pytest.mark.parametrize("name", SELECTORS)
def test_loop_state_and_tie_rules_are_such_as_tensorrt_takes(name: str) -> None:
    selector = get_selector(name)
    case = next(cases())
    signals = {signal: case.signals[signal] for signal in selector.needs}
    model = ir.to_proto(selection_model(selector, case.features, 9, signals))
    onnx.checker.check_model(model, full_check=True)
    nodes = list(model.graph.node)
    for loop in [node for node in nodes if node.op_type == "Loop"]:
        body = loop.attribute[0].g
        nodes += body.node
        states = [*body.input[2:], *body.output[1:]]
        assert all(len(value.type.tensor_type.shape.dim) == 2 for value in states)
    assert not {"ArgMin", "ArgMax"} & {node.op_type for node in nodes}
    for top in [node for node in nodes if node.op_type == "TopK"]:
        # Only values are taken of it, or it sorts numbers that are all different.
        largest = next(a.i for a in top.attribute if a.name == "largest")
        read = {name for node in nodes for name in node.input}
        assert largest == 0 or top.output[1] not in read
    num_tokens = len(case.features)
    sizes = [int(np.prod(tensor.dims)) for tensor in model.graph.initializer]
    assert max(sizes) < num_tokens**2


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "jetpack6"])
@pytest.mark.parametrize("name", SELECTORS)
def test_every_target_knows_the_operators(name: str, target: str) -> None:
    selector = get_selector(name)
    case = next(cases())
    signals = {signal: case.signals[signal] for signal in selector.needs}
    model = selection_model(selector, case.features, 9, signals)
    lane = LANES[target]
    assert lane.limits is not None
    model.graph.opset_imports[""] = lane.vision_opset
    check_graph(model, lane.limits)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
