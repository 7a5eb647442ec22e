"""Weights in 4 and 8 bits: how they are computed, read, packed and spelled in ONNX."""
