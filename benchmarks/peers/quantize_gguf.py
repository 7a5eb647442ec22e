"""Quantise a GGUF file to Q4_0 with llama.cpp's own function."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp


def main() -> int:
    source, target = sys.argv[1:]
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    return int(
        llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))
    )


if __name__ == "__main__":
    raise SystemExit(main())
