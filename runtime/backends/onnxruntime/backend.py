"""ONNX Runtime: the graphs as sessions, the KV cache bound in place.

| graph | input | dtype, shape |
|---|---|---|
| vision | ``pixel_values`` | float32 [crops, 3, H, W] |
| selection | ``image_features`` | float [N, hidden]; a selector may read more, or pixels |
| llm | ``inputs_embeds`` | float [1, S, hidden] |
| llm | ``position_ids`` | int64 [1, S] |
| llm | ``write_indices`` | int64 [1], slots filled before this call |
| llm | ``live_slots`` | int64 [live], of the TensorRT dialects: 0 to live - 1 |
| llm | ``past_key_i``, ``past_value_i`` | float [1, KV heads, S_max, head dim] |

S_max is the manifest's ``max_seq_len``; graphs of the dialect ``ort`` leave it open.

Directories for TensorRT run here as well, to check them before they are copied to the device.
In the dialect ``delta`` (target jetpack6) the LLM graph yields ``new_key_i`` and ``new_value_i``
[1, KV heads, S, head dim], and this backend writes them into the cache (on the CPU only).

``llm_prefill``, where there is one, has the inputs and outputs of ``llm`` and takes the prompt.

With a selection inside the LLM there are ``llm_front``, ``llm_selection`` and ``llm_back``
(`divprune.export.decoder.graph`, `divprune.export.selection.in_llm`) instead of ``llm``.
"""

from __future__ import annotations

import logging
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.plugins.driver import Driver
from divprune.plugins.node import MAX_TOKENS
from divprune.runtime.backends import PrunedPrefill
from divprune.runtime.backends.onnxruntime.cache import KVCache
from divprune.runtime.backends.onnxruntime.decoder import DecoderSession
from divprune.runtime.backends.onnxruntime.residents import Decoder, Residents
from divprune.runtime.backends.onnxruntime.selection_kernel import KernelSelection, SelectionKernel
from divprune.runtime.backends.onnxruntime.session import open_session, require_onnxruntime
from divprune.runtime.backends.onnxruntime.vision import KernelVision, WholeVision
from divprune.runtime.directory.keep import exported_count
from divprune.runtime.errors import BackendError, UnsupportedError
from divprune.runtime.inputs.prompt import staying_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from divprune.runtime.backends import Selection
    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.backends.onnxruntime.vision import Vision
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.manifest import Manifest

log = logging.getLogger(__name__)

__all__ = ["ROWS_ON_CPU", "OnnxRuntimeBackend", "load", "load_selection"]

ROWS_ON_CPU = 128
"""Prompts go through a CPU in pieces of so many rows: what a layer makes of them stays in its
caches (636 rows of a 1.1B in int8: 1.2 s instead of 1.6 s on two cores of a Xeon with AMX), and
scratch memory does not grow with the prompt."""


def load(
    directory: EngineDirectory,
    *,
    device: str,
    threads: int | None,
    residency: str = "concurrent",
) -> OnnxRuntimeBackend:
    """Open the graphs on ``device`` and allocate the KV cache; ``sequential``: vision only.

    Raises:
        BackendError: if ONNX Runtime is missing, too old, without the device, or refuses.
        EngineDirectoryError: if a graph is not the one that the manifest describes.
    """
    library = require_onnxruntime(directory, device)
    kernel = open_kernel(directory.manifest) if device == "cuda" else None
    return open_backend(
        library, directory, device=device, threads=threads, residency=residency, kernel=kernel
    )


