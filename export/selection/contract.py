"""What every selector has to keep, as one check: for this package's and for others'.

    from divprune.export.selection.contract import check_selector
    check_selector(MySelector())

It compares the NumPy reference with the subgraph on ONNX Runtime, on random and on awkward
inputs, and raises ``AssertionError`` with the case in its message. A selector of ``any_size``
also runs as one graph for all of these inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.selection.protocol import SIGNALS, Arrays, Selector
from divprune.export.selection.selection_graph import write_selection
from divprune.export.selection.sizes import TOKENS
from divprune.runtime.errors import NumericalError, OptionError

__all__ = [
    "Case",
    "SelectionRun",
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
_MOST_TOKENS = 64
"""At least as many as any of the cases has."""


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
    if selector.setting.max_tokens is None:
        _check_cases(selector, None)
        _check_refusals(selector)
    if selector.any_size:
        setting = selector.setting
        most = setting.max_tokens or _MOST_TOKENS
        varying = type(selector)(replace(setting, max_tokens=most))
        _check_cases(varying, VariableGraph(varying, next(cases())))


def _check_cases(selector: Selector, graph: VariableGraph | None) -> None:
    for case in cases():
        num_tokens = len(case.features)
        asked = {1, 2, num_tokens // 3, num_tokens - 1, num_tokens}
        counts = {selector.count(num_tokens, k) for k in asked if 1 <= k <= num_tokens}
        for num_kept in sorted(counts):
            check_case(selector, case, num_kept, graph)


def check_case(
    selector: Selector, case: Case, num_kept: int, graph: VariableGraph | None = None
) -> None:
    """Check reference and graph on one case.

    Args:
        selector: What chooses.
        case: From what.
        num_kept: How many.
        graph: One for any sizes; by default one is written for those of the case.

    Raises:
        AssertionError: naming case, count and what does not hold.
    """
    where = f"{selector.name}, {case.name}, {num_kept} of {len(case.features)}"
    where += "" if graph is None else ", any size"
    features = case.features
    signals = {name: case.signals[name] for name in selector.needs}
    expected = selector.select(features, num_kept, signals)
    found_by = run_graph if graph is None else graph.run
    run = found_by(selector, features, num_kept, signals)
    order = run.order
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
    if run.mixed is not None:
        _check_mixture(where, run.mixed, selector.mix(order, signals), num_kept)
    if run.cover is not None:
        _check_cover(where, run, selector.select_covered(features, num_kept, signals), features)


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


def _check_cover(
    where: str,
    run: SelectionRun,
    expected: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]],
    features: npt.NDArray[np.float32],
) -> None:
    """Both covers are float32 [K] and never fall; with the same order they are the same."""
    assert run.cover is not None
    for who, cover in (("reference", expected[1]), ("graph", run.cover)):
        assert cover.dtype == np.float32, f"{where}: cover of the {who} is {cover.dtype}"
        assert cover.shape == run.order.shape, f"{where}: cover of the {who} is {cover.shape}"
        assert (np.diff(cover) >= 0).all(), f"{where}: cover of the {who} falls: {cover.tolist()}"
        assert cover.max() <= 1, f"{where}: cover of the {who} is above 1"
        if len(cover) == len(features):
            assert cover[-1] == 1, f"{where}: nothing is left, and the cover is {cover[-1]}"
    if np.array_equal(run.order, expected[0]):
        error = np.abs(run.cover - expected[1]).max()
        assert error <= _TOLERANCE, f"{where}: covers differ by {error:g}"


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
            order = run_graph(selector, features, num_kept, broken).order
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


@dataclass(frozen=True)
class SelectionRun:
    """What a subgraph gives: order int64 [K]; mixtures [K, V] and cover [K] of those that do."""

    order: npt.NDArray[np.int64]
    mixed: npt.NDArray[np.float32] | None = None
    cover: npt.NDArray[np.float32] | None = None


def run_graph(
    selector: Selector, features: npt.NDArray[np.float32], num_kept: int, signals: Arrays
) -> SelectionRun:
    """The selector's subgraph for these sizes on ONNX Runtime."""
    session = _session(selection_model(selector, features, num_kept, signals))
    return _run(session, {"image_features": features, **signals})


class VariableGraph:
    """One subgraph of a selector, for pictures of any size.

    Args:
        selector: Knows the largest N.
        like: Gives the widths of features and signals.
    """

    def __init__(self, selector: Selector, like: Case) -> None:
        signals = {name: like.signals[name] for name in selector.needs}
        self._session = _session(selection_model(selector, like.features, None, signals))

    def run(
        self,
        selector: Selector,
        features: npt.NDArray[np.float32],
        num_kept: int,
        signals: Arrays,
    ) -> SelectionRun:
        """As ``run_graph``."""
        del selector
        feeds: dict[str, npt.NDArray[Any]] = {"image_features": features, **signals}
        feeds["kept_slots"] = np.zeros(num_kept, np.int32)
        return _run(self._session, feeds)


def _session(model: ir.Model) -> Any:
    from divprune.runtime.directory.onnxruntime_library import import_onnxruntime

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(session: Any, feeds: Mapping[str, npt.NDArray[Any]]) -> SelectionRun:
    names = [output.name for output in session.get_outputs()]
    read = {tensor.name for tensor in session.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in read}
    found = dict(zip(names, session.run(names, given), strict=True))
    mixed, cover = found.get("mixed_features"), found.get("selection_cover")
    return SelectionRun(found["selection_order"], mixed, cover)


def selection_model(
    selector: Selector,
    features: npt.NDArray[np.float32],
    num_kept: int | None,
    signals: Arrays,
) -> ir.Model:
    """A model of the subgraph alone, with inputs of the shapes of these arrays.

    With None as ``num_kept`` N and K vary: K is the length of the input ``kept_slots``.
    """
    num_tokens, width = features.shape
    varies = num_kept is None
    shapes = {
        name: (name, (TOKENS if varies else num_tokens, *array.shape[1:]))
        for name, array in signals.items()
    }
    return write_selection(
        selector,
        None if varies else num_tokens,
        num_kept,
        width,
        ir.DataType.FLOAT,
        _OPSET,
        shapes,
    )
