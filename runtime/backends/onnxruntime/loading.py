"""Opening the graphs of an engine directory as ONNX Runtime sessions, on a CPU or on CUDA.

What only CUDA needs is imported where it is needed: it would cost every start on a CPU.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends.onnxruntime.backend import ROWS_ON_CPU, OnnxRuntimeBackend
from divprune.runtime.backends.onnxruntime.cache import KVCache
from divprune.runtime.backends.onnxruntime.decoder import DecoderSession
from divprune.runtime.backends.onnxruntime.residents import Decoder, Residents
from divprune.runtime.backends.onnxruntime.session import open_session, require_onnxruntime
from divprune.runtime.backends.onnxruntime.vision import KernelVision, WholeVision
from divprune.runtime.directory.keep import exported_count
from divprune.runtime.errors import BackendError, EngineDirectoryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray

    from divprune.runtime.backends import Selection
    from divprune.runtime.backends.onnxruntime.recorded import Recorder
    from divprune.runtime.backends.onnxruntime.selection_kernel import SelectionKernel
    from divprune.runtime.backends.onnxruntime.vision import Vision
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.manifest import Manifest

__all__ = [
    "load",
    "load_selection",
    "open_kernel",
    "open_kernel_selection",
    "open_selection_graph",
]

log = logging.getLogger(__name__)


def load(
    directory: EngineDirectory,
    *,
    device: str,
    threads: int | None,
    residency: str = "concurrent",
    kernel: SelectionKernel | None = None,
    recorder: Recorder | None = None,
) -> OnnxRuntimeBackend:
    """Open the graphs on ``device`` and allocate the KV cache; ``sequential``: vision only.

    Args:
        directory: The engine directory.
        device: ``cpu`` or ``cuda``.
        threads: Threads inside one operator; None leaves it to the library.
        residency: ``concurrent`` or ``sequential``.
        kernel: Makes the selection, where the directory has graphs for that; by default there is
            one on CUDA.
        recorder: Records decode steps; by default there is one on CUDA if the environment
            asks for it.

    Raises:
        BackendError: if ONNX Runtime is missing, too old, without the device, or refuses.
        EngineDirectoryError: if a graph is not the one that the manifest describes.
        OptionError: if the environment says nothing that can be done.
    """
    if recorder is None and device == "cuda":
        from divprune.runtime.backends.onnxruntime.recorded import wanted_recorder

        recorder = wanted_recorder()
    library, manifest = require_onnxruntime(directory, device), directory.manifest
    if kernel is None and device == "cuda":
        kernel = open_kernel(manifest)
    if recorder is not None and "llm_decode" not in manifest.graphs:
        recorder.give_up(f"{directory.path} has no llm/decode.onnx")

    def session(name: str, **options: Any) -> Any:
        directory.require_unchanged()  # what is opened later was checked when the directory was
        return open_session(library, directory, name, device=device, threads=threads, **options)

    def open_full() -> Any:
        return residents.full()

    def open_vision() -> Vision:
        if kernel is None:
            return WholeVision(session("vision", runs_once=True), manifest, open_full)
        from divprune.runtime.backends.onnxruntime.selection_kernel import KernelSelection

        opened = partial(session, runs_once=True, cuda_options=kernel.provider_options)
        return KernelVision(
            opened("vision_features"),
            KernelSelection(library, opened("vision_similarities"), kernel),
            opened("vision_rows"),
            manifest.selector.num_kept,
        )

    residents = Residents(
        open_vision,
        partial(session, "full", runs_once=True),
        partial(_open_decoder, library, manifest, device, session, recorder),
        together=residency == "concurrent",
    )
    return OnnxRuntimeBackend(
        residents,
        manifest,
        f"onnxruntime {library.__version__}",
        _places(manifest, device, kernel),
        rows_at_once=ROWS_ON_CPU if device == "cpu" else None,
        recorder=recorder,
    )


def open_kernel(manifest: Manifest) -> SelectionKernel | None:
    """The kernel on the GPU; None, with a warning, where the vision graph's Loop selects."""
    from divprune.plugins.driver import Driver
    from divprune.plugins.node import MAX_TOKENS
    from divprune.runtime.backends.onnxruntime.selection_kernel import SelectionKernel

    if not _has_greedy_loop(manifest):
        return None
    if "vision_features" not in manifest.graphs:
        log.warning(
            "the selection runs as an ONNX Loop, which is slow on a GPU: this directory has no"
            " vision/features.onnx (exports with --dtype fp16 and up to %d visual tokens have)",
            MAX_TOKENS,
        )
        return None
    try:
        return SelectionKernel(Driver())
    except BackendError as error:
        log.warning("the selection runs as an ONNX Loop, which is slow on a GPU: %s", error)
        return None


def _has_greedy_loop(manifest: Manifest) -> bool:
    """Whether the vision graph chooses one token after the other, as the kernel does."""
    return any(each.name == "selection_cover" for each in manifest.graphs["vision"].outputs)


