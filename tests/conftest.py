"""Fixtures that several test folders share, and the surroundings every test runs in.

This file is also read by Python 3.10 without torch (tests/packaging/test_python310.py), so
nothing of the export side is imported at its top.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE_FOLDERS = ("configs", "export", "plugins", "runtime")


# What takes long with few tests would come last, and one worker wait for the other.
LONG_FILES = (
    "packaging/test_python310.py",
    "readme/test_readme_commands.py",
    "runtime/serving/batch/test_cluster.py",
    "benchmarks/test_gpu_day.py",
    "models/test_train.py",
)


def _share_cores() -> None:
    """Give each of pytest-xdist's workers cores of its own.

    Threads of ONNX Runtime wait actively: with more of them than cores, workers take time from
    each other by waiting.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if 1 < workers <= len(cores):
        first = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        os.sched_setaffinity(0, cores[first::workers])
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _heed_signals() -> None:
    """Undo what a shell does to a command in the background: some tests send these signals."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGHUP", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


# Before any library is imported: they read these once. No test may reach a model hub.
_share_cores()
_heed_signals()
os.environ["HF_HUB_OFFLINE"] = "1"

# A shared two-core machine stalls now and then: time says nothing about correctness here.
settings.register_profile("divprune", deadline=None, print_blob=True)
settings.load_profile("divprune")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all test modules without the garbage collector: none of that is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which workers take them: the long ones, then by number of tests."""
    counts = Counter(item.path for item in items)
    long = {TESTS / name: place for place, name in enumerate(LONG_FILES)}
    assert all(path.exists() for path in long), "LONG_FILES names a file that is gone"
    items.sort(key=lambda item: (long.get(item.path, len(long)), -counts[item.path], item.path))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command-line tool's ``configure_logging`` does to the whole process.

    A fixture of the session may have called one just now, before this fixture was set up.
    """
    root, ours = logging.getLogger(), logging.getLogger("divprune")
    ours.setLevel(logging.NOTSET)
    handlers = list(root.handlers)
    yield
    ours.setLevel(logging.NOTSET)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def _faster_exports() -> None:
    """Spare exports what they would do again and again in one process.

    What is alive between two modules is taken out of what Python's garbage collector looks at:
    torch, transformers and thousands of collected tests are over half a million objects that never
    become garbage, and looking at them took long in tests that export.
    """
    gc.collect()
    gc.freeze()
    if "divprune.export.vision.trace" in sys.modules:
        from traced_once import share_traces

        share_traces()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a name of ``checkpoints.TINY_CHECKPOINTS`` to its directory.

    Written once a session: copy it before changing anything.
    """
    pytest.importorskip("transformers", reason="tiny checkpoints are written by transformers")
    from checkpoints import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_tiny_checkpoint(path, name)

    return get


@pytest.fixture(scope="session")
def engine_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported engine directory (fp32, keep 0.1): copy it before changing anything.

    An environment that cannot export gets one through ``DIVPRUNE_TEST_ENGINE_DIR``.
    """
    if given := os.environ.get("DIVPRUNE_TEST_ENGINE_DIR"):
        return Path(given)
    pytest.importorskip("torch", reason="exporting needs torch")
    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    source = request.getfixturevalue("checkpoint")("clip-llama-hub")
    output = tmp_path_factory.mktemp("engines") / "clip-llama-hub-keep0.1"
    export_model(ExportOptions(model=str(source), keep=0.1, dtype="fp32", output=output))
    return output


@pytest.fixture(scope="session")
def target_dir(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function from a ``--target``, a dtype and a ``--quant`` to an export of one checkpoint.

    Unchecked, keep 0.1 unless options of the export say otherwise, grouped queries; written once
    a session: copy before changing anything.
    """
    pytest.importorskip("torch", reason="exporting needs torch")
    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    folder = tmp_path_factory.mktemp("targets")

    def get(target: str, dtype: str = "fp32", quant: str | None = None, **options: Any) -> Path:
        words = (target, dtype, quant, *(f"{key}-{options[key]}" for key in sorted(options)))
        output = folder / "-".join(map(str, words))
        if not output.exists():
            model = str(checkpoint("clip-llama-v4-gqa2-full"))
            fixed = {"keep": 0.1, "dtype": dtype, "quant": quant, "verify": False}
            export_model(
                ExportOptions(model=model, target=target, output=output, **{**fixed, **options})
            )
        return output

    return get


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy: a stale build/ folder would end up inside it."""
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in PACKAGE_FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    shutil.copytree(ROOT / "src", source / "src", ignore=unwanted, symlinks=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wheels = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source)
    (built,) = wheels.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the wheel and this environment's libraries.

    An editable install beside the wheel would register Optimum's command twice; a ``.pth`` file
    leads to the libraries but not to the editable install, which is a ``.pth`` file itself.
    """
    folder = tmp_path_factory.mktemp("wheel-environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    paths = sysconfig.get_paths()
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "libraries.pth").write_text("\n".join({paths["purelib"], paths["platlib"]}))
    _pip("--python", python, "install", "--no-deps", "--force-reinstall", wheel)
    _, _, body = Path(sys.executable).with_name("optimum-cli").read_text().partition("\n")
    script = python.with_name("optimum-cli")
    script.write_text(f"#!{python}\n{body}")
    script.chmod(0o755)
    return python.parent


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stderr}", pytrace=False)
