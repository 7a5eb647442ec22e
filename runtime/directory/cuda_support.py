"""What ONNX Runtime's CUDA provider has no kernels for, by the flags of ``divprune-export``."""

from __future__ import annotations

__all__ = ["flags_without_cuda"]


def flags_without_cuda(
    *,
    dialect: str,
    dtype: str,
    bits: int | None,
    vision_quant: str | None,
    prefill_quant: str | None,
) -> list[str]:
    """The choices of an export that would run on the CPU, or not at all; empty if CUDA has all.

    It has no kernels for DynamicQuantizeLinear and MatMulInteger of uint8, and GroupQueryAttention
    in float16 only.

    Args:
        dialect: Of the decoder's graphs.
        dtype: fp16 or fp32.
        bits: Of the decoder's weights, None where they are of ``dtype``.
        vision_quant: int8 or None.
        prefill_quant: int8 or None.
    """
    choices = (
        ("--quant int8", bits == 8),
        ("--vision-quant int8", vision_quant == "int8"),
        ("--prefill-quant int8", prefill_quant == "int8"),
        ("--dtype fp32", dialect == "ort" and dtype == "fp32"),
    )
    return [flag for flag, is_there in choices if is_there]
