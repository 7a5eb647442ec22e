"""Options of an export, validated before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from divprune.export.checkpoint.quantization.rounding import METHODS
from divprune.export.selection import IN_LLM_FLAGS, selector_names
from divprune.runtime.directory.keep import validate_keep
from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.directory.quant_scheme import QuantScheme, parse_scheme
from divprune.runtime.errors import OptionError

__all__ = ["ExportOptions"]

_DTYPES = ("fp16", "fp32")
_POSITIONS = ("contiguous", "original")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Arguments of ``divprune-export``.

    ``max_seq_len`` None means 2048 or what the model can, whichever is smaller. ``output``
    None means ``./<model>-keep<keep>``. ``max_weight_mib`` None means what the target allows.
    ``quant`` is spelled as in ``runtime/directory/quant_scheme.py``; ``vision_quant`` is ``int8``
    or None; so is ``prefill_quant``, which asks for a second LLM graph.
    ``positions`` None means what the family runs with, and original for a selector inside the
    LLM, whose front layers have numbered every token already. ``max_image_tokens`` bounds the
    visual tokens of a picture where they vary; None leaves it to the family. ``keep`` is
    None for a selector that takes none; ``layer``, ``tau``, ``seed`` and ``quant_method`` None
    means their default.
    """

    model: str
    keep: float | None = None
    output: Path | None = None
    target: str = "onnxruntime"
    dtype: str = "fp16"
    quant: str | None = None
    quant_method: str | None = None
    vision_quant: str | None = None
    prefill_quant: str | None = None
    selector: str = "divprune"
    positions: str | None = None
    layer: int | None = None
    tau: float | None = None
    max_seq_len: int | None = None
    max_image_tokens: int | None = None
    max_weight_mib: int | None = None
    revision: str | None = None
    seed: int | None = None
    baseline: bool = True
    verify: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        if self.keep is not None:
            validate_keep(self.keep)
        for name, value, known in (
            ("target", self.target, TARGETS),
            ("dtype", self.dtype, _DTYPES),
            ("quant-method", self.quant_method, tuple(METHODS)),
            ("vision-quant", self.vision_quant or "int8", ("int8",)),
            ("prefill-quant", self.prefill_quant or "int8", ("int8",)),
            ("selector", self.selector, selector_names()),
            ("positions", self.positions, _POSITIONS),
        ):
            if value is not None and value not in known:
                raise OptionError(
                    f"--{name} is not known", expected="one of " + ", ".join(known), found=value
                )
        for name, number, least in (
            ("max-seq-len", self.max_seq_len, 2),
            ("max-image-tokens", self.max_image_tokens, 1),
            ("max-weight-mib", self.max_weight_mib, 1),
        ):
            if number is not None and number < least:
                raise OptionError(
                    f"--{name} is too small", expected=f"at least {least}", found=number
                )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise OptionError("--seed cannot be used", expected="0 to 2^63 - 1", found=self.seed)
        self._check_quant()
        self._check_effects()
        check_selector_flags(self)

    def _check_quant(self) -> None:
        scheme = self.quant_scheme()
        int8 = scheme is not None and scheme.bits == 8
        if self.prefill_quant is not None:
            self._check_prefill_quant(int8=int8)
        if self.target == "onnxruntime":
            return
        for name, value, is_int8 in (
            ("quant", self.quant, int8),
            ("vision-quant", self.vision_quant, self.vision_quant is not None),
            ("prefill-quant", self.prefill_quant, self.prefill_quant is not None),
        ):
            if is_int8:
                raise OptionError(
                    f"--{name} {value} is not for --target {self.target}",
                    expected="int4 weights of the language model (--quant int4), or none",
                    found=value,
                    fix="--target onnxruntime",
                )

    def _check_effects(self) -> None:
        """Refuse what would change nothing: whoever gives it expects something else."""
        scheme = self.quant_scheme()
        for flag, is_given, needs in (
            ("seed", self.seed is not None and self.selector != "random", "--selector random"),
            (
                "quant-method",
                self.quant_method is not None and (scheme is None or scheme.bits != 4),
                "--quant int4",
            ),
            ("no-baseline", not self.baseline and self.keep == 1.0, "a --keep below 1"),
        ):
            if is_given:
                raise OptionError(
                    f"--{flag} would have no effect",
                    expected=f"{needs} beside it",
                    found=f"--{flag} without it",
                    fix=f"leave --{flag} out",
                )

    def _check_prefill_quant(self, *, int8: bool) -> None:
        """A second graph for prefill makes sense only beside another precision."""
        if int8:
            raise OptionError(
                "--prefill-quant int8 adds nothing to --quant int8, whose prefill is int8 already",
                expected="--quant int4, or no --quant",
                found=f"--quant {self.quant}",
                fix="leave --prefill-quant out",
            )
        if self.inside_llm:
            raise OptionError(
                f"--prefill-quant is not for --selector {self.selector}",
                expected="a selector in front of the LLM, such as divprune",
                found=self.selector,
                fix="leave --prefill-quant out",
            )

    def quant_scheme(self) -> QuantScheme | None:
        """The scheme that ``quant`` names.

        Raises:
            OptionError: for a scheme that is not known.
        """
        return None if self.quant is None else parse_scheme(self.quant)

    @property
    def inside_llm(self) -> bool:
        """Whether tokens are chosen between decoder layers."""
        return self.selector in IN_LLM_FLAGS

    def output_directory(self) -> Path:
        """Path of the engine directory."""
        if self.output is not None:
            return self.output
        model = Path(self.model)
        name = model.resolve().name if model.is_dir() else model.name
        kept = self.selector if self.keep is None else f"keep{self.keep:g}"
        return Path(f"{name}-{kept}")


def check_selector_flags(options: ExportOptions) -> None:
    """Check that the selector takes the flags that are given, and has those that it needs.

    Raises:
        OptionError: naming the flag.
    """
    name = options.selector
    takes = IN_LLM_FLAGS.get(name, ("keep",))
    for flag in ("keep", "layer", "tau"):
        if getattr(options, flag) is not None and flag not in takes:
            raise OptionError(
                f"--selector {name} takes no --{flag}",
                expected="only " + ", ".join(f"--{taken}" for taken in takes),
                found=f"--{flag} {getattr(options, flag)}",
                fix=f"leave --{flag} out",
            )
    if "keep" in takes and options.keep is None:
        raise OptionError(
            f"--selector {name} needs --keep",
            expected="a fraction kept, 0 < keep <= 1",
            fix="--keep 0.1 keeps 10 % of the visual tokens",
        )
    if options.layer is not None and options.layer < 1:
        raise OptionError(
            "--layer is too small",
            expected="at least 1: one decoder layer or more in front of the selection",
            found=options.layer,
        )
    if options.tau is not None and not -1 < options.tau <= 1:
        raise OptionError(
            "--tau is no cosine to compare with", expected="-1 < tau <= 1", found=options.tau
        )
    if options.inside_llm and options.positions == "contiguous":
        raise OptionError(
            f"--selector {name} cannot number the kept tokens anew",
            expected="--positions original: the layers in front have used these positions",
            found="--positions contiguous",
            fix="leave --positions out",
        )
