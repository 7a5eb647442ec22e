from __future__ import annotations

from divprune.runtime.reports.plan.here import this_machine


def test_what_others_use_is_the_systems(tmp_path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\nHuge: 0\n")
    device = this_machine("onnxruntime", meminfo)
    assert device is not None
    assert device.available_bytes == 6 << 30


def test_without_proc_it_is_not_known(tmp_path) -> None:
    assert this_machine("onnxruntime", tmp_path / "none") is None


def test_without_a_gpu_there_is_no_device_for_tensorrt(monkeypatch) -> None:
    monkeypatch.setattr("divprune.runtime.reports.plan.here.find_cuda_device", lambda: None)
    assert this_machine("tensorrt") is None
