from __future__ import annotations

import pytest

from divprune.runtime.backends.cuda.cuda_device import CudaDevice
from divprune.runtime.backends.tensorrt.build.memory_limit import workspace_limit
from divprune.runtime.directory.manifest import FileRecord
from tests.runtime.example_manifest import example_manifest, with_changes

MIB, GIB = 1 << 20, 1 << 30


def limit(memory: int, llm: int, vision: int = 0, *, integrated: bool = False) -> int:
    files = example_manifest().files | {
        "llm/model.onnx.data": FileRecord("0" * 64, llm),
        "vision/model.onnx.data": FileRecord("0" * 64, vision),
    }
    manifest = with_changes(example_manifest(), files=files)
    return workspace_limit(manifest, CudaDevice("x", "8.7", memory, "12.6", integrated))


@pytest.mark.parametrize(
    "memory, weights, expected",
    [
        (8 * GIB, 4 * GIB, GIB - 75 * MIB),  # a quarter of what they and a context leave
        (80 * GIB, 14 * GIB, 4 * GIB),  # no kernel needs more
        (8 * GIB, 14 * GIB, GIB // 8),  # the builder may still stream: it says what it lacks
    ],
)
def test_what_weights_leave_of_a_card_is_shared(memory, weights, expected):
    assert limit(memory, weights) == expected


def test_on_shared_memory_the_builders_copies_of_the_weights_count():
    on_card, shared = limit(8 * GIB, GIB), limit(8 * GIB, GIB, integrated=True)
    assert 2 * GIB // 4 < on_card - shared < 3 * GIB // 4


def test_engines_are_built_one_at_a_time_so_the_larger_one_counts():
    assert limit(8 * GIB, 4 * GIB, 2 * GIB) == limit(8 * GIB, 4 * GIB)


def test_ahead_of_time_the_smallest_gpu_counts():
    assert workspace_limit(example_manifest(), None) == GIB
