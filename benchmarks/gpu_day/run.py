"""Everything worth knowing about one GPU in a quarter of an hour, the most valuable first.

    python -m benchmarks.gpu_day.run [--output FOLDER] [--budget SECONDS] [--steps NAME ...]
    python -m benchmarks.gpu_day.run --device cpu --quick        # a rehearsal without a GPU

Each step is a process with a time of its own; what it found is in FOLDER/results.json as soon as it
found it. Copy that file to ``benchmarks/results/gpu-DEVICE-DATE.json`` and run
``python benchmarks/gpu_table.py``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu_day.report import ROOT, output, save

PACKAGES = "torch transformers onnx onnx-ir onnxscript onnxruntime onnxruntime-gpu cuda-bindings"
PACKAGES += " tokenizers safetensors numpy tensorrt tensorrt-rtx-cu13 pytest divprune-edge"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
GPU_TESTS = ("tests/plugins/test_kernel.py", "tests/plugins/test_kernel_benchmarks.py")
GPU_TESTS += ("tests/plugins/test_many_blocks.py", "tests/plugins/test_feature_selection.py")
GPU_TESTS += ("tests/runtime/backends/cuda", "tests/runtime/backends/tensorrt/test_cache.py")
# Name, seconds at most, module and function (or tool), arguments of the function.
STEPS: dict[str, tuple[int, str, list[str]]] = {
    "facts": (20, "run.facts", []),
    "kernel_order": (60, "kernel_steps.order", []),
    "kernel_latency": (75, "kernel_steps.latency", []),
    "many_blocks": (90, "many_steps.many_blocks", []),
    "device": (30, "device_step.device", []),
    "sanitizer": (120, "run.sanitizer", []),
    "pytest": (90, "run.gpu_tests", []),
    "ort_small": (70, "runtime_steps.ort_small", []),
    "int4": (70, "runtime_steps.int4", []),
    "llava": (120, "llava_step.llava", []),
    "ort_1.1b": (140, "runtime_steps.ort", ["llava-1.1b"]),
    "recorded": (140, "recorded_step.recorded", []),
    "ort_7b": (320, "runtime_steps.ort", ["llava-1.5-7b", "", "8"]),
}
REHEARSED = {"ort_1.1b": ["llava-tiny", "", "3"], "ort_7b": ["llava-tiny", "int4", "3"]}
_REHEARSAL_SLACK = 5
_STOP_BELOW = 15  # seconds left in which no step is begun


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("gpu_day_output"), help="default: %(default)s")
    add("--budget", type=int, default=840, help="seconds for all of it (%(default)s)")
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="NAME")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="default: %(default)s")
    add("--quick", action="store_true", help="smallest sizes: a rehearsal")
    add("--onnxruntime", type=Path, help="folder with the archives of pack_ort.py")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    environment = _environment(arguments)
    os.environ["GPU_DAY_OUTPUT"] = environment["GPU_DAY_OUTPUT"]
    end = time.monotonic() + arguments.budget
    for name in arguments.steps:
        box, target, options = STEPS[name]
        if arguments.quick:  # on a machine that may be busy with other things
            box, options = _REHEARSAL_SLACK * box, REHEARSED.get(name, options)
        left = end - time.monotonic()
        if left < _STOP_BELOW:
            save(name, skipped="no time left")
            continue
        _run_step(name, target, options, min(box, left), environment)
    return 0


def step(target: str, options: list[str]) -> None:
    """In a process of its own: call ``module.function``."""
    module, _, function = target.partition(".")
    run: Callable[..., None] = getattr(import_module(f"benchmarks.gpu_day.{module}"), function)
    run(*options)


def _run_step(
    name: str, target: str, options: list[str], box: float, environment: dict[str, str]
) -> None:
    print(f"=== {name}: at most {box:.0f} s", flush=True)
    code = f"from benchmarks.gpu_day.run import step; step({target!r}, {options!r})"
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, timeout=box, check=False, cwd=ROOT
        )
        exit_code = str(done.returncode)
    except subprocess.TimeoutExpired:
        exit_code = f"stopped after {box:.0f} s"
    save(name, exit=exit_code, seconds=round(time.monotonic() - begin, 1))


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    paths = [_onnxruntime_path(arguments.onnxruntime), _package_path(), str(ROOT)]
    paths.append(os.environ.get("PYTHONPATH", ""))
    return os.environ | {
        "GPU_DAY_DEVICE": arguments.device,
        "GPU_DAY_QUICK": "1" if arguments.quick else "",
        "GPU_DAY_OUTPUT": str(arguments.output.resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _package_path() -> str:
    """Where ``divprune`` is imported from; its links may have been lost on the way."""
    if (ROOT / "src" / "divprune" / "runtime" / "__init__.py").exists():
        return str(ROOT / "src")
    package = Path(tempfile.mkdtemp(prefix="gpu_day_")) / "divprune"
    package.mkdir()
    for part in ("configs", "export", "plugins", "runtime"):
        (package / part).symlink_to(ROOT / part)
    return str(package.parent)


def _onnxruntime_path(archives: Path | None) -> str:
    if archives is None:
        return ""
    folder = tempfile.mkdtemp(prefix="gpu_day_ort_")
    for archive in sorted(archives.glob("ort_*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def facts() -> None:
    """Machine, driver and versions."""
    from divprune.runtime.backends.cuda.cuda_device import find_cuda_device

    packages: dict[str, str | None] = {}
    for name in PACKAGES.split():
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    save(
        "facts",
        machine=platform.platform(),
        python=platform.python_version(),
        cpus=os.cpu_count(),
        packages=packages,
        revision=_ask("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        smi=_smi("name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,compute_cap"),
        find_cuda_device=find_cuda_device(),
    )


def sanitizer() -> None:
    """The small cases of the kernels under each tool of compute-sanitizer."""
    code = "from benchmarks.gpu_day.kernel_steps import small; small()"
    program = [sys.executable, "-c", code]
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        subprocess.run(program, check=True)
        save("sanitizer", skipped="no compute-sanitizer; the cases ran without it")
        return
    with (output() / "sanitizer.txt").open("w", encoding="utf-8") as log:
        for name in SANITIZERS:
            command = [tool, "--tool", name, "--error-exitcode", "9", *program]
            done = subprocess.run(command, stdout=log, stderr=log, timeout=30, check=False)
            save(f"sanitizer_{name}", exit=str(done.returncode))


def gpu_tests() -> None:
    """``pytest -m gpu``; a rehearsal collects them."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    rehearsed = os.environ["GPU_DAY_DEVICE"] == "cpu"
    command += [*GPU_TESTS, *(["--collect-only"] if rehearsed else [])]
    with (output() / "pytest.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False, cwd=ROOT)
    *_, last = (output() / "pytest.txt").read_text(encoding="utf-8").splitlines()
    save("pytest", said=last)
    raise SystemExit(done.returncode)


def _smi(fields: str) -> str | None:
    return _ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    raise SystemExit(main())