def open_backend(
    library: ModuleType,
    directory: EngineDirectory,
    *,
    device: str,
    threads: int | None,
    residency: str,
    kernel: SelectionKernel | None,
) -> OnnxRuntimeBackend:
    """Open the graphs with an ONNX Runtime that can run them.

    ``kernel`` makes the selection where the directory has graphs for that; None: its vision graph.
    """
    manifest = directory.manifest

    def session(name: str, **options: Any) -> Any:
        directory.require_unchanged()  # what is opened later was checked when the directory was
        return open_session(library, directory, name, device=device, threads=threads, **options)

    def open_full() -> Any:
        return residents.full()

    def open_vision() -> Vision:
        if kernel is None:
            return WholeVision(session("vision", runs_once=True), manifest, open_full)
        opened = partial(session, runs_once=True, stream=kernel.stream)
        return KernelVision(
            opened("vision_features"),
            KernelSelection(library, opened("vision_similarities"), kernel),
            opened("vision_rows"),
            manifest.selector.num_kept,
        )

    residents = Residents(
        open_vision,
        partial(session, "full", runs_once=True),
        partial(_open_decoder, library, manifest, device, session),
        together=residency == "concurrent",
    )
    return OnnxRuntimeBackend(
        residents,
        manifest,
        f"onnxruntime {library.__version__} ({_place(manifest, device, kernel)})",
        rows_at_once=ROWS_ON_CPU if device == "cpu" else None,
    )


def open_kernel(manifest: Manifest) -> SelectionKernel | None:
    """The kernel on the GPU; None, with a warning, where the vision graph's Loop selects."""
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


def _place(manifest: Manifest, device: str, kernel: SelectionKernel | None) -> str:
    """Where things run, for the backend's name."""
    if (device == "cpu" and kernel is None) or not _has_greedy_loop(manifest):
        return device.upper()
    return f"{device.upper()}, selection: {'loop' if kernel is None else kernel.title}"


