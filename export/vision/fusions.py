"""What a traced tower spells out of rotary positions and RMSNorm, as operators of ONNX Runtime.

    x ─► Reshape ─► Split ─┬─► Mul(cos) ─► Sub ─┐
                           ├─► Mul(sin) ─┘      ├─► Concat ─► Reshape ─►     RotaryEmbedding
                           ├─► Mul(cos) ─► Add ─┘
                           └─► Mul(sin) ─┘

    x ─┬─► Pow(2) ─► ReduceMean ─► Add(eps) ─► Sqrt ─► Reciprocal ─┐
       └───────────────────────────────────────────────────────► Mul ─► Mul(weight) ─►
                                                                    SimplifiedLayerNormalization

Each spelled node reads and writes all rows of the tower, so that moving data takes longer than
arithmetic. Attention is in ``attention.py``: it follows values through any number of reshapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from divprune.export.vision.attention import scalar_of

if TYPE_CHECKING:
    from onnxscript.rewriter.pattern import RewriteRuleSet

__all__ = ["fuse_norms", "fuse_rotary"]


def fuse_rotary(model: ir.Model) -> int:
    """Replace rotary positions of halves, in float32; returns how often they were."""
    from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

    def spelled(op: Any, rows: Any, by_head: Any, cosine: Any, sine: Any, joined: Any) -> Any:
        heads = op.Reshape(rows, by_head)
        first, second = op.Split(heads, num_outputs=2, axis=3, _outputs=2)
        turned = op.Concat(
            op.Sub(op.Mul(first, cosine), op.Mul(second, sine)),
            op.Add(op.Mul(second, cosine), op.Mul(first, sine)),
            axis=-1,
        )
        return op.Reshape(turned, joined)

    def is_known(context: Any, rows: ir.Value, cosine: ir.Value, **_: Any) -> bool:
        del context
        return _rank(rows) == 3 and _rank(cosine) == 4 and _last(cosine) is not None

    def fused(op: Any, rows: ir.Value, cosine: ir.Value, sine: ir.Value, **_: Any) -> Any:
        flat = op.Constant(value_ints=[-1, _last(cosine)])
        tables = [op.Reshape(table, flat) for table in (cosine, sine)]
        positions = _row_numbers(op, rows, tables[0])
        return op.RotaryEmbedding(rows, positions, *tables, _domain="com.microsoft")

    return _apply(RewriteRuleSet([RewriteRule(spelled, fused, is_known)]), model)


def fuse_norms(model: ir.Model) -> int:
    """Replace RMSNorm in float32; returns how often it was."""
    from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

    def spelled(op: Any, rows: Any, weight: Any, epsilon: Any) -> Any:
        mean = op.ReduceMean(op.Pow(rows, 2.0), [-1], keepdims=1)
        return op.Mul(weight, op.Mul(rows, op.Reciprocal(op.Sqrt(op.Add(mean, epsilon)))))

    def is_known(context: Any, rows: ir.Value, epsilon: ir.Value, **_: Any) -> bool:
        del context
        return rows.dtype == ir.DataType.FLOAT and scalar_of(epsilon) is not None

    def fused(op: Any, rows: ir.Value, weight: ir.Value, epsilon: ir.Value) -> Any:
        return op.SimplifiedLayerNormalization(rows, weight, axis=-1, epsilon=scalar_of(epsilon))

    return _apply(RewriteRuleSet([RewriteRule(spelled, fused, is_known)]), model)


def _apply(rules: RewriteRuleSet, model: ir.Model) -> int:
    import onnxscript.optimizer

    count: int = rules.apply_to_model(model)
    if count:
        onnxscript.optimizer.remove_unused_nodes(model)
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    return count


def _row_numbers(op: Any, rows: ir.Value, table: ir.Value) -> ir.Value:
    """Which row of a table turns each of rows [B, S, C]: int64 [B, S].

    The table has a row for each of B * S, or S of them that all of the batch share.
    """
    sizes = op.Shape(rows, start=0, end=2)
    count = op.ReduceProd(sizes, keepdims=0)
    numbers = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    row_of_table = op.Mod(numbers, op.Shape(table, start=0, end=1))
    positions: ir.Value = op.Reshape(row_of_table, sizes)
    return positions


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _last(value: ir.Value) -> int | None:
    size = None if value.shape is None else value.shape[-1]
    return size if isinstance(size, int) else None
