"""Decoder blocks and the output layer against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np

from divprune.export.checkpoint.checkpoint import EMBEDDINGS, LM_HEAD
from divprune.export.decoder.graph import DecoderPart
from divprune.export.decoder.reference import text_model_without_vocabulary
from divprune.export.planning.plan import ExportPlan
from divprune.export.selection.fastv import last_token_attention
from divprune.export.verify.comparison import Tolerance, compare
from divprune.export.verify.reference import load_weights
from divprune.export.verify.subgraph import GraphCutter, run_session
from divprune.runtime.directory.manifest import LIVE_SLOTS

__all__ = ["check_block", "check_head", "check_last_query"]

_PREFILL = 6


def check_block(plan: ExportPlan, part: DecoderPart, cutter: GraphCutter, layer: int) -> float:
    """Compare a block of ``part``: six rows at once, then one more that reads the cache.

    Returns:
        The worst row's relative error.

    Raises:
        NumericalError: if it differs.
    """
    rows = _random_rows(plan, layer, _PREFILL + 1)
    plane = _random_rows(plan, 1000 + layer, _PREFILL + 1) if _has_plane(plan, layer) else None
    reference = _reference_block(plan, part, layer, rows.astype(np.float32), plane)
    if layer == plan.spec.num_layers - 1:
        reference = reference[-2:]  # of each of the two steps only the last row comes out
    found = _run_block(plan, part, cutter, layer, rows, plane)
    tolerance = Tolerance.of(plan.options, part.name).block
    return compare(f"decoder block {layer} of {part.name}", found, reference, tolerance)


def _random_rows(plan: ExportPlan, seed: int, count: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((1, count, plan.spec.hidden_size))
    return rows.astype(plan.weights.dtype.numpy())


def _has_plane(plan: ExportPlan, layer: int) -> bool:
    return layer < len(plan.spec.planes)


def _positions(plan: ExportPlan, count: int) -> np.ndarray:
    """int64 [1, S] that count from 0, or [3, 1, S] that differ between the axes."""
    if plan.spec.position_axes == 1:
        return np.arange(count, dtype=np.int64)[None]
    return np.random.default_rng(count).integers(0, 64, (3, 1, count))


def _run_block(
    plan: ExportPlan,
    part: DecoderPart,
    cutter: GraphCutter,
    layer: int,
    rows: np.ndarray,
    plane: np.ndarray | None,
) -> np.ndarray:
    """Run the written block on [1, S, hidden]: a prefill, then one row through the cache."""
    hidden = _rows_into(plan, part, layer)
    output = _rows_into(plan, part, layer + 1)
    caches = [f"key_{layer}", f"value_{layer}"]
    block = cutter.cut(
        [f"layers.{layer}/", "shared/"],
        [output, *(f"{plan.dialect.cache_output}_{cache}" for cache in caches)],
        like={hidden: part.input_name, output: part.input_name},
    )
    past = _empty_cache(plan, part, layer, rows.dtype)
    positions = _positions(plan, rows.shape[1])
    found = []
    with cutter.session(block) as session:
        for start, stop in ((0, _PREFILL), (_PREFILL, rows.shape[1])):
            feeds = _step_feeds(rows[:, start:stop], positions[..., start:stop], start)
            if plane is not None:
                feeds[plan.spec.planes[layer]] = plane[:, start:stop]
            outputs = run_session(
                session, feeds | past | {part.input_name: feeds["rows"], hidden: feeds["rows"]}
            )
            for cache in caches:
                _update(past[f"past_{cache}"], outputs, cache, start, stop)
            found.append(outputs[output])
    together: np.ndarray = np.concatenate(found, axis=1)[0].astype(np.float32)
    return together


def _empty_cache(
    plan: ExportPlan, part: DecoderPart, layer: int, dtype: np.dtype
) -> dict[str, np.ndarray]:
    shape = (1, plan.spec.num_kv_heads, part.max_seq_len, plan.spec.head_dim)
    return {f"past_{kind}_{layer}": np.zeros(shape, dtype) for kind in ("key", "value")}


def _update(
    past: np.ndarray, outputs: dict[str, np.ndarray], cache: str, start: int, stop: int
) -> None:
    """Take over what a step made of a cache: all of it, or the rows that are new."""
    if (present := outputs.get(f"present_{cache}")) is not None:
        past[:] = present
    else:
        past[:, :, start:stop] = outputs[f"new_{cache}"]


def _step_feeds(rows: np.ndarray, positions: np.ndarray, start: int) -> dict[str, np.ndarray]:
    return {
        "rows": rows,
        "position_ids": positions,
        "write_indices": np.array([start], np.int64),
        LIVE_SLOTS: np.arange(start + rows.shape[1]),
    }


def _reference_block(
    plan: ExportPlan, part: DecoderPart, layer: int, rows: np.ndarray, plane: np.ndarray | None
) -> np.ndarray:
    """Output of transformers' block ``layer`` for all rows at once, without a cache."""
    import torch

    model = _reference_model(plan, part, layer)
    positions = torch.from_numpy(_positions(plan, rows.shape[1]))
    more = {}
    if plane is not None:
        more["visual_pos_masks"] = torch.ones(rows.shape[:2], dtype=torch.bool)
        more["deepstack_visual_embeds"] = torch.from_numpy(plane.astype(np.float32))
    with torch.no_grad():
        outputs = model(
            inputs_embeds=torch.from_numpy(rows), position_ids=positions, use_cache=False, **more
        )
    result: np.ndarray = outputs.last_hidden_state[0].numpy()
    return result