def _open_decoder(
    library: ModuleType, manifest: Manifest, device: str, session: Callable[..., Any]
) -> Decoder:
    # The larger ones first: what loading needs on top of the weights is gone when others come.
    has_prefill = "llm_prefill" in manifest.graphs
    prefill_session = session("llm_prefill", runs_once=True) if has_prefill else None
    sessions = [session(name, runs_once=False) for name in manifest.llm_graphs]
    specs = [manifest.decoder_graph(name) for name in manifest.llm_graphs]
    parts = [
        DecoderSession(library, opened, spec, KVCache(library, spec, device))
        for opened, spec in zip(sessions, specs, strict=True)
    ]
    prefill = None
    if prefill_session is not None:
        prefill = DecoderSession(library, prefill_session, specs[0], parts[0].cache)
    has_selection = "llm_selection" in manifest.graphs
    selection = session("llm_selection", runs_once=True) if has_selection else None
    return Decoder(parts, prefill, selection)


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
    session = open_session(
        library,
        directory,
        "vision_similarities",
        device=kernel.device,
        threads=threads,
        runs_once=True,
        stream=kernel.stream,
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


def _pieces(count: int, most: int | None) -> list[slice]:
    """Rows 0 to ``count`` in pieces of about the same size, each of ``most`` rows or fewer."""
    pieces = 1 if most is None else -(-count // most)
    ends = [count * i // pieces for i in range(pieces + 1)]
    return [slice(*ends[i : i + 2]) for i in range(pieces)]


class OnnxRuntimeBackend:
    """Sessions of one engine directory; the decoder is in one part, or in a front and a back."""

    def __init__(
        self,
        residents: Residents,
        manifest: Manifest,
        name: str,
        *,
        rows_at_once: int | None = None,
    ) -> None:
        self.name = name
        self._residents = residents
        self.rows_at_once = rows_at_once
        # There masked slots are multiplied by zero instead of being left out.
        self._reads_masked_slots = manifest.dialect != "ort"
        self._manifest = manifest

    @property
    def encodes_beside_decoding(self) -> bool:
        """Sessions may run at the same time, unless one is closed for the other."""
        return self._residents.together

    def encode_image(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """Run the vision graph on its inputs, by name."""
        return self._residents.vision().encode(inputs)

    def reset(self, rows: int = 0) -> int:
        """Start a new sequence behind ``rows`` rows; other slots are overwritten before they count.

        Where masked slots are read, a NaN in one would spoil every sequence that follows: a new
        sequence finds zeros there.
        """
        parts = self._residents.start_sequence().parts
        if rows > min(part.cache.filled for part in parts):
            rows = 0  # the caches were closed since
        for part in parts:
            if self._reads_masked_slots and rows == 0:
                part.cache.clear()
            part.cache.filled = rows
        return rows

    def forward(
        self,
        inputs_embeds: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]] = (),
    ) -> NDArray[np.float32]:
        """Append S rows to the cache and return the logits [V] of the last one.

        Raises:
            BackendError: if S rows do not fit into what is left of the cache.
        """
        decoder = self._residents.decoder()
        parts = decoder.parts
        if decoder.prefill is not None and inputs_embeds.shape[1] > 1:
            parts = [decoder.prefill]
        logits = np.empty(0, np.float32)
        for piece in self._in_pieces(inputs_embeds, position_ids, planes):
            rows, positions, here = piece
            for graph in parts[:-1]:
                rows = graph.run(rows, positions, here)["hidden_states"]
            logits = parts[-1].run(rows, positions, here)["logits"][0, 0]
        return logits

    def _in_pieces(
        self,
        rows: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]],
    ) -> Iterator[tuple[NDArray[np.floating], NDArray[np.int64], list[NDArray[np.floating]]]]:
        """Rows [1, S, hidden], their positions and planes, as many at once as go through well."""
        for part in _pieces(rows.shape[1], self.rows_at_once):
            yield rows[:, part], position_ids[..., part], [plane[:, part] for plane in planes]

    def prefill_pruned(
        self,
        inputs_embeds: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        visual_rows: Sequence[NDArray[np.int64]],
        num_kept: Sequence[int],
        planes: Sequence[NDArray[np.floating]] = (),
    ) -> PrunedPrefill:
        """Front, selection, the kept rows through the back; as ``Backend`` says.

        Raises:
            BackendError: if the rows do not fit into the cache.
            UnsupportedError: if this directory has no selection inside the LLM.
        """
        if not self._manifest.selector.inside_llm:
            raise UnsupportedError("this engine directory does not prune inside the LLM")
        decoder = self._residents.decoder()
        front, back = decoder.parts
        pieces = self._in_pieces(inputs_embeds, position_ids, planes)
        outputs = [front.run(*piece) for piece in pieces]
        start = perf_counter()
        states = np.concatenate([each["hidden_states"] for each in outputs], axis=1)
        last = {**outputs[-1], "hidden_states": states}
        select = partial(self._select, decoder.selection, front, last)
        counted = zip(visual_rows, num_kept, strict=True)
        orders = tuple(select(rows)[:count] for rows, count in counted)
        stays = staying_rows(inputs_embeds.shape[1], visual_rows, orders)
        hidden = np.ascontiguousarray(states[:, stays])
        selection_ms = (perf_counter() - start) * 1000
        staying = [plane[:, stays] for plane in planes]
        logits = np.empty(0, np.float32)
        for piece in self._in_pieces(hidden, position_ids[..., stays], staying):
            logits = back.run(*piece)["logits"][0, 0]
        return PrunedPrefill(logits, orders, selection_ms)

    def _select(
        self,
        selection: Any | None,
        front: DecoderSession,
        outputs: dict[str, NDArray[Any]],
        rows: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The selection graph on one picture, whose N tokens lie in ``rows``."""
        if selection is None:
            return np.empty(0, np.int64)
        hidden = outputs["hidden_states"][0]
        feeds: dict[str, Any] = {
            "visual_states": hidden[rows],
            "last_state": hidden[-1:],
            "last_query": outputs.get("last_query"),
            "keys": front.cache.last_keys,
            "visual_slots": rows,
            "num_slots": np.array([front.cache.filled], np.int64),
            "kept_slots": np.zeros(exported_count(self._manifest, len(rows)), np.int32),
        }
        order: NDArray[np.int64] = front.run_beside(selection, feeds, "selection_order")
        return order
