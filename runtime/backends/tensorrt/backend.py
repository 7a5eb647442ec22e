"""TensorRT and TensorRT-RTX: the engines of ``divprune-build``, chained on the device.

Built, not run: this backend has not been executed on a GPU yet. Its logic is tested with
stand-ins for TensorRT and CUDA that compute the same graphs on the CPU.

picture ─► vision engine ─► features (device) ─► prompt embeddings (device) ─► LLM engine ─► token

With a selection inside the LLM its engine is in two halves (``tensorrt_pruning``).

| on the host | on the device |
|---|---|
| pixels in, order and cover out | features, KV cache, one scratch for all activations |
| embedding table: rows of text tokens in | prompt embeddings |
| best token and its score out | logits |
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from divprune.plugins import register_plugin
from divprune.plugins.driver import Driver
from divprune.runtime.backends.cuda.cuda import open_cuda
from divprune.runtime.backends.cuda.cuda_device import find_cuda_device
from divprune.runtime.backends.cuda.kernels import LoadedKernels
from divprune.runtime.backends.tensorrt.decoder import Decoder
from divprune.runtime.backends.tensorrt.decoder_part import num_planes
from divprune.runtime.backends.tensorrt.engine import Engine, Residency, Scratch, Session
from divprune.runtime.backends.tensorrt.engine_record import (
    ENGINES,
    build_command,
    require_any_engines,
    require_record,
)
from divprune.runtime.backends.tensorrt.library import require_tensorrt
from divprune.runtime.backends.tensorrt.logger_bridge import make_logger
from divprune.runtime.backends.tensorrt.planes import PlaneWriter
from divprune.runtime.backends.tensorrt.pruning import SplitDecoder
from divprune.runtime.backends.tensorrt.rows import DevicePrompt, PromptWriter
from divprune.runtime.backends.tensorrt.selection_alone import make_selection
from divprune.runtime.backends.tensorrt.surroundings import surroundings
from divprune.runtime.backends.tensorrt.vision import VisionRunner
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.errors import BackendError, OptionError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends import PrunedPrefill, Selection
    from divprune.runtime.backends.cuda.kernels import Kernels
    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.backends.tensorrt.decoder import DeviceLogits
    from divprune.runtime.backends.tensorrt.engine_record import EngineRecord
    from divprune.runtime.backends.tensorrt.library import TensorRT
    from divprune.runtime.directory.engine_directory import EngineDirectory

    # From the bytes of an engine's weights to how many of them may be on the device.
    Budget = Callable[[int], int]

__all__ = ["TensorRTBackend", "load", "load_selection"]

# Left free beside weights and cache: activations, CUDA's own memory, and on a Jetson the system.
_MARGIN = 512 << 20


def load(
    directory: EngineDirectory,
    *,
    device: str,
    threads: int | None,
    residency: str = "concurrent",
) -> TensorRTBackend:
    """Load the engines that were built for this machine; ``sequential``: vision only.

    Raises:
        BackendError: if there are none, they are for something else, a library or the GPU is
            missing, or TensorRT refuses them.
        OptionError: for another device than ``cuda``, and for threads.
    """
    library, record = _find_engines(directory, device, threads)
    session = _open_session(directory, library, record)
    name = f"{library.title} (CUDA, selection: {record.selection})"
    in_turn = residency == "sequential"
    return TensorRTBackend(
        directory, record, session, LoadedKernels(Driver()), name, in_turn=in_turn
    )


def load_selection(
    directory: EngineDirectory, *, device: str, threads: int | None
) -> Selection | None:
    """Load the selection engine; None where there is none that does what the vision engine does.

    The errors are those of ``load``.
    """
    library, record = _find_engines(directory, device, threads)
    if "selection" not in record.engines:
        return None
    session = _open_session(directory, library, record)
    engine = _load_engine(directory, record, session, "selection", None)
    graph = record.engines["selection"].graph
    return make_selection(session, lambda: engine, directory.manifest, graph)


class TensorRTBackend:
    """The engines of one directory, with the buffers that they share.

    Args:
        directory: The engine directory.
        record: Of the engines to load, checked.
        session: What they share.
        kernels: Reductions on the device.
        name: As reports show it.
        in_turn: Have vision and LLM on the device one at a time even where both fit.
    """

    def __init__(
        self,
        directory: EngineDirectory,
        record: EngineRecord,
        session: Session,
        kernels: Kernels,
        name: str,
        *,
        in_turn: bool = False,
    ) -> None:
        manifest = directory.manifest
        self.name = name
        self._llm = manifest.llm_graphs
        # Before anything is allocated.
        self._engines = _make_residency(directory, record, session, in_turn=in_turn)
        hidden, dtype = manifest.model.hidden_size, np.dtype(manifest.kv_cache.dtype)
        self._writer = PromptWriter(
            session.cuda, session.stream, manifest.max_prefill_len, hidden, dtype
        )
        if count := num_planes(manifest):
            self._writer.planes = PlaneWriter(
                session.cuda, session.stream, count, manifest.max_prefill_len, hidden, dtype
            )
        self._make_vision = partial(VisionRunner, session, kernels, manifest, writer=self._writer)
        self._vision = self._make_vision(record.engines["vision"].graph)
        self._full: VisionRunner | None = None
        make_decoder = SplitDecoder if manifest.selector.inside_llm else Decoder
        self._decoder: Decoder = make_decoder(session, kernels, manifest)
        self._has_selection = "llm_selection" in record.engines
        self._engines.get("vision")
        if self._engines.together:
            self._llm_engines()

    @property
    def encodes_beside_decoding(self) -> bool:
        """Never: the engines share one stream and one workspace."""
        return False

    @property
    def rows_at_once(self) -> int | None:
        """Any number: the engines' profiles bound the whole prompt."""
        return None

    def encode_image(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """Run the vision engine on its inputs, by name; features stay on the device."""
        encode_full = partial(self._encode_full, inputs)
        return self._vision.encode(self._engines.get("vision"), inputs, encode_full)

    def _encode_full(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """All tokens of a picture that ``vision`` makes smaller; loaded when first needed."""
        if self._full is None:
            self._full = self._make_vision("full")
        return self._full.encode(self._engines.get("full"), inputs)

    def reset(self, rows: int = 0) -> int:
        """Start a new sequence behind ``rows`` rows of the one before."""
        return self._decoder.reset(rows)

    def forward(
        self,
        inputs_embeds: NDArray[np.floating] | DevicePrompt,
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating] | DevicePrompt] = (),
    ) -> DeviceLogits:
        """Append S rows to the cache; the logits [V] of the last one, left on the device.

        Raises:
            BackendError: if S rows do not fit into what is left of the cache.
        """
        engines = self._llm_engines()
        if isinstance(inputs_embeds, np.ndarray) and inputs_embeds.shape[1] == 1 and not planes:
            return self._decoder.decode(engines, inputs_embeds[0, 0], position_ids.ravel())
        prompt = self._on_device(inputs_embeds)
        return self._decoder.prefill(
            engines, prompt, position_ids, self._planes_on_device(planes, prompt)
        )

    def prefill_pruned(
        self,
        inputs_embeds: NDArray[np.floating] | DevicePrompt,
        position_ids: NDArray[np.int64],
        visual_rows: Sequence[NDArray[np.int64]],
        num_kept: Sequence[int],
        planes: Sequence[NDArray[np.floating] | DevicePrompt] = (),
    ) -> PrunedPrefill:
        """Front, selection, the kept rows through the back; as ``Backend`` says.

        Raises:
            BackendError: if the rows do not fit into the cache.
            UnsupportedError: if this directory has no selection inside the LLM.
        """
        if not isinstance(self._decoder, SplitDecoder):
            raise UnsupportedError("this engine directory does not prune inside the LLM")
        engines = self._llm_engines()
        selection = self._engines.get("llm_selection") if self._has_selection else None
        prompt = self._on_device(inputs_embeds)
        added = self._planes_on_device(planes, prompt)
        return self._decoder.prefill_pruned(
            engines, selection, prompt, position_ids, visual_rows, num_kept, added
        )

    def _llm_engines(self) -> list[Engine]:
        """The engine of the LLM, or its halves in the order in which they run."""
        return [self._engines.get(name) for name in self._llm]

    def _on_device(self, inputs_embeds: NDArray[np.floating] | DevicePrompt) -> DevicePrompt:
        if isinstance(inputs_embeds, np.ndarray):
            return self._writer.upload(inputs_embeds)
        self._require_latest(inputs_embeds)
        return inputs_embeds

    def _planes_on_device(
        self, planes: Sequence[NDArray[np.floating] | DevicePrompt], prompt: DevicePrompt
    ) -> Sequence[DevicePrompt]:
        """The planes of a prompt; all of them zero where none are given."""
        if self._writer.planes is None:
            if planes:
                raise ValueError("the decoder of this directory adds nothing to its rows")
            return ()
        if not planes:
            return self._writer.planes.clear(prompt.shape[1], prompt.number)
        if isinstance(planes[0], np.ndarray):
            arrays = cast("Sequence[NDArray[np.floating]]", planes)
            return self._writer.planes.upload(arrays, prompt.number)
        written = cast("Sequence[DevicePrompt]", planes)
        for plane in written:
            self._require_latest(plane)
        return written

    def _require_latest(self, prompt: DevicePrompt) -> None:
        if prompt.number != self._writer.number:
            raise RuntimeError("another prompt has been embedded since")


