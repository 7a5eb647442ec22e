"""Checkpoints of every family, for advice that is given to their owners; engines likewise."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.advice.tools import attempt, build
from tests.runtime.fake_machine import Machine, picture


@pytest.fixture(scope="session")
def any_checkpoint(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function from a name to a checkpoint's directory, written once: copy before changes.

    The name is one of ``checkpoints``, ``anyres_checkpoints``, ``qwen_checkpoints`` or
    ``tiled_checkpoints``; ``packed`` is quantised by GPTQ, and ``plain`` the one it stands for.
    """
    from anyres_checkpoints import ANYRES_CHECKPOINTS, write_anyres_checkpoint
    from qwen_checkpoints import QWEN_CHECKPOINTS, write_qwen_checkpoint
    from tiled_checkpoints import TILED_CHECKPOINTS, write_tiled_checkpoint

    from tests.export.checkpoint.quantization.packed_checkpoints import write_packed

    writers: dict[str, Callable[[Path, str], Path]] = {
        **dict.fromkeys(ANYRES_CHECKPOINTS, write_anyres_checkpoint),
        **dict.fromkeys(QWEN_CHECKPOINTS, write_qwen_checkpoint),
        **dict.fromkeys(TILED_CHECKPOINTS, write_tiled_checkpoint),
    }
    folder = tmp_path_factory.mktemp("any-checkpoints")

    def get(name: str) -> Path:
        path = folder / name
        if path.exists():
            return path
        if name in ("packed", "plain"):
            source = checkpoint("clip-llama-v5-layers-biases")
            write_packed(source, folder / "packed", folder / "plain", "gptq")
            return path
        return writers[name](path, name) if name in writers else checkpoint(name)

    return get


@pytest.fixture(scope="session")
def advised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory that the ``divprune-export`` in an advice writes; once for each command."""
    folder, made = tmp_path_factory.mktemp("advised"), dict[str, Path]()

    def export(advice: str) -> Path:
        found = re.search(r"divprune-export .*?(?=[,;]|$)", advice)
        assert found is not None, advice
        command = found[0]
        if command not in made:
            made[command] = folder / str(len(made))
            words = [*shlex.split(command), "--output", str(made[command]), "--no-verify", "-q"]
            done = attempt(words)
            assert done.code == 0, done.message
        return made[command]

    return export


@pytest.fixture
def machine(
    target_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Machine:
    """A made-up Orin; something was exported before, as torch looks for a tensorrt once."""
    target_dir("tensorrt", "fp32")
    monkeypatch.chdir(tmp_path)
    return Machine(monkeypatch)


@pytest.fixture
def engine(target_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of an export for TensorRT."""
    return Path(shutil.copytree(target_dir("tensorrt", "fp32"), tmp_path / "engine"))


@pytest.fixture(scope="session")
def _engines(target_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with engines, built once."""
    path = tmp_path_factory.mktemp("built") / "engine"
    shutil.copytree(target_dir("tensorrt", "fp32"), path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        Machine(monkeypatch)
        assert attempt(build(path)).code == 0
    return path


@pytest.fixture
def built(_engines: Path, machine: Machine, tmp_path: Path) -> Path:
    """A copy of that on a made-up Orin."""
    return Path(shutil.copytree(_engines, tmp_path / "engine"))


@pytest.fixture
def run_words(tmp_path: Path) -> Callable[..., list[str]]:
    """A function from a directory and options to the words of ``divprune-run``."""
    picture(0).save(tmp_path / "picture.png")
    fixed = [str(tmp_path / "picture.png"), "-q", "--max-new-tokens", "2"]
    return lambda path, *options: ["divprune-run", str(path), *fixed, *options]
