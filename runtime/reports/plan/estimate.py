"""The memory estimate of one way to run a model, part by part."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Estimate"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes. Host and device are one where they share their memory.

    Attributes:
        vision_weights: The tower, the projector and the selection as they are held.
        llm_weights: The language model as it is held.
        embedding_table: Of it in memory: rows are read from the file, so none.
        kv_cache: The cache as far as it is filled.
        activations: Of the vision graph.
        prefill_scratch: Of the language model, for one picture and a question.
        process: The interpreter, its libraries and the backend's own; a CUDA context.
        build_peak: What building the engines needs at most; None where nothing is built.
        host_peak: Largest resident size of the process on the host.
        device_peak: Largest use of the GPU's memory; 0 on a CPU.
    """

    vision_weights: int
    llm_weights: int
    embedding_table: int
    kv_cache: int
    activations: int
    prefill_scratch: int
    process: int
    build_peak: int | None
    host_peak: int
    device_peak: int

    def to_dict(self) -> dict[str, int | None]:
        """Fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def run_peak(self, *, shared: bool) -> int:
        """Peak bytes in the memory that limits: the shared one, or the GPU's own."""
        if shared:
            return self.host_peak + self.device_peak
        return self.device_peak or self.host_peak