def _reference_model(plan: ExportPlan, part: DecoderPart, layer: int) -> Any:
    """The text model of transformers with block ``layer`` as its only one, and no final norm.

    Its weights are what those of ``part`` stand for.
    """
    import torch

    config = plan.family.text_config
    with torch.device("meta"):
        model: Any = text_model_without_vocabulary(config, num_layers=1)
    model.rotary_emb = text_model_without_vocabulary(config, num_layers=0).rotary_emb
    model.norm = torch.nn.Identity()
    weights = plan.weights_of(part)
    load_weights(model.layers[0], weights, prefix=f"language_model.layers.{layer}.")
    return model.eval()


def check_last_query(plan: ExportPlan, part: DecoderPart, cutter: GraphCutter) -> float:
    """Compare the last row's query by what it gives with the keys: the attention of that row.

    Returns:
        The relative error of the weights, mean over heads.

    Raises:
        NumericalError: if they differ.
    """
    layer = part.layers.stop - 1
    rows = _random_rows(plan, layer, _PREFILL)
    hidden = _rows_into(plan, part, layer)
    keys = f"{plan.dialect.cache_output}_key_{layer}"
    block = cutter.cut(
        [f"layers.{layer}/", "shared/"],
        ["last_query", keys],
        like={hidden: part.input_name},
    )
    past = _empty_cache(plan, part, layer, rows.dtype)
    feeds = _step_feeds(rows, _positions(plan, _PREFILL), 0)
    if _has_plane(plan, layer):
        feeds[plan.spec.planes[layer]] = np.zeros_like(rows)  # comes behind the attention
    with cutter.session(block) as session:
        outputs = run_session(
            session, feeds | past | {part.input_name: feeds["rows"], hidden: feeds["rows"]}
        )
    slots = {"visual_slots": np.arange(_PREFILL), "num_slots": np.array([_PREFILL])}
    values = {"last_query": outputs["last_query"], "keys": outputs[keys], **slots}
    found = last_token_attention(values)
    reference = _reference_attention(plan, part, layer, rows.astype(np.float32))
    tolerance = Tolerance.of(plan.options).block
    return compare("query for the selection", found, reference, tolerance)


def _reference_attention(
    plan: ExportPlan, part: DecoderPart, layer: int, rows: np.ndarray
) -> np.ndarray:
    """Attention of the last row in transformers' block ``layer``, mean over heads: [S]."""
    import torch

    model = _reference_model(plan, part, layer)
    model.set_attn_implementation("eager")  # the only one that returns weights
    with torch.no_grad():
        outputs = model(
            inputs_embeds=torch.from_numpy(rows),
            position_ids=torch.from_numpy(_positions(plan, rows.shape[1])),
            use_cache=False,
            output_attentions=True,
        )
    weights: np.ndarray = outputs.attentions[0][0, :, -1].mean(dim=0).numpy()
    return weights


def _rows_into(plan: ExportPlan, part: DecoderPart, layer: int) -> str:
    """Name of what enters ``layer``, or what leaves the last one before it."""
    if layer == part.layers.start:
        return part.input_name
    if layer == part.layers.stop and layer != plan.spec.num_layers:
        return "hidden_states"
    return f"layers.{layer - 1}/{'with_plane' if _has_plane(plan, layer - 1) else 'mlp_residual'}"


def check_head(plan: ExportPlan, part: DecoderPart, cutter: GraphCutter) -> float:
    """Compare the logits of a last row; returns the relative error.

    Raises:
        NumericalError: if they differ.
    """
    last = _rows_into(plan, part, plan.spec.num_layers)
    rows = _random_rows(plan, seed=0, count=1)
    reference = _reference_head(plan, part, rows[:, -1].astype(np.float32))
    head = cutter.cut(["head/"], ["logits"], like={last: part.input_name})
    with cutter.session(head) as session:
        logits = run_session(session, {last: rows})["logits"]
    tolerance = Tolerance.of(plan.options, part.name).block
    return compare(f"output layer of {part.name}", logits[0], reference, tolerance)


def _reference_head(plan: ExportPlan, part: DecoderPart, rows: np.ndarray) -> np.ndarray:
    import torch

    model: Any = text_model_without_vocabulary(plan.family.text_config, num_layers=0)
    load_weights(model.norm, plan.weights, prefix="language_model.norm.")
    name = EMBEDDINGS if plan.spec.tied_head else LM_HEAD
    with torch.no_grad():
        normed = model.norm(torch.from_numpy(rows))
        result: np.ndarray = (normed @ plan.weights_of(part).reference(name).T).numpy()
    return result
