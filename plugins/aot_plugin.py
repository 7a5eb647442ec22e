"""The plugin for TensorRT of 10.9 or later: builds embed the PTX in the engine.

At run time neither Python nor a plugin library is needed. TensorRT reads the annotations of
the functions below, so this module must not postpone their evaluation.
"""

# TensorRT fills its modules at run time.
# pyright: reportAttributeAccessIssue=false

from typing import Any

import numpy as np

from divprune.plugins.node import NAMESPACE, OP_TYPE, plan_launch
from divprune.plugins.ptx import read_ptx
from divprune.runtime.errors import UnsupportedError

__all__ = ["register_aot_plugin"]

_PLUGIN_ID = f"{NAMESPACE}::{OP_TYPE}"
# The attribute is one integer, and comes as an array of one element: declared as ``int``, it
# would be converted by TensorRT 10.9 to 10.13 in a way that NumPy 2.4 refuses.
_Integer = np.ndarray[Any, np.dtype[np.int64]]


def register_aot_plugin() -> None:
    """Register ``divprune::GreedyMaxMin`` with TensorRT, once a process."""
    import tensorrt as trt

    try:
        import tensorrt.plugin as trtp
    except ModuleNotFoundError:  # pip's front end of 10.x leaves the module out
        import tensorrt_bindings.plugin as trtp

    if hasattr(trtp.op, NAMESPACE) and hasattr(getattr(trtp.op, NAMESPACE), OP_TYPE):
        return

    @trtp.register(_PLUGIN_ID)  # type: ignore[untyped-decorator, unused-ignore]
    def describe(
        gram: trtp.TensorDesc, seed: trtp.TensorDesc, max_tokens: _Integer
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        if (gram.dtype, seed.dtype) != (trt.float32, trt.int32):
            raise UnsupportedError(
                f"The inputs of {OP_TYPE} have other types",
                expected="float32 and int32",
                found=f"{gram.dtype} and {seed.dtype}",
            )
        order, cover = (trtp.from_shape_expr(seed.shape_expr, t) for t in (trt.int32, trt.float32))
        return order, cover

    @trtp.aot_impl(_PLUGIN_ID)  # type: ignore[untyped-decorator, unused-ignore]
    def implement(
        gram: trtp.TensorDesc,
        seed: trtp.TensorDesc,
        max_tokens: _Integer,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        # One entry and one number of threads for every N that the engine may meet.
        plan = plan_launch(max_tokens.item(), 1)
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.block_x = gram.shape_expr[0], plan.threads
        numbers = trtp.SymIntExprs(2)
        numbers[0], numbers[1] = map(trtp.SymInt32, (gram.shape_expr[1], seed.shape_expr[1]))
        return plan.entry, read_ptx(), launch, numbers
