"""The selection between decoder layers against its selector's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from divprune.export.planning.plan import ExportPlan
from divprune.export.selection import InLLMSelector
from divprune.export.verify.comparison import check_distinct, check_regret
from divprune.export.verify.subgraph import make_session, run_session

__all__ = ["check_in_llm_selection"]


def check_in_llm_selection(plan: ExportPlan, selector: InLLMSelector, directory: Path) -> None:
    """Run the written graph on random states, queries and keys.

    Raises:
        NumericalError: if it does not choose as the reference does.
    """
    session = make_session(directory / "llm" / "selection.onnx")
    tokens, slots = plan.num_image_tokens, plan.max_seq_len
    rng = np.random.default_rng(0)
    values = {
        "first_slot": np.array([min(3, slots - tokens)], np.int64),
        "num_slots": np.array([min(tokens + 8, slots)], np.int64),
    }
    dtype = plan.weights.dtype.numpy()
    for tensor in session.get_inputs():
        if tensor.name not in values:
            shape = [slots if isinstance(size, str) else size for size in tensor.shape]
            values[tensor.name] = rng.standard_normal(shape).astype(dtype)
    order = run_session(session, values)["selection_order"]
    check_distinct(order, tokens)
    check_regret(selector.name, selector.regret(values, tokens, order))
