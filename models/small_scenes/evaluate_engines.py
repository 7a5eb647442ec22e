"""Exact match through an engine directory: ``python -m models.small_scenes.evaluate_engines``.

Everything kept, then a quarter and a tenth of the visual tokens, chosen by DivPrune, and beside
it as many chosen at random: a wrapper around the backend that replaces the order of selection.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from models.small_scenes.evaluate import MAX_NEW_TOKENS, exact_match, format_table
from models.small_scenes.exam import make_exam
from models.small_scenes.questions import Question

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.backends import Backend
    from divprune.runtime.backends.image_features import ImageFeatures

__all__ = ["RandomSelection", "RememberedPictures", "evaluate_engines", "export_engines", "main"]

KEEPS = (0.25, 0.1)


def main() -> None:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=here / "checkpoint")
    parser.add_argument("--engines", type=Path, default=Path("build/small_scenes_engines"))
    parser.add_argument("--scenes", type=int, default=300, help="of each split")
    parser.add_argument("--output", type=Path, default=here / "results" / "engines.json")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    export_engines(options.checkpoint, options.engines)
    report = evaluate_engines(options.engines, options.scenes, options.threads)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(format_table(report))


def export_engines(checkpoint: Path, output: Path) -> None:
    """Export with the larger of ``KEEPS``: the smaller is a prefix of its selection."""
    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    output.parent.mkdir(parents=True, exist_ok=True)
    export_model(
        ExportOptions(
            model=str(checkpoint), keep=max(KEEPS), output=output, dtype="fp32", force=True
        )
    )


def evaluate_engines(engines: Path, scenes: int, threads: int) -> dict[str, dict[str, float]]:
    """Exact match by column (split, selection and keep) and kind of question."""
    from divprune.runtime.backends import load_backend
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.pipeline import Pipeline

    directory = EngineDirectory.open(engines)
    backend = load_backend(None, directory, device="cpu", threads=threads)
    divprune = Pipeline(directory, RememberedPictures(backend))
    chance = Pipeline(directory, RememberedPictures(RandomSelection(backend, seed=0)))
    report = {}
    for label, split in (("plain", "test"), ("hard", "hard")):
        exam = make_exam(split, scenes)  # type: ignore[arg-type]
        report[f"{label}, keep 1.0"] = exact_match(exam, _Asker(divprune, 1.0))
        for keep in KEEPS:
            report[f"{label}, DivPrune {keep}"] = exact_match(exam, _Asker(divprune, keep))
            report[f"{label}, random {keep}"] = exact_match(exam, _Asker(chance, keep))
    return report


class RememberedPictures:
    """A backend that encodes a picture once, however many questions follow."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._seen: dict[bytes, ImageFeatures] = {}
        self.name = backend.name
        self.reset, self.forward = backend.reset, backend.forward
        self.prefill_pruned = backend.prefill_pruned

    def encode_image(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """The picture's features, computed when it is first seen."""
        key = hashlib.sha256(inputs["pixel_values"].tobytes()).digest()
        if key not in self._seen:
            self._seen[key] = self._backend.encode_image(inputs)
        return self._seen[key]


class RandomSelection:
    """A backend whose selection is random, everything else as in the one it wraps."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self._backend = backend
        self._rng = np.random.default_rng(seed)
        self.name = f"{backend.name}, random selection"
        self.reset, self.forward = backend.reset, backend.forward
        self.prefill_pruned = backend.prefill_pruned

    def encode_image(self, inputs: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """The picture's features with as many rows picked at random as were selected."""
        from divprune.runtime.backends.image_features import ImageFeatures

        features = self._backend.encode_image(inputs)
        rows = features.image_features
        order = self._rng.permutation(len(rows))[: len(features.selection_order)]
        return ImageFeatures(rows, order.astype(np.int64), rows[np.sort(order)])


class _Asker:
    """Answers lists of questions with a pipeline that keeps ``keep``."""

    def __init__(self, pipeline: object, keep: float) -> None:
        self._pipeline, self._keep = pipeline, keep

    def __call__(self, pictures: list[Image.Image], questions: list[Question]) -> list[str]:
        return [
            self._pipeline.generate(  # type: ignore[attr-defined]
                picture, question.text, keep=self._keep, max_new_tokens=MAX_NEW_TOKENS
            ).result.text
            for picture, question in zip(pictures, questions, strict=True)
        ]


if __name__ == "__main__":
    main()
