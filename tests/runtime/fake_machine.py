"""A made-up Jetson Orin: stand-ins for TensorRT and CUDA put together, and what to ask it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.backends.cuda.cuda import Cuda
from divprune.runtime.backends.cuda.cuda_device import CudaDevice
from divprune.runtime.backends.tensorrt import backend as tensorrt
from divprune.runtime.backends.tensorrt.build import build_engines, build_plan
from tests.runtime.fake_cuda import FakeCuda, FakeKernels
from tests.runtime.fake_tensorrt import FakeTensorRT, Script

__all__ = ["QUESTION", "Machine", "answer", "picture"]

ORIN = CudaDevice("Orin", "8.7", 8 << 30, "12.6", integrated=True)
QUESTION = "What is in the picture?"


class Machine:
    """A made-up Orin with TensorRT."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **script: Any) -> None:
        self.cuda = FakeCuda()
        self.library = FakeTensorRT(Script(**script))
        self.library.cuda, self.library.enqueue = self.cuda, self.cuda.enqueue
        monkeypatch.setitem(sys.modules, "tensorrt", self.library)
        for module in (build_plan, tensorrt):
            monkeypatch.setattr(module, "find_cuda_device", lambda: ORIN)
        self.registered: list[Any] = []
        for module in (build_engines, tensorrt):
            monkeypatch.setattr(module, "register_plugin", self.registered.append)
        monkeypatch.setattr(tensorrt, "open_cuda", lambda: Cuda(self.cuda))
        monkeypatch.setattr(tensorrt, "Driver", lambda: None)
        monkeypatch.setattr(tensorrt, "LoadedKernels", lambda _: FakeKernels(self.cuda))

    def executed(self) -> list[tuple[str, int]]:
        calls = (call for call in self.library.script.calls if call[0] == "execute")
        return [(name, profile) for _, name, profile, _ in calls]


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def answer(pipeline: Pipeline, **options: Any) -> Any:
    fixed = {"images": picture(0), "prompt": QUESTION, "max_new_tokens": 12, "reuse": False}
    options = fixed | options
    return pipeline.generate(**options, ignore_eos=True).result
