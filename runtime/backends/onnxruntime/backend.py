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

``llm_decode`` has ``seqlens_k`` (the last slot that is written) and ``total_sequence_length``
instead of ``write_indices``, int32 [1]; it is opened instead of ``llm`` where steps are recorded.

``llm_prefill``, where there is one, has the inputs and outputs of ``llm`` and takes the prompt.

With a selection inside the LLM there are ``llm_front``, ``llm_selection`` and ``llm_back``
(`divprune.export.decoder.graph`, `divprune.export.selection.in_llm`) instead of ``llm``.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends import PrunedPrefill
from divprune.runtime.directory.keep import exported_count
from divprune.runtime.errors import BackendError, UnsupportedError
from divprune.runtime.inputs.prompt import staying_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends import Logits
    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.backends.onnxruntime.decoder import DecoderSession
    from divprune.runtime.backends.onnxruntime.recorded import RecordedDecoder, Recorder
    from divprune.runtime.backends.onnxruntime.residents import Residents
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["ROWS_ON_CPU", "OnnxRuntimeBackend"]

ROWS_ON_CPU = 128
"""Prompts go through a CPU in pieces of so many rows: what a layer makes of them stays in its
caches (636 rows of a 1.1B in int8: 1.2 s instead of 1.6 s on two cores of a Xeon with AMX), and
scratch memory does not grow with the prompt."""


def _pieces(count: int, most: int | None) -> list[slice]:
    """Rows 0 to ``count`` in pieces of about the same size, each of ``most`` rows or fewer."""
    pieces = 1 if most is None else -(-count // most)
    ends = [count * i // pieces for i in range(pieces + 1)]
    return [slice(*ends[i : i + 2]) for i in range(pieces)]


class OnnxRuntimeBackend:
    """Sessions of one engine directory; the decoder is in one part, or in a front and a back.

    Args:
        residents: The sessions.
        manifest: Manifest of the engine directory.
        library: Its name and version.
        places: The device, and what is worth knowing about it, for the backend's name.
        rows_at_once: Rows of a prompt that go through the LLM together at most.
        recorder: Of decode steps.
    """

    def __init__(
        self,
        residents: Residents,
        manifest: Manifest,
        library: str,
        places: tuple[str, ...],
        *,
        rows_at_once: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._library, self._places, self._recorder = library, places, recorder
        self._residents = residents
        self.rows_at_once = rows_at_once
        # There masked slots are multiplied by zero instead of being left out.
        self._reads_masked_slots = manifest.dialect != "ort"
        self._manifest = manifest

    @property
    def name(self) -> str:
        """Library, version, device, what selects, and whether decode steps are recorded."""
        recording = () if self._recorder is None else (str(self._recorder),)
        return f"{self._library} ({', '.join((*self._places, *recording))})"

    @property
    def encodes_beside_decoding(self) -> bool:
        """Sessions may run at the same time, unless one is closed for the other.

        While a step is recorded, CUDA lets no other thread allocate.
        """
        records = self._recorder is not None and self._recorder.is_on
        return self._residents.together and not records

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
    ) -> NDArray[np.float32] | Logits:
        """Append S rows to the cache and return the logits [V] of the last one.

        Raises:
            BackendError: if S rows do not fit into what is left of the cache.
        """
        decoder = self._residents.decoder()
        if (recorded := decoder.recorded) is not None:
            length = recorded.length_for(inputs_embeds.shape[1], has_planes=bool(planes))
            if length is not None:
                return self._play(recorded, length, inputs_embeds, position_ids, planes)
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

    def _play(
        self,
        recorded: RecordedDecoder,
        length: int,
        rows: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]],
    ) -> NDArray[np.float32] | Logits:
        """By a recording; where ONNX Runtime refuses it the sequence goes on without."""
        try:
            return recorded.play(length, rows, position_ids, planes)
        except BackendError:
            raise
        except Exception as error:  # ONNX Runtime's share no base class of their own
            assert self._recorder is not None
            self._recorder.give_up(error)
        recorded.close()  # behind the handler: its traceback holds the session
        self._residents.reopen_decoder(recorded.cache)
        return self.forward(rows, position_ids, planes)

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
