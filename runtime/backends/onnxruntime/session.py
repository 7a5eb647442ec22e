"""Opening ONNX Runtime sessions: version, device, options, and a check of the graph."""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from divprune.runtime.directory.export_command import export_command
from divprune.runtime.directory.onnxruntime_library import import_onnxruntime
from divprune.runtime.errors import BackendError, EngineDirectoryError
from divprune.runtime.memory import page_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.manifest import TensorSpec

__all__ = ["DISABLED_OPTIMIZERS", "open_session", "require_onnxruntime", "require_precision"]

# On CUDA this fusion moves RotaryEmbedding into GroupQueryAttention, which indexes cosine and sine
# by slot. Ours are rows of the positions at hand, one for each row of the step: from the first
# decode step on it reads beyond them, and the process aborts (onnxruntime-gpu 1.31.1). No setting
# of ours needs the fusion on another device, so it is off on all.
DISABLED_OPTIMIZERS = ("GroupQueryAttentionFusion",)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PACKAGES = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu"}
_EXTRAS = {"cpu": "cpu", "cuda": "gpu"}
# "delta" leaves the cache to the backend, which writes it on the host.
_DIALECTS = {"cpu": ("ort", "onnx", "delta"), "cuda": ("ort", "onnx")}
_ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}


def require_onnxruntime(directory: EngineDirectory, device: str) -> ModuleType:
    """Import ONNX Runtime, provided that it can run this engine directory on ``device``.

    Raises:
        BackendError: if it is not installed, older than the manifest requires, lacks the
            execution provider of the device, or cannot run the dialect or the precision of the
            graphs.
    """
    manifest = directory.manifest
    install = f'pip install "divprune-edge[{_EXTRAS[device]}]"'
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise BackendError(
            "ONNX Runtime cannot be imported",
            expected="the onnxruntime package",
            found=error,
            fix=install,
        ) from error
    if manifest.dialect not in _DIALECTS[device]:
        raise BackendError(
            f"ONNX Runtime does not run graphs of dialect {manifest.dialect!r} on {device}",
            expected=" or ".join(_DIALECTS[device]),
            found=f"{manifest.dialect} (target {manifest.target})",
            fix=export_command(manifest, target="onnxruntime"),
        )
    _require_version(onnxruntime.__version__, manifest.requires.get("onnxruntime", "0"), device)
    _require_provider(onnxruntime, device, install)
    if device == "cuda":
        require_precision(directory)
        _preload_libraries(onnxruntime)
    return onnxruntime


def open_session(
    onnxruntime: ModuleType,
    directory: EngineDirectory,
    graph: str,
    *,
    device: str,
    threads: int | None,
    runs_once: bool,
    cuda_options: Mapping[str, str] | None = None,
) -> Any:
    """Open a graph of the manifest and check that it is the one the manifest describes.

    Args:
        onnxruntime: The library, from ``require_onnxruntime``.
        directory: The engine directory.
        graph: Key of ``manifest.graphs``.
        device: ``cpu`` or ``cuda``.
        threads: Threads inside one operator; None takes one for each physical core.
        runs_once: The graph runs once before another one does the work: after each run its
            threads sleep instead of waiting actively, and its scratch memory is given back.
        cuda_options: Further options of the CUDA provider.

    Raises:
        BackendError: if ONNX Runtime refuses the graph or the device.
        EngineDirectoryError: if the graph has other inputs or outputs than the manifest says.
    """
    spec = directory.manifest.graphs[graph]
    options = _session_options(onnxruntime, threads, runs_once=runs_once)
    try:
        session = onnxruntime.InferenceSession(
            str(directory.file(spec.path)),
            options,
            providers=_providers(device, cuda_options or {}),
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
    except Exception as error:
        # ONNX Runtime's exceptions share no base class of their own.
        is_graph = type(error).__name__ != "InvalidProtobuf"
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {spec.path}",
            expected=f"a graph of opset {spec.opset} that this version knows",
            found=error,
            fix=f"pip install --upgrade {_PACKAGES[device]}"
            if is_graph
            else export_command(directory.manifest, directory.path),
        ) from error
    _check_started_on(device, session)
    _check_tensors(spec.path, "inputs", spec.inputs, session.get_inputs())
    _check_tensors(spec.path, "outputs", spec.outputs, session.get_outputs())
    page_out(directory.file(spec.path).parent)
    return _ShrinkingSession(onnxruntime, session) if runs_once and device == "cpu" else session


