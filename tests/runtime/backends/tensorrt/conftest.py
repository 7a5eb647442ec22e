from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from divprune.runtime.backends.cuda.cuda_device import CudaDevice
from divprune.runtime.backends.tensorrt.build import build_plan
from tests.runtime.fake_tensorrt import FakeTensorRT, Script

ORIN = CudaDevice("Orin", "8.7", 8 << 30, "12.6", integrated=True)


@pytest.fixture
def on_orin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorRT]:
    """A function that puts a scripted TensorRT on a made-up Jetson Orin."""

    def put(device: CudaDevice | None = ORIN, **script: Any) -> FakeTensorRT:
        library = FakeTensorRT(Script(**script))
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        monkeypatch.setattr(build_plan, "find_cuda_device", lambda: device)
        return library

    return put
