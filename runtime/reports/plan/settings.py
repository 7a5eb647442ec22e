"""Options of an export and a run that its memory depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.directory.keep import kept_count, validate_keep
from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.directory.quant_scheme import QuantScheme, check_divisible, parse_scheme
from divprune.runtime.errors import OptionError

if TYPE_CHECKING:
    from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["RESIDENCIES", "PlanSettings"]

RESIDENCIES = ("concurrent", "sequential")
_DTYPES = ("fp16", "fp32")
TEXT_TOKENS = 64  # a chat template and a question of a few sentences


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """One way to export and run a model.

    Attributes:
        target: ``--target`` of the export.
        keep: Fraction of visual tokens kept.
        max_seq_len: Cache slots.
        dtype: ``fp16`` or ``fp32``.
        quant: Spelling of ``--quant``; None for none.
        vision_quant: ``int8`` or None.
        prefill_quant: ``int8`` for a second LLM graph that takes the prompt, or None.
        residency: ``concurrent`` holds tower and language model at once; ``sequential`` lets
            the tower go before the language model is loaded.
        text_tokens: Tokens of a prompt beside the picture.
        filled_slots: Cache slots that are really written; None for all of them.
        inside_llm: Tokens are chosen between decoder layers, so that all of them enter.
    """

    target: str
    keep: float
    max_seq_len: int
    dtype: str = "fp16"
    quant: str | None = None
    vision_quant: str | None = None
    prefill_quant: str | None = None
    residency: str = "concurrent"
    text_tokens: int = TEXT_TOKENS
    filled_slots: int | None = None
    inside_llm: bool = False

    def __post_init__(self) -> None:
        validate_keep(self.keep)
        for flag, value, known in (
            ("target", self.target, TARGETS),
            ("dtype", self.dtype, _DTYPES),
            ("vision-quant", self.vision_quant or "int8", ("int8",)),
            ("prefill-quant", self.prefill_quant or "int8", ("int8",)),
            ("residency", self.residency, RESIDENCIES),
        ):
            if value not in known:
                raise OptionError(
                    f"--{flag} is not known", expected="one of " + ", ".join(known), found=value
                )
        scheme = self.scheme()
        self._check_target("quant", self.quant, is_int8=scheme is not None and scheme.bits == 8)
        for flag in ("vision-quant", "prefill-quant"):
            value = getattr(self, flag.replace("-", "_"))
            self._check_target(flag, value, is_int8=value is not None)

    @property
    def on_onnxruntime(self) -> bool:
        """Whether it runs on ONNX Runtime on the CPU; otherwise on TensorRT."""
        return self.target == "onnxruntime"

    @property
    def number_bytes(self) -> int:
        """Bytes of a number that is not quantised."""
        return 2 if self.dtype == "fp16" else 4

    def scheme(self) -> QuantScheme | None:
        """The scheme that ``quant`` names.

        Raises:
            OptionError: for a scheme that is not known.
        """
        return None if self.quant is None else parse_scheme(self.quant)

    def rows(self, model: ModelDimensions) -> int:
        """Positions of a prefill with one picture."""
        tokens = model.num_image_tokens
        return (tokens if self.inside_llm else kept_count(self.keep, tokens)) + self.text_tokens

    def check(self, model: ModelDimensions) -> None:
        """Check what depends on the model.

        Raises:
            OptionError: for a cache that the model cannot fill or that one picture overflows,
                and for ``quant`` with a checkpoint that is quantised already.
            CheckpointError: where the groups of ``quant`` do not divide a weight.
        """
        limit = model.text.max_position_embeddings
        if not 2 <= self.max_seq_len <= limit:
            raise OptionError(
                "--max-seq-len is more than the model can"
                if self.max_seq_len > limit
                else "--max-seq-len is too small",
                expected=f"2 to {limit} (max_position_embeddings of {model.name})",
                found=self.max_seq_len,
            )
        if self.rows(model) > self.max_seq_len:
            raise OptionError(
                f"a picture at --keep {self.keep:g} and a question do not fit into the cache",
                expected=f"--max-seq-len {self.rows(model)} or more",
                found=self.max_seq_len,
                fix="a larger --max-seq-len or a smaller --keep",
            )
        if model.packed is not None and self.quant not in (None, str(model.packed)):
            raise OptionError(
                f"{model.name} is quantised already",
                expected=f"no --quant: its {model.packed} weights are taken as they are",
                found=f"--quant {self.quant}",
                fix="leave --quant out",
            )
        scheme = self.scheme()
        block = None if scheme is None else scheme.block
        for matrix in model.text.matrices():
            check_divisible(matrix.name, matrix.inputs, block)

    def _check_target(self, flag: str, value: str | None, *, is_int8: bool) -> None:
        if is_int8 and not self.on_onnxruntime:
            raise OptionError(
                f"--{flag} {value} is not for --target {self.target}",
                expected="int4 weights of the language model (--quant int4), or none",
                found=value,
                fix="--target onnxruntime",
            )
