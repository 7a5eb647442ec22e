from __future__ import annotations

import platform

from divprune.runtime.backends.tensorrt.install_hint import install_command, is_jetson


def test_a_jetson_gets_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.0")
    assert install_command("tensorrt", tmp_path).startswith("sudo apt install nvidia-jetpack")


def test_a_jetson_in_a_container_is_known_by_its_device_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    compatible = tmp_path / "proc/device-tree/compatible"
    compatible.write_bytes(b"nvidia,p3768-0000\0nvidia,tegra234\0")
    assert is_jetson(tmp_path)
    compatible.write_bytes(b"raspberrypi,5\0")
    assert not is_jetson(tmp_path)


def test_a_workstation_gets_pip_with_nvidias_index(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("")
    assert "https://pypi.nvidia.com" in install_command("tensorrt", tmp_path)


def test_rtx_is_on_the_package_index():
    assert install_command("tensorrt-rtx") == "pip install --upgrade tensorrt-rtx-cu13"
