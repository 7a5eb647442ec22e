from __future__ import annotations

from types import ModuleType

import pytest

from divprune.plugins import plugin_realisation, register_plugin
from divprune.runtime.errors import BackendError


@pytest.mark.parametrize(
    ("version", "realisation"),
    [
        ("8.6.1", "loop"),
        ("10.2.0.19", "loop"),
        ("10.3.0", "ipluginv3"),
        ("10.3.0.30", "ipluginv3"),
        ("10.8.0.43", "ipluginv3"),
        ("10.9.0.34", "aot"),
        ("10.13.3.9", "aot"),
        ("11.4.0.106", "aot"),
        ("1.7.1.116", "loop"),
    ],
)
def test_version_decides_what_is_hosted(version: str, realisation: str) -> None:
    assert plugin_realisation(version) == realisation


def test_version_that_is_none_is_refused() -> None:
    with pytest.raises(BackendError, match="unknown"):
        plugin_realisation("unknown")


@pytest.mark.parametrize("version", ["1.7.1.116", "11.0.0.1"])
def test_nothing_is_registered_with_tensorrt_rtx(version: str) -> None:
    rtx = ModuleType("tensorrt_rtx")
    rtx.__version__ = version
    assert register_plugin(rtx) == "loop"
