"""What every selector has to keep, as one check: for this package's and for others'.

    from divprune.export.selection.contract import check_selector
    check_selector(MySelector())

It compares the NumPy reference with the subgraph on ONNX Runtime, on random and on awkward
inputs, and raises ``AssertionError`` with the case in its message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.protocol import SIGNALS, Arrays, Selector
from divprune.runtime.errors import NumericalError, OptionError

__all__ = [
    "Case",
    "cases",
    "check_case",
    "check_order",
    "check_selector",
    "run_graph",
    "selection_model",
]

_TOLERANCE = 1e-5
"""Regret of a choice, and relative error of a mixture, that float32 rounding explains."""
_OPSET = 20
_WIDTH = 12


@dataclass(frozen=True)
class Case:
    """Features [N, D] and all signals of one made-up picture."""

    name: str
    features: npt.NDArray[np.float32]
    signals: Arrays


def check_selector(selector: Selector) -> None:
    """Check ``selector`` on every case and several counts.

    Raises:
        AssertionError: naming case, count and what does not hold.
    """
    for case in cases():
        num_tokens = len(case.features)
        asked = {1, 2, num_tokens // 3, num_tokens - 1, num_tokens}
        counts = {selector.count(num_tokens, k) for k in asked if 1 <= k <= num_tokens}
        for num_kept in sorted(counts):
            check_case(selector, case, num_kept)
    _check_refusals(selector)


def check_case(selector: Selector, case: Case, num_kept: int) -> None:
    """Check reference and graph on one case.

    Raises:
        AssertionError: naming case, count and what does not hold.
    """
    where = f"{selector.name}, {case.name}, {num_kept} of {len(case.features)}"
    features = case.features
    signals = {name: case.signals[name] for name in selector.needs}
    expected = selector.select(features, num_kept, signals)
    order, mixed = run_graph(selector, features, num_kept, signals)
    for who, found in (("reference", expected), ("graph", order)):
        check_order(f"{where}: {who}", found, num_kept, len(features))
    regret = selector.regret(features, order, signals)
    assert np.array_equal(order, expected) or regret <= _TOLERANCE, (
        f"{where}: graph chooses {order.tolist()}, reference {expected.tolist()}, "
        f"and its choices are worse by up to {regret:g}"
    )
    assert selector.regret(features, expected, signals) <= _TOLERANCE, f"{where}: own regret"
    if selector.nested:
        for smaller in {1, num_kept // 2} - {0}:
            prefix = selector.select(features, smaller, signals)
            assert np.array_equal(prefix, expected[:smaller]), f"{where}: is not nested"
    if mixed is not None:
        _check_mixture(where, mixed, selector.mix(order, signals), num_kept)


def check_order(where: str, order: npt.NDArray[np.int64], num_kept: int, num_tokens: int) -> None:
    """Check that ``order`` chooses exactly ``num_kept`` different tokens of ``num_tokens``.

    Raises:
        AssertionError: beginning with ``where``, which says whose order it is.
    """
    assert order.dtype == np.int64, f"{where} gives {order.dtype}"
    assert order.shape == (num_kept,), f"{where} chooses {order.shape}, not {num_kept}"
    assert len(np.unique(order)) == num_kept, f"{where} chooses a token twice"
    assert order.min() >= 0, f"{where} chooses a token below 0"
    assert order.max() < num_tokens, f"{where} chooses a token beyond the last"


def _check_mixture(
    where: str,
    found: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    num_kept: int,
) -> None:
    assert expected.dtype == found.dtype == np.float32, f"{where}: mixtures are not float32"
    assert expected.shape == found.shape, f"{where}: mixtures {found.shape}, {expected.shape}"
    assert len(found) == num_kept, f"{where}: {len(found)} mixtures"
    error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)
    assert error <= _TOLERANCE, f"{where}: mixtures differ by {error:g}"


def _check_refusals(selector: Selector) -> None:
    """Counts outside 1..N are refused; numbers that are none are, and the graph still ends."""
    case = next(cases())
    num_tokens = len(case.features)
    signals = {name: case.signals[name] for name in selector.needs}
    for num_kept in (0, num_tokens + 1):
        try:
            selector.select(case.features, num_kept, signals)
        except OptionError:
            continue
        raise AssertionError(f"{selector.name} keeps {num_kept} of {num_tokens}")
    num_kept = selector.count(num_tokens, 9)
    for bad in (np.nan, np.inf, -np.inf):
        arrays = {"features": case.features, **signals}
        for name in arrays:
            broken = {key: array.copy() for key, array in arrays.items()}
            broken[name].reshape(num_tokens, -1)[3, 0] = bad
            features = broken.pop("features")
            order, _ = run_graph(selector, features, num_kept, broken)
            in_range = order.shape == (num_kept,) and 0 <= order.min() <= order.max() < num_tokens
            assert in_range, f"{selector.name}: {bad} in {name} leads the graph to {order}"
            assert _refuses(selector, features, num_kept, broken), (
                f"{selector.name}: the reference takes {bad} in {name}"
            )


def _refuses(
    selector: Selector, features: npt.NDArray[np.float32], num_kept: int, signals: Arrays
) -> bool:
    try:
        order = selector.select(features, num_kept, signals)
        if selector.merges and selector.needs:
            selector.mix(order, signals)
    except NumericalError:
        return True
    return False


def cases() -> Iterator[Case]:
    """Made-up pictures: clouds, clusters, duplicates, zeros, all equal, one token."""
    rng = np.random.default_rng(7)
    cloud = rng.standard_normal((49, _WIDTH)).astype(np.float32)
    yield _case("cloud", cloud, rng)
    yield _case("cloud with a class token", cloud[np.r_[0, :49]] * 3, rng)
    centres = rng.standard_normal((4, _WIDTH))
    near = centres[rng.integers(0, 4, 36)] + 1e-3 * rng.standard_normal((36, _WIDTH))
    yield _case("clusters", near.astype(np.float32), rng)
    duplicates = cloud[rng.integers(0, 6, 40)]
    yield _case("duplicates", duplicates, rng)
    yield _case("duplicates, equal attention", duplicates, None)
    yield _case("all equal", np.full((25, _WIDTH), 0.5, np.float32), None)
    yield _case("zeros", np.zeros((16, _WIDTH), np.float32), None)
    yield _case("orthogonal", np.eye(_WIDTH, dtype=np.float32), rng)
    yield _case("opposite", np.concatenate([cloud[:8], -cloud[:8]]), rng)
    yield _case("tiny and huge", cloud * np.float32(10) ** rng.integers(-9, 9, (49, 1)), rng)
    yield _case("two", cloud[:2], rng)
    yield _case("one", cloud[:1], rng)


def _case(name: str, features: npt.NDArray[np.floating], rng: np.random.Generator | None) -> Case:
    """Signals of a softmax's kind; equal ones, and keys like the features, without ``rng``."""
    features = features.astype(np.float32)
    signals = {}
    for signal, shape in SIGNALS.items():
        if shape.startswith("[N]"):
            logits = rng.standard_normal(len(features)) if rng else np.zeros(len(features))
            signals[signal] = (np.exp(2 * logits) / np.exp(2 * logits).sum()).astype(np.float32)
        else:
            noise = rng.standard_normal((len(features), 8)) if rng else features[:, :8]
            signals[signal] = noise.astype(np.float32)
    return Case(name, features, signals)


