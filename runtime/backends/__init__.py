"""Backends: what runs the graphs of an engine directory, behind one protocol.

The pipeline above knows only ``Backend``. Each adapter module offers
``load(directory, *, device, threads, residency)`` and imports its library inside functions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, cast

from divprune.runtime.errors import EngineDirectoryError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.directory.engine_directory import EngineDirectory

__all__ = [
    "BACKENDS",
    "DEVICES",
    "RESIDENCIES",
    "Backend",
    "Logits",
    "PrunedPrefill",
    "Selection",
    "check_choice",
    "choose_device",
    "load_backend",
    "load_selection",
]

log = logging.getLogger(__name__)

BACKENDS = {
    "onnxruntime": "divprune.runtime.backends.onnxruntime.loading",
    "tensorrt": "divprune.runtime.backends.tensorrt.backend",
}
DEVICES = ("cpu", "cuda")
# Vision and LLM together in memory, or one of them at a time.
RESIDENCIES = ("concurrent", "sequential")
_BACKEND_FOR_TARGET = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
    "jetpack6": "tensorrt",
}
_DEFAULT_DEVICE = {"onnxruntime": "cpu", "tensorrt": "cuda"}


# From image features [N, hidden] to the kept indices int64 [K], in the order chosen.
Selection = Callable[["NDArray[np.floating]"], "NDArray[np.int64]"]


_MAX_THREADS = 64  # however few cores there are: far above what helps, below what fails


class Logits(Protocol):
    """Scores [V] of the next token that are still on a device."""

    def best(self) -> tuple[int, float]:
        """The lowest index of the largest and its value; a NaN is larger than any number."""
        ...

    def numpy(self) -> NDArray[np.float32]:
        """All of them, copied to the host."""
        ...


@dataclass(frozen=True)
class PrunedPrefill:
    """A prompt that lost visual tokens between decoder layers.

    Attributes:
        logits: float32 [V] of its last row; they may still be on a device.
        orders: For each picture int64 [k], places of the kept tokens among its N, in the order
            chosen.
        selection_ms: Time of the selection, gathering the rows included.
    """

    logits: NDArray[np.float32] | Logits
    orders: tuple[NDArray[np.int64], ...]
    selection_ms: float


class Backend(Protocol):
    """One loaded engine directory: a vision graph, the LLM graphs and their KV cache."""

    @property
    def name(self) -> str:
        """Library, version and device, as reports show it."""
        ...

    @property
    def encodes_beside_decoding(self) -> bool:
        """Whether one thread may call ``encode_image`` while another calls ``forward``."""
        ...

    @property
    def rows_at_once(self) -> int | None:
        """Rows of a prompt that go through the LLM together at most; None: any number."""
        ...

    def encode_image(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """Run the vision graph on its inputs, by name."""
        ...

    def reset(self, rows: int = 0) -> int:
        """Start a new sequence that shares its first ``rows`` rows with the one before.

        Where vision and LLM are not in memory together, a picture that is encoded later may
        end the sequence.

        Returns:
            How many of the rows the cache still holds: ``rows``, or 0.
        """
        ...

    def forward(
        self,
        inputs_embeds: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]] = (),
    ) -> NDArray[np.float32] | Logits:
        """Append S rows to the cache and return the logits [V] of the last one.

        Args:
            inputs_embeds: [1, S, hidden] in the dtype of the LLM graph.
            position_ids: int64 [1, S] or [3, 1, S], for the rotary embedding only.
            planes: Rows [1, S, hidden] that are added behind the first decoder layers, where the
                LLM graph takes them; none for rows of text.

        Raises:
            BackendError: if S rows do not fit into what is left of the cache.
        """
        ...

    def prefill_pruned(
        self,
        inputs_embeds: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        visual_rows: Sequence[NDArray[np.int64]],
        num_kept: Sequence[int],
        planes: Sequence[NDArray[np.floating]] = (),
    ) -> PrunedPrefill:
        """Start a sequence whose visual tokens are pruned between decoder layers.

        All rows go through the layers in front of the selection, the kept ones through those
        behind it, at the positions that they had. ``forward`` continues the sequence.

        Args:
            inputs_embeds: [1, S, hidden], the whole prompt.
            position_ids: int64 [1, S] or [3, 1, S].
            visual_rows: int64 [N], the rows of the visual tokens of each picture, ascending.
            num_kept: k of the N tokens to keep of each picture, at most as many as are selected.
            planes: As in ``forward``; layers behind the selection add the rows that stay.

        Raises:
            BackendError: if the rows do not fit into the cache.
            UnsupportedError: if this directory has no selection inside the LLM.
        """
        ...


class _Adapter(Protocol):
    def load(
        self, directory: EngineDirectory, *, device: str, threads: int | None, residency: str
    ) -> Backend: ...

    def load_selection(
        self, directory: EngineDirectory, *, device: str, threads: int | None
    ) -> Selection | None: ...


def load_backend(
    name: str | None,
    directory: EngineDirectory,
    *,
    device: str | None,
    threads: int | None,
    residency: str = "concurrent",
) -> Backend:
    """Load the graphs of ``directory`` with the backend ``name``.

    Args:
        name: A key of ``BACKENDS``; None takes the one the directory was exported for.
        directory: An opened, verified engine directory.
        device: ``cpu`` or ``cuda``; None takes the GPU with TensorRT and the CPU otherwise.
        threads: Threads inside one operator; None leaves it to the library.
        residency: ``concurrent`` loads vision and LLM now; ``sequential`` has one of them in
            memory at a time and loads it when it is needed.

    Raises:
        OptionError: for an unknown backend, device or residency, or an impossible thread count.
        EngineDirectoryError: if the manifest lacks a graph.
        BackendError: if the backend is missing, too old, or refuses the graphs.
    """
    check_choice(name, device, threads, residency)
    _require_graphs(directory)
    adapter = _adapter(name, directory)
    device = choose_device(name, directory, device)
    start = perf_counter()
    backend = adapter.load(directory, device=device, threads=threads, residency=residency)
    log.info("%s loaded %s in %.1f s", backend.name, directory.path, perf_counter() - start)
    return backend


def load_selection(
    name: str | None, directory: EngineDirectory, *, device: str | None, threads: int | None
) -> Selection | None:
    """Load the graph that holds the selection alone, to time what it takes of the vision graph.

    Arguments and errors are those of ``load_backend``. None where the vision graph selects in
    another way than that graph.
    """
    check_choice(name, device, threads)
    device = choose_device(name, directory, device)
    return _adapter(name, directory).load_selection(directory, device=device, threads=threads)


def _require_graphs(directory: EngineDirectory) -> None:
    manifest = directory.manifest
    for graph in ("vision", *manifest.llm_graphs):
        if graph not in manifest.graphs:
            raise EngineDirectoryError(
                f"{directory.path} has no graph {graph}",
                expected="the graphs that every run needs",
                found=", ".join(manifest.graphs) or "none",
                fix="export the model again with divprune-export",
            )


def choose_device(name: str | None, directory: EngineDirectory, device: str | None) -> str:
    """The device that was asked for, or the one that goes with the backend."""
    return device or _DEFAULT_DEVICE[name or _BACKEND_FOR_TARGET[directory.manifest.target]]


def check_choice(
    name: str | None, device: str | None, threads: int | None, residency: str = "concurrent"
) -> None:
    """Check a choice of backend that has not met an engine directory yet.

    Raises:
        OptionError: for an unknown backend, device or residency, or a thread count below 1.
    """
    if name is not None and name not in BACKENDS:
        raise OptionError(f"unknown backend {name!r}", expected=", ".join(BACKENDS), found=name)
    if device is not None and device not in DEVICES:
        raise OptionError(f"unknown device {device!r}", expected=", ".join(DEVICES), found=device)
    if residency not in RESIDENCIES:
        raise OptionError(
            f"unknown residency {residency!r}", expected=", ".join(RESIDENCIES), found=residency
        )
    highest = max(_MAX_THREADS, 4 * (os.cpu_count() or 1))
    if threads is not None and not 1 <= threads <= highest:
        raise OptionError(
            "--threads is no number of threads that this machine can use",
            expected=f"1 to {highest}; this machine has {os.cpu_count()} cores",
            found=threads,
            fix="leave --threads out",
        )


def _adapter(name: str | None, directory: EngineDirectory) -> _Adapter:
    name = name or _BACKEND_FOR_TARGET[directory.manifest.target]
    return cast("_Adapter", import_module(BACKENDS[name]))
