"""The vision graph: one session, or three with the selection kernel between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from divprune.runtime.backends.image_features import (
    ImageFeatures,
    LateFeatures,
    SmallPictureFeatures,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from divprune.runtime.backends.onnxruntime.selection_kernel import KernelSelection
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["KernelVision", "Vision", "WholeVision"]


class Vision(Protocol):
    """Encodes pictures."""

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """What the vision graph's inputs, by name, become."""
        ...


class WholeVision:
    """``vision/model.onnx``, with the selection in it.

    Args:
        session: Of the graph.
        manifest: Manifest of the engine directory.
        open_full: Gives the session for the full picture, where the tower sees a smaller one.
    """

    def __init__(self, session: Any, manifest: Manifest, open_full: Callable[[], Any]) -> None:
        self._session, self._open_full = session, open_full
        self._names = [tensor.name for tensor in manifest.graphs["vision"].outputs]
        self._planes = [name for name in self._names if name.startswith("deepstack_")]
        self._num_image_tokens = manifest.selector.num_image_tokens

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """What the vision graph's inputs, by name, become."""
        results = self._session.run(self._names, dict(inputs))
        found = dict(zip(self._names, results, strict=True))
        order = found.get("selection_order", np.empty(0, np.int64))
        if "image_features" not in found:
            selected = found["selected_features"]
            return SmallPictureFeatures(
                order, selected, self._num_image_tokens, lambda: self._encode_full(inputs)
            )
        features = found["image_features"]
        return ImageFeatures(
            features,
            order,
            found.get("selected_features", features[:0]),
            cover=found.get("selection_cover"),
            planes=tuple(found[name] for name in self._planes),
        )

    def _encode_full(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """All tokens of the full picture; its graph is opened when it is first needed."""
        (features,) = self._open_full().run(["image_features"], dict(inputs))
        return ImageFeatures(features, np.empty(0, np.int64), features[:0])


class KernelVision:
    """Tower, selection and the rows that are kept; between them everything stays on the device.

    The N tokens come to the host only when somebody asks for them.

    Args:
        tower: Session of ``vision/features.onnx``.
        selection: What chooses.
        rows: Session of ``vision/rows.onnx``.
        num_kept: K where every picture has the same.
    """

    def __init__(self, tower: Any, selection: KernelSelection, rows: Any, num_kept: int) -> None:
        self._tower, self._selection, self._rows = tower, selection, rows
        self._num_kept = num_kept

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """What the vision graph's inputs, by name, become."""
        device = self._selection.device
        binding = self._tower.io_binding()
        for tensor in self._tower.get_inputs():
            binding.bind_cpu_input(tensor.name, np.ascontiguousarray(inputs[tensor.name]))
        names = [tensor.name for tensor in self._tower.get_outputs()]
        for name in names:
            binding.bind_output(name, device)
        self._tower.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
        num_kept = len(inputs["kept_slots"]) if "kept_slots" in inputs else self._num_kept
        return self._take(found, *self._selection.choose(found["image_features"], num_kept))

    def _take(self, found: dict[str, Any], order: Any, cover: Any) -> ImageFeatures:
        """The rows that were chosen, and how to get the others."""
        binding = self._rows.io_binding()
        for name, value in {**found, "order": order, "cover": cover}.items():
            binding.bind_ortvalue_input(name, value)
        names = [tensor.name for tensor in self._rows.get_outputs()]
        for name in names:
            binding.bind_output(name, "cpu")
        self._rows.run_with_iobinding(binding)
        taken = dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))
        chosen, selected = taken["selection_order"], taken["selected_features"]
        num_broken = int(taken["num_broken"][0])
        planes = [name for name in found if name != "image_features"]

        def fetch() -> ImageFeatures:
            features = found["image_features"].numpy()
            rows = tuple(found[name].numpy() for name in planes)
            cover = taken["selection_cover"]
            return ImageFeatures(features, chosen, selected, num_broken, cover, rows)

        return LateFeatures(
            chosen,
            selected,
            found["image_features"].shape()[0],
            fetch,
            num_broken,
            taken["selection_cover"],
            tuple(taken[f"selected_{name}"] for name in planes),
            sum(value.tensor_size_in_bytes() for value in found.values()),
        )