def _find_engines(
    directory: EngineDirectory, device: str, threads: int | None
) -> tuple[TensorRT, EngineRecord]:
    """The library and the record of engines for this GPU, before anything is loaded."""
    if device != "cuda":
        raise OptionError(
            f"TensorRT does not run on {device}", expected="--device cuda, or none", found=device
        )
    if threads is not None:
        raise OptionError("--threads has no effect with TensorRT", fix="leave it out")
    require_any_engines(directory)
    library, gpu = require_tensorrt(directory.manifest), find_cuda_device()
    if gpu is None:
        raise BackendError(
            "this machine has no NVIDIA GPU to run the engines on",
            expected="a GPU with its driver",
            found="no GPU",
            fix="run on the device, or export for the CPU: "
            + export_command(directory.manifest, target="onnxruntime"),
        )
    record = require_record(directory, surroundings(library, gpu.compute_capability, gpu))
    if record.selection == "ipluginv3":
        register_plugin(library.module)
    return library, record


def _open_session(directory: EngineDirectory, library: TensorRT, record: EngineRecord) -> Session:
    cuda = open_cuda()
    return Session(
        library=library,
        logger=make_logger(library),
        cuda=cuda,
        stream=cuda.make_stream(),
        scratch=Scratch(cuda),
        build_command=build_command(directory.path, record.options),
    )