def _session_options(onnxruntime: ModuleType, threads: int | None, *, runs_once: bool) -> Any:
    """Prepacking and the arena stay on, as docs/memory.md measures.

    Weights left in the mapping make int4 decoding more than ten times slower.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if runs_once:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _check_started_on(device: str, session: Any) -> None:
    """Refuse a session that fell back to the CPU."""
    if _PROVIDERS[device] not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime could not start on {device} and would have used the CPU instead",
            expected=_PROVIDERS[device],
            found=", ".join(session.get_providers()),
            fix=f'pip install "divprune-edge[{_EXTRAS[device]}]", which brings the CUDA and cuDNN'
            " of onnxruntime-gpu, update the NVIDIA driver, or ask for --device cpu",
        )


class _ShrinkingSession:
    """A session that gives its scratch memory back after each run.

    Otherwise that of one graph would stay beside the next one's, 40 to 60 MiB each at
    LLaVA-1.5's picture size. Getting it anew takes no time that could be measured.
    """

    def __init__(self, onnxruntime: ModuleType, session: Any) -> None:
        self._session = session
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __getattr__(self, name: str) -> Any:
        """Everything but running is the session's own."""
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> Any:
        """Run on arrays."""
        return self._session.run(outputs, feeds, self._options)

    def run_with_iobinding(self, binding: Any) -> None:
        """Run on what is bound."""
        self._session.run_with_iobinding(binding, self._options)


def require_precision(directory: EngineDirectory) -> None:
    """Refuse what the CUDA provider has no kernels for; it would run on the CPU, or not at all.

    Raises:
        BackendError: with the command that exports the same in float16.
    """
    manifest = directory.manifest
    if manifest.runs_on_cuda:
        return
    found = manifest.flags_without_cuda
    int8 = manifest.quant is not None and manifest.quant.bits == 8
    mended = replace(
        manifest,
        dtype="fp16",
        quant=None if int8 else manifest.quant,
        vision_quant=None,
        prefill_quant=None,
    )
    output = directory.path.with_name(f"{directory.path.name}-cuda")
    raise BackendError(
        f"ONNX Runtime has no CUDA kernels for {' and '.join(found)}",
        expected="--dtype fp16, with --quant int4 or without",
        found=f"exported with {' '.join(found)}",
        fix=f"{export_command(mended, output)}, or ask for --device cpu",
    )


def _preload_libraries(onnxruntime: ModuleType) -> None:
    """Load CUDA and cuDNN from pip's packages, which the system's loader does not look into.

    It says on standard output what it does not find; that belongs to ``--json`` alone, and what
    is missing for good is said when the session opens.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def _require_version(found: str, minimum: str, device: str) -> None:
    if _numbers(found) < _numbers(minimum):
        raise BackendError(
            "ONNX Runtime is too old for this engine directory",
            expected=f"{_PACKAGES[device]} {minimum} or newer",
            found=found,
            fix=f'pip install --upgrade "{_PACKAGES[device]}>={minimum}"',
        )


def _require_provider(onnxruntime: ModuleType, device: str, install: str) -> None:
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[device] not in available:
        raise BackendError(
            f"this ONNX Runtime cannot run on {device}",
            expected=_PROVIDERS[device],
            found=", ".join(available),
            # The two packages share their files: what is left of one that stays is not installed
            # again.
            fix=f"pip uninstall -y onnxruntime onnxruntime-gpu && {install},"
            " or ask for --device cpu",
        )


def _providers(
    device: str, cuda_options: Mapping[str, str]
) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    # The selection compares float32 similarities; TF32 would round them to 10 bits.
    return [("CUDAExecutionProvider", {"use_tf32": "0", **cuda_options}), "CPUExecutionProvider"]


def _check_tensors(path: str, kind: str, specs: Sequence[TensorSpec], nodes: Sequence[Any]) -> None:
    found = {node.name: (node.type, tuple(node.shape)) for node in nodes}
    for spec in specs:
        expected = (_ORT_TYPES[spec.dtype], spec.shape)
        if spec.name not in found or not _matches(*expected, *found[spec.name]):
            raise _other_graph(path, f"{kind[:-1]} {spec.name} {expected}", found.get(spec.name))
    if extra := found.keys() - {spec.name for spec in specs}:
        raise _other_graph(path, f"{len(specs)} {kind}", f"also {', '.join(sorted(extra))}")


def _matches(
    dtype: str,
    shape: tuple[int | str, ...],
    found_dtype: str,
    found_shape: tuple[int | str | None, ...],
) -> bool:
    """Same type, rank, numbers and names of dimensions, where the graph has them."""
    if dtype != found_dtype or len(shape) != len(found_shape):
        return False
    return all(a == b for a, b in zip(shape, found_shape, strict=True) if b is not None)


def _other_graph(path: str, expected: str, found: object) -> EngineDirectoryError:
    return EngineDirectoryError(
        f"{path} is not the graph that manifest.json describes",
        expected=expected,
        found=found or "no such tensor",
        fix="export the model again with divprune-export",
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, ``1.31.1rc2`` as ``(1, 31, 1)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
