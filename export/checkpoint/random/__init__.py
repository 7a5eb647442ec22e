"""Checkpoints with random weights and all the files of a real one, for tests and measurements.

    python -m divprune.export.checkpoint.random --model qwen2.5-vl-3b --output /tmp/qwen-random

Times, memory and sizes of an export do not depend on the values of the weights, so a model can be
measured before anything is downloaded. Nothing sensible comes out of one.
"""

from __future__ import annotations

from divprune.export.checkpoint.random.families import Layout, files_of
from divprune.export.checkpoint.random.shapes import SHAPES, shape_config, shape_names
from divprune.export.checkpoint.random.tensors import DType, TensorSource
from divprune.export.checkpoint.random.write import write_checkpoint, write_random_checkpoint

__all__ = [
    "SHAPES",
    "DType",
    "Layout",
    "TensorSource",
    "files_of",
    "shape_config",
    "shape_names",
    "write_checkpoint",
    "write_random_checkpoint",
]
