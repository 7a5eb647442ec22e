"""Both plugins through the bindings of TensorRT itself, on a machine that cannot run it.

Optional: the library cannot be had from the public package index, but the bindings can, and
stubs let them be imported. To run these tests:

    pip install --no-deps tensorrt-cu13-bindings==11.4.0.106 tensorrt-cu13==11.4.0.106
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.emulator import EmulatedDriver

FOLDER = Path(__file__).parent
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
INT32, INT64 = "PluginFieldType.INT32", "PluginFieldType.INT64"


def _write_stubs(folder: Path) -> list[Path]:
    """One library for each that the bindings name, found again by that name once loaded."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None or importlib.util.find_spec("tensorrt") is None:
        pytest.skip("the wheels tensorrt-cu13-bindings and tensorrt-cu13 are not installed")
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("stubs of TensorRT's libraries need gcc")
    bindings = Path(spec.origin).with_name("tensorrt.so").read_bytes()
    found = re.search(rb"libnvinfer\.so\.\d+", bindings)
    assert found is not None
    stubs = []
    for library in LIBRARIES:
        name = found[0].decode().replace("nvinfer", library)
        command = [compiler, "-shared", "-fPIC", FOLDER / "tensorrt_stub.c", f"-Wl,-soname,{name}"]
        subprocess.run([*command, "-o", folder / name], check=True)
        stubs.append(folder / name)
    return stubs


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, emulated_driver: EmulatedDriver
) -> dict[str, Any]:
    stubs = _write_stubs(tmp_path_factory.mktemp("tensorrt"))
    command = [sys.executable, FOLDER / "tensorrt_probe.py", *stubs, emulated_driver.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def aot(report: dict[str, Any]) -> dict[str, Any]:
    if report["aot"] is None:
        pytest.skip(f"TensorRT {report['version']} has no plugins that are compiled ahead of time")
    return report["aot"]


@pytest.fixture(scope="module")
def v3(report: dict[str, Any]) -> dict[str, Any]:
    return report["v3"]


def test_decorators_accept_the_aot_plugin_once(aot: dict[str, Any]) -> None:
    assert aot["realisations"] == ["aot", "aot"]
    assert aot["fields"] == [["max_tokens", INT64]]
    assert aot["max_tokens"] == [2928]


def test_decorators_do_check_signatures(aot: dict[str, Any]) -> None:
    assert "does not match the expected input arg schema" in aot["misdeclared"]


def test_aot_plugin_declares_its_outputs_and_refuses_half_precision(aot: dict[str, Any]) -> None:
    assert aot["output_types"] == ["DataType.INT32", "DataType.FLOAT"]
    assert aot["output_shapes"] == [["images", "kept"]] * 2
    assert "float32 and int32" in aot["half"]


def test_aot_plugin_hands_over_the_ptx_and_its_launch(aot: dict[str, Any]) -> None:
    assert aot["ptx_is_ours"]
    assert aot["entry"] == "greedy_max_min_3"
    assert aot["launch"] == ["images", 1, 1, 992, 1, 1, 0]
    assert aot["numbers"] == ["tokens", "kept"]
    assert aot["are_int32"] == [True, True]


def test_aot_plugin_refuses_what_the_kernel_cannot_hold(aot: dict[str, Any]) -> None:
    assert "1 to 10240" in aot["too_many"]


def test_v3_plugin_is_registered_once_with_its_attribute(v3: dict[str, Any]) -> None:
    assert v3["registered"] == "Creator"
    assert v3["fields"] == [["max_tokens", INT32]]


def test_v3_plugin_declares_outputs_as_long_as_its_second_input(v3: dict[str, Any]) -> None:
    assert v3["num_outputs"] == 2
    assert v3["output_types"] == ["DataType.INT32", "DataType.FLOAT"]
    assert v3["output_shapes"] == [["images", "kept"]] * 2


def test_v3_plugin_keeps_what_it_hands_over_to_be_serialised(v3: dict[str, Any]) -> None:
    assert v3["serialised"] == 40


def test_v3_plugin_takes_linear_float32_and_int32_only(v3: dict[str, Any]) -> None:
    assert v3["formats"] == [True] * 4
    assert v3["refused"] == [False, False]


def test_v3_plugin_chooses_after_serialisation(v3: dict[str, Any]) -> None:
    grams = np.array(v3["grams"], np.float32)
    for gram, seed, order, cover in zip(grams, v3["seeds"], v3["order"], v3["cover"], strict=True):
        assert order == _follow(gram, seed, 7)
        left = [token for token in range(40) if token not in order]
        assert cover[-1] == min(gram[order, token].max() for token in left)


def test_v3_plugin_refuses_more_tokens_than_it_was_built_for(v3: dict[str, Any]) -> None:
    assert "N at most 40" in v3["large"]
    assert "max_tokens" in v3["no_attribute"]


def _follow(gram: np.ndarray, seed: int, num_kept: int) -> list[int]:
    order = [seed]
    while len(order) < num_kept:
        free = [token for token in range(len(gram)) if token not in order]
        order.append(min(free, key=lambda token: (gram[order, token].max(), token)))
    return order