def _places(manifest: Manifest, device: str, kernel: SelectionKernel | None) -> tuple[str, ...]:
    """Where things run, for the backend's name."""
    if (device == "cpu" and kernel is None) or not _has_greedy_loop(manifest):
        return (device.upper(),)
    return (device.upper(), f"selection: {'loop' if kernel is None else kernel.title}")


def _open_decoder(
    library: ModuleType,
    manifest: Manifest,
    device: str,
    session: Callable[..., Any],
    recorder: Recorder | None,
    cache: KVCache | None = None,
) -> Decoder:
    if recorder is not None and recorder.is_on:
        try:
            return _open_recorded(library, manifest, device, session, recorder)
        except EngineDirectoryError:
            raise
        except Exception as error:  # ONNX Runtime's share no base class of their own
            recorder.give_up(error)
    # The larger ones first: what loading needs on top of the weights is gone when others come.
    has_prefill = "llm_prefill" in manifest.graphs
    prefill_session = session("llm_prefill", runs_once=True) if has_prefill else None
    sessions = [session(name, runs_once=False) for name in manifest.llm_graphs]
    specs = [manifest.decoder_graph(name) for name in manifest.llm_graphs]
    parts = [
        DecoderSession(library, opened, spec, cache or KVCache(library, spec, device))
        for opened, spec in zip(sessions, specs, strict=True)
    ]
    prefill = None
    if prefill_session is not None:
        prefill = DecoderSession(library, prefill_session, specs[0], parts[0].cache)
    has_selection = "llm_selection" in manifest.graphs
    selection = session("llm_selection", runs_once=True) if has_selection else None
    return Decoder(parts, prefill, selection)


def _open_recorded(
    library: ModuleType,
    manifest: Manifest,
    device: str,
    session: Callable[..., Any],
    recorder: Recorder,
) -> Decoder:
    from divprune.runtime.backends.onnxruntime.recorded import RecordedDecoder

    opened = session("llm_decode", runs_once=False, cuda_options=recorder.provider_options)
    spec = manifest.decoder_graph("llm_decode")
    cache = KVCache(library, spec, device)
    recorded = RecordedDecoder(library, opened, spec, cache, recorder)
    return Decoder([recorded], None, None, recorded)


def load_selection(directory: EngineDirectory, *, device: str, threads: int | None) -> Selection:
    """Open what selects in the vision graph's place; the errors are those of ``load``."""
    library = require_onnxruntime(directory, device)
    kernel = open_kernel(directory.manifest) if device == "cuda" else None
    if kernel is not None:
        return open_kernel_selection(library, directory, kernel, threads=threads)
    return open_selection_graph(library, directory, device=device, threads=threads)


def open_selection_graph(
    library: ModuleType, directory: EngineDirectory, *, device: str, threads: int | None
) -> Selection:
    """The selection as a graph of its own, with its ``Loop``."""
    session = open_session(
        library, directory, "selection", device=device, threads=threads, runs_once=True
    )
    manifest = directory.manifest
    outputs = [output.name for output in manifest.graphs["selection"].outputs]
    takes_features = any(each.name == "image_features" for each in session.get_inputs())

    def select(image_features: NDArray[np.floating]) -> NDArray[np.int64]:
        feeds = _made_up_inputs(manifest, len(image_features))
        feeds |= {"image_features": image_features} if takes_features else {}
        order: NDArray[np.int64]
        order, *_ = session.run(outputs, feeds)
        return order

    return select


def open_kernel_selection(
    library: ModuleType, directory: EngineDirectory, kernel: SelectionKernel, *, threads: int | None
) -> Selection:
    """The selection by the kernel, from features on the host, which it copies to the device."""
    from divprune.runtime.backends.onnxruntime.selection_kernel import KernelSelection

    session = open_session(
        library,
        directory,
        "vision_similarities",
        device=kernel.device,
        threads=threads,
        runs_once=True,
        cuda_options=kernel.provider_options,
    )
    selection, manifest = KernelSelection(library, session, kernel), directory.manifest

    def select(image_features: NDArray[np.floating]) -> NDArray[np.int64]:
        features = library.OrtValue.ortvalue_from_numpy(image_features, kernel.device)
        order, _ = selection.choose(features, exported_count(manifest, len(image_features)))
        kernel.synchronize()
        chosen: NDArray[np.int64] = order.numpy()[0].astype(np.int64)
        return chosen

    return select


def _made_up_inputs(manifest: Manifest, num_tokens: int) -> dict[str, NDArray[Any]]:
    """For what a selection reads beside the features: numbers that take as long as real ones."""
    generator = np.random.default_rng(0)
    sizes = {"tokens": num_tokens, "kept": exported_count(manifest, num_tokens)}
    return {
        spec.name: generator.random(
            [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape], np.float32
        ).astype(spec.dtype)
        for spec in manifest.graphs["selection"].inputs
        if spec.name != "image_features"
    }
