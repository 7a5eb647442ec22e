"""The selection between decoder layers against its selector's reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from divprune.export.planning.plan import ExportPlan
from divprune.export.selection import InLLMSelector
from divprune.export.selection.selection_graph import KEPT_SLOTS
from divprune.export.selection.sizes import TOKENS
from divprune.export.verify.comparison import check_distinct, check_regret
from divprune.export.verify.subgraph import make_session, run_session
from divprune.runtime.directory.manifest import CACHE_LENGTH
from divprune.runtime.errors import NumericalError

__all__ = ["check_in_llm_selection"]


def check_in_llm_selection(plan: ExportPlan, selector: InLLMSelector, directory: Path) -> None:
    """Run the written graph on random states, queries and keys.

    Where N varies, for the smallest picture and for one of everyday size.

    Raises:
        NumericalError: if it does not choose as the reference does.
    """
    session = make_session(directory / "llm" / "selection.onnx")
    sizes = [plan.num_image_tokens]
    if plan.varies:
        sizes = [plan.dims[TOKENS].minimum, plan.dims[TOKENS].optimum]
    for tokens in sizes:
        values = _random_values(plan, session, tokens)
        order = run_session(session, values)["selection_order"]
        _check_length(order, plan.count_kept(tokens))
        check_distinct(order, tokens)
        check_regret(selector.name, selector.regret(values, tokens, order))


def _check_length(order: np.ndarray, num_kept: int) -> None:
    if len(order) != num_kept:
        raise NumericalError(
            "the selection in the graph keeps another number of tokens",
            expected=num_kept,
            found=len(order),
        )


def _random_values(plan: ExportPlan, session: Any, tokens: int) -> dict[str, np.ndarray]:
    """What the graph reads of a picture of N tokens, with text between them."""
    slots = plan.max_seq_len
    filled = min(tokens + 8, slots)
    rng, dtype = np.random.default_rng(0), plan.weights.dtype.numpy()
    values: dict[str, np.ndarray] = {
        "visual_slots": np.sort(rng.choice(filled, tokens, replace=False)),
        "num_slots": np.array([filled], np.int64),
        KEPT_SLOTS: np.zeros(plan.count_kept(tokens), np.int32),
    }
    sizes = {TOKENS: tokens, CACHE_LENGTH: slots}
    for tensor in session.get_inputs():
        if tensor.name not in values:
            shape = [sizes[dim] if isinstance(dim, str) else int(dim) for dim in tensor.shape]
            values[tensor.name] = rng.standard_normal(shape).astype(dtype)
    return values
