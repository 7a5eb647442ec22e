"""NVIDIA's management library as ctypes sees it, without a GPU."""

from __future__ import annotations


class FakeLibrary:
    """Answers as libnvidia-ml does: through pointers, with 0 for success."""

    failing: frozenset[str] = frozenset()

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 6 if "handle" in self.failing else 0

    def nvmlDeviceGetName(self, handle, buffer, size):
        buffer.value = b"NVIDIA Something"
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, size):
        buffer.value = b"590.1"
        return 3 if "driver" in self.failing else 0

    def nvmlDeviceGetClockInfo(self, handle, kind, mhz):
        mhz._obj.value = {0: 1500, 2: 7000}[kind.value]
        return 3 if "clocks" in self.failing else 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.used = 5 * 2**30
        return 3 if "memory" in self.failing else 0
