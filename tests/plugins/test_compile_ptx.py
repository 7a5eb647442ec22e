"""The shipped PTX is what the source compiles to, for the drivers it is meant for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from divprune.plugins import nvrtc
from divprune.plugins.compile_ptx import compile_ptx, main
from divprune.plugins.node import MAX_TOKENS, plan_launch
from divprune.plugins.nvrtc import Nvrtc
from divprune.plugins.ptx import (
    SHIPPED,
    SOURCE_FILE,
    KernelFile,
    read_ptx,
    read_source,
    source_hash,
    stated_source_hash,
)
from divprune.runtime.errors import BackendError

ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)", re.DOTALL)


@pytest.fixture
def compiler() -> Nvrtc:
    try:
        return Nvrtc()
    except BackendError as error:
        pytest.skip(f"{error.what}: {error.fix}")


def test_shipped_ptx_states_the_hash_of_the_shipped_source() -> None:
    assert stated_source_hash(read_ptx()) == source_hash(SOURCE_FILE.read_bytes())


def test_ptx_of_something_else_states_no_hash() -> None:
    assert stated_source_hash(".version 8.5\n" + read_ptx()) is None


def test_shipped_ptx_is_of_the_version_and_target_that_jetpack_6_takes() -> None:
    lines = read_ptx().splitlines()
    assert ".version 8.5" in lines
    assert ".target sm_80" in lines
    assert ".address_size 64" in lines


def test_shipped_ptx_has_every_entry_with_tensorrts_order_of_arguments() -> None:
    entries = dict(ENTRY.findall(read_ptx()))
    planned = {plan_launch(n, 1).entry for n in range(1, MAX_TOKENS + 1)}
    assert set(entries) == planned
    assert len(planned) == 10
    types = ["u64", "u64", "u32", "u32", "u64", "u64"]
    for parameters in entries.values():
        assert re.findall(r"\.param \.(\w+)", parameters) == types


def test_shipped_ptx_takes_no_memory_but_static_shared_memory() -> None:
    ptx = read_ptx()
    assert not re.search(r"\.local|\.extern", ptx)
    assert set(re.findall(r"\.shared .*\[(\d+)\]", ptx)) == {"512"}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.ptx.stem)
def test_shipped_ptx_is_what_the_source_compiles_to(file: KernelFile) -> None:
    source = read_source(file.source)
    ptx = compile_ptx(source, file.architecture, file.source.name)
    assert ptx == read_ptx(file.ptx)
    assert stated_source_hash(ptx) == source_hash(source)
    assert ".version 8.5" in ptx.splitlines()


@pytest.mark.usefixtures("compiler")
def test_command_without_options_checks_every_kernel() -> None:
    assert main(["--check"]) == 0


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("capability", ["80", "86", "87", "89", "90"])
def test_source_compiles_for_every_declared_target(capability: str) -> None:
    ptx = compile_ptx(SOURCE_FILE.read_bytes(), f"compute_{capability}")
    assert f".target sm_{capability}\n" in ptx
    assert ".version 8.5\n" in ptx


@pytest.mark.usefixtures("compiler")
def test_source_that_does_not_compile_gives_the_compilers_log() -> None:
    with pytest.raises(BackendError, match=r'greedy_max_min\.cu\(1\): error: .*"nonsense"'):
        compile_ptx(b"nonsense x;")


@pytest.mark.usefixtures("compiler")
def test_unknown_target_is_refused() -> None:
    with pytest.raises(BackendError, match="gpu-architecture"):
        compile_ptx(SOURCE_FILE.read_bytes(), "compute_1")


@pytest.mark.usefixtures("compiler")
def test_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "kernel.ptx"
    assert main(["--output", str(output), "--check"]) == 2
    assert "python -m divprune.plugins.compile_ptx" in capsys.readouterr().err
    assert main(["--output", str(output)]) == 0
    assert output.read_text() == read_ptx()
    assert main(["--output", str(output), "--check"]) == 0
    assert list(tmp_path.iterdir()) == [output]
    output.write_text(read_ptx() + "\n")
    assert main(["--output", str(output), "--check"]) == 2


def test_missing_compiler_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--check"]) == 2
    assert "pip install nvidia-cuda-nvrtc-cu12==12.6.85" in capsys.readouterr().err


@pytest.mark.usefixtures("compiler")
def test_another_version_of_the_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "NVRTC_VERSION", (12, 5))
    with pytest.raises(BackendError, match=r"(?s)expected: 12\.5.*found:    12\.6"):
        compile_ptx(SOURCE_FILE.read_bytes())