def run_graph(
    selector: Selector, features: npt.NDArray[np.float32], num_kept: int, signals: Arrays
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """The selector's subgraph on ONNX Runtime: the order, and mixtures where there are any."""
    import onnxruntime

    model = ir.to_proto(selection_model(selector, features, num_kept, signals))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    order, *mixed = session.run(None, {"image_features": features, **signals})
    return order, mixed[0] if mixed else None


def selection_model(
    selector: Selector, features: npt.NDArray[np.float32], num_kept: int, signals: Arrays
) -> ir.Model:
    """A model of the subgraph alone, with inputs of the shapes of these arrays."""
    arrays = {"image_features": features, **signals}
    inputs = {name: ir.val(name, ir.DataType.FLOAT, array.shape) for name, array in arrays.items()}
    values = {name: value for name, value in inputs.items() if name != "image_features"}
    op = GraphWriter()
    order = selector.write(op, inputs["image_features"], len(features), num_kept, values)
    order.name, order.type = "selection_order", ir.TensorType(ir.DataType.INT64)
    order.shape = ir.Shape([num_kept])
    outputs = [order]
    if selector.merges and selector.needs:
        mixed = selector.write_mix(op, order, len(features), num_kept, values)
        mixed.name, mixed.type = "mixed_features", ir.TensorType(ir.DataType.FLOAT)
        mixed.shape = ir.Shape([num_kept, arrays["patch_features"].shape[1]])
        outputs.append(mixed)
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": _OPSET},
        name="selection",
    )
    return ir.Model(graph, ir_version=10)
