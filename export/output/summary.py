"""The summary printed at the end of an export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from divprune.runtime.directory.keep import describe_keep
from divprune.runtime.directory.manifest import Manifest
from divprune.runtime.memory import format_bytes

__all__ = ["ExportSummary"]


# Graphs that only TensorRT can run.
_ON_DEVICE = (
    "vision_plugin",
    "selection_plugin",
    "llm_tensorrt",
    "llm_front_tensorrt",
    "llm_back_tensorrt",
)


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """The result of ``export_model``; ``str()`` is the text for people.

    ``prompt_text_tokens`` is the length of a short prompt without its image; ``peak_memory``
    the largest resident set of the exporting process in bytes (None where it cannot be told),
    ``seconds`` its wall time.
    """

    directory: Path
    manifest: Manifest
    prompt_text_tokens: int
    verify_errors: dict[str, float] | None
    seconds: float
    peak_memory: int | None

    @property
    def bytes_on_disk(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(record.size for record in self.manifest.files.values())

    def __str__(self) -> str:
        """One fact a line."""
        width = max(len(label) for label, _ in self._rows())
        return "\n".join(f"{label:<{width}}  {value}" for label, value in self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        manifest, selector = self.manifest, self.manifest.selector
        before = self.prompt_text_tokens + selector.num_image_tokens
        after = self.prompt_text_tokens + selector.num_kept
        where = f" from layer {selector.parameters['layer']} on" if selector.inside_llm else ""
        return [
            ("engine directory", str(self.directory)),
            ("visual tokens", describe_keep(selector.num_kept, selector.num_image_tokens)),
            ("prefill", f"{after} positions instead of {before}{where} (prompt of a few words)"),
            ("weights", self._weights()),
            ("on disk", format_bytes(self.bytes_on_disk)),
            (
                "KV cache",
                f"{format_bytes(manifest.kv_cache_bytes)} at {manifest.max_seq_len} positions",
            ),
            ("self-check", self._check()),
            *self._int8_tower(),
            *self._what_remains(),
            ("export took", f"{self.seconds:.0f} s{self._peak()}"),
        ]

    def _int8_tower(self) -> list[tuple[str, str]]:
        """What rounding the tower costs: an error e turns a row by an angle of sine e at most."""
        if self.manifest.vision_quant is None or self.verify_errors is None:
            return []
        cosine = math.sqrt(1 - self.verify_errors["vision"] ** 2)
        text = f"every feature has a cosine of {cosine:.4f} or more to that in float"
        return [("int8 tower", f"{text} (a picture of noise)")]

    def _what_remains(self) -> list[tuple[str, str]]:
        manifest = self.manifest
        if manifest.target == "onnxruntime":
            return []
        paths = [manifest.graphs[key].path for key in _ON_DEVICE if key in manifest.graphs]
        rows = [("not run here", f"{', '.join(paths)} (TensorRT only)")] if paths else []
        return [*rows, ("next", f"on the device: divprune-build {self.directory.name}")]

    def _weights(self) -> str:
        manifest = self.manifest
        parts = [
            f"{manifest.quant.scheme} ({manifest.quant.method})"
            if manifest.quant
            else manifest.dtype
        ]
        if manifest.prefill_quant is not None:
            parts.append(f"{manifest.prefill_quant} in prefill")
        return ", ".join([*parts, f"vision tower {manifest.vision_quant or manifest.dtype}"])

    def _peak(self) -> str:
        return "" if self.peak_memory is None else f", peak memory {format_bytes(self.peak_memory)}"

    def _check(self) -> str:
        if self.verify_errors is None:
            return "skipped (--no-verify)"
        worst = ", ".join(f"{part} {error:.1e}" for part, error in self.verify_errors.items())
        return f"agrees with transformers; largest relative errors: {worst}"