def _make_residency(
    directory: EngineDirectory, record: EngineRecord, session: Session, *, in_turn: bool
) -> Residency:
    """What loads the engines, and whether they fit beside one another and the cache."""
    manifest, engines = directory.manifest, record.engines
    streamed = record.options.weight_streaming
    towers = [name for name in ("vision", "full") if name in engines]
    sizes = {name: engines[name].size for name in manifest.llm_graphs}
    weights = sum(engines[name].size for name in towers)
    weights += 0 if streamed else sum(sizes.values())
    needed = weights + manifest.kv_cache_bytes + _MARGIN
    llm = [name for name in (*sizes, "llm_selection") if name in engines]
    budgets = _weight_budgets(session, sizes) if streamed else {}
    loaders = {
        name: partial(_load_engine, directory, record, session, name, budgets.get(name))
        for name in (*towers, *llm)
    }
    groups = [[name] for name in towers] + [llm]
    together = not in_turn and needed <= session.cuda.free_memory()
    return Residency(loaders, groups, together=together)


def _load_engine(
    directory: EngineDirectory, record: EngineRecord, session: Session, name: str, budget: Any
) -> Engine:
    built = record.engines[name]
    spec = directory.manifest.graphs[built.graph]
    names = frozenset(tensor.name for tensor in (*spec.inputs, *spec.outputs))
    lane = directory.path / ENGINES / record.surroundings.lane
    return Engine(session, lane / built.path, names, budget)


def _weight_budgets(session: Session, sizes: Mapping[str, int]) -> dict[str, Budget]:
    """For each engine what gives the bytes of its weights to keep on the device.

    All of them if they fit, or its share of what is free beside the engines that are loaded
    before it.
    """
    budgets: dict[str, Budget] = {}
    left = sum(sizes.values())
    for name, size in sizes.items():
        budgets[name] = partial(_weight_budget, session, size / left)
        left -= size
    return budgets


def _weight_budget(session: Session, share: float, weights: int) -> int:
    return max(0, min(weights, int(share * (session.cuda.free_memory() - _MARGIN))))
