from __future__ import annotations

import pytest

from divprune.runtime.cuda_device import CudaDevice
from divprune.runtime.engine_build.memory_limit import workspace_limit
from divprune.runtime.manifest import FileRecord
from tests.runtime.example_manifest import example_manifest, with_changes

GIB = 1 << 30


@pytest.mark.parametrize(
    "memory, weights, expected",
    [
        (8 * GIB, 4 * GIB, GIB),  # a quarter of what is left
        (80 * GIB, 14 * GIB, 4 * GIB),  # no kernel needs more
        (8 * GIB, 14 * GIB, GIB // 8),  # the builder may still stream: it says what it lacks
    ],
)
def test_what_weights_leave_is_shared(memory, weights, expected):
    files = example_manifest().files | {"llm/model.onnx.data": FileRecord("0" * 64, weights)}
    manifest = with_changes(example_manifest(), files=files)
    limit = workspace_limit(manifest, CudaDevice("x", "8.7", memory, "12.6"))
    assert abs(limit - expected) <= 1 << 20


def test_ahead_of_time_the_smallest_gpu_counts():
    assert workspace_limit(example_manifest(), None) == GIB
