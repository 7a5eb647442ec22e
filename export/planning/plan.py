"""Everything that is decided before the first byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from divprune.export.checkpoint.checkpoint import EMBEDDINGS, LM_HEAD, Checkpoint, expected_tensors
from divprune.export.checkpoint.source import ModelSource
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.dialects import Dialect, get_dialect
from divprune.export.decoder.graph import DecoderPart
from divprune.export.decoder.spec import DecoderSpec, check_text_model
from divprune.export.families import Family, get_family
from divprune.export.graphs.lanes import LANES, Lane
from divprune.export.planning.options import ExportOptions
from divprune.export.selection import (
    InLLMSelector,
    Selector,
    Setting,
    get_in_llm_selector,
    get_selector,
)
from divprune.export.vision.signals import Signal, resolve_signals
from divprune.export.vision.trace import count_image_tokens
from divprune.runtime.directory.keep import kept_count
from divprune.runtime.errors import CheckpointError, OptionError

__all__ = ["ExportPlan", "make_plan"]

_DEFAULT_MAX_SEQ_LEN = 2048


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """One checkpoint, read and checked, with what is to be made of it."""

    options: ExportOptions
    source: ModelSource
    checkpoint: Checkpoint
    family: Family
    spec: DecoderSpec
    lane: Lane
    dialect: Dialect
    selector: Selector | InLLMSelector
    signals: Mapping[str, Signal]
    weights: WeightSource
    tensor_names: frozenset[str]
    num_image_tokens: int
    num_kept: int
    max_seq_len: int
    max_weight_mib: int | None

    @property
    def pre_llm(self) -> Selector | None:
        """The selector, if it works in the vision graph."""
        return None if isinstance(self.selector, InLLMSelector) else self.selector

    @property
    def in_llm(self) -> InLLMSelector | None:
        """The selector, if it works between decoder layers."""
        return self.selector if isinstance(self.selector, InLLMSelector) else None

    @property
    def num_fed(self) -> int:
        """Visual tokens of a picture that enter the LLM where it is pruned."""
        return self.num_kept if self.in_llm is None else self.num_image_tokens

    def decoder_parts(self) -> tuple[DecoderPart, ...]:
        """The LLM graphs: one, or front and back of a selection between them.

        The back never holds the tokens that are pruned, unless the baseline keeps them all.
        """
        layers = range(self.spec.num_layers)
        if (selector := self.in_llm) is None:
            return (DecoderPart("llm", layers, self.max_seq_len),)
        removed = 0 if self.options.baseline else self.num_image_tokens - self.num_kept
        needs_query = "last_query" in selector.inputs
        return (
            DecoderPart("llm_front", layers[: selector.layer], self.max_seq_len, needs_query),
            DecoderPart("llm_back", layers[selector.layer :], self.max_seq_len - removed),
        )

    @property
    def prefill_part(self) -> DecoderPart | None:
        """A second graph of the decoder for the rows of a prompt, if one was asked for."""
        if self.options.prefill_quant is None:
            return None
        layers = range(self.spec.num_layers)
        return DecoderPart("llm_prefill", layers, self.max_seq_len)

    def weights_of(self, part: DecoderPart) -> WeightSource:
        """The weights as a decoder graph stores them."""
        return self.weights.in_int8() if part.name == "llm_prefill" else self.weights

    def estimated_bytes(self) -> int:
        """Upper bound of what the export writes: every tensor, and a tied table once more.

        The table on the host stays in ``dtype``, whatever the decoder's matrices are stored as.
        """
        table = self.weights.size(EMBEDDINGS) * self.weights.dtype.itemsize
        others = sum(self.weights.stored_bytes(n) for n in self.tensor_names if n != EMBEDDINGS)
        tied = self.weights.stored_bytes(EMBEDDINGS) if self.spec.tied_head else 0
        again = 0
        if self.prefill_part is not None:
            decoder = ("language_model.layers.", LM_HEAD)
            names = (n for n in self.tensor_names if n.startswith(decoder))
            again = sum(map(self.weights.in_int8().stored_bytes, names)) + tied
        return int(table + others + tied + again) + 64 * 2**20


def make_plan(options: ExportOptions, source: ModelSource) -> ExportPlan:
    """Open and check the checkpoint and decide what its graphs will be like.

    Raises:
        DivPruneError: for a model that is missing, damaged or not supported.
    """
    if not options.inside_llm:
        get_selector(options.selector)  # an unknown name before anything is opened
    checkpoint = Checkpoint.open(source.path)
    _check_quantized_once(options, checkpoint)
    family = get_family(checkpoint.config)
    check_text_model(family.text_config)
    max_seq_len = _max_seq_len(options, family.text_config.max_position_embeddings)
    spec = DecoderSpec.from_config(family.text_config, max_seq_len, tied_head=family.tied_head)
    checkpoint.validate()  # after the kinds of its parts, which name what is not supported
    module = family.image_feature_module()
    num_image_tokens, width = count_image_tokens(module, family.image_size)
    if width != spec.hidden_size:
        raise CheckpointError(
            "projector and text model do not fit each other",
            expected=f"image features of width {spec.hidden_size}",
            found=width,
        )
    selector = _selector(options, family, num_image_tokens, spec.num_layers)
    num_kept = _num_kept(options, selector, num_image_tokens)
    shapes = expected_tensors(checkpoint.config)
    lane = LANES[options.target]
    quantized = options.quant is not None or bool(checkpoint.packed_layers())
    max_weight_mib = options.max_weight_mib or lane.max_weight_mib
    max_bytes = None if max_weight_mib is None else max_weight_mib * 2**20
    return ExportPlan(
        options=options,
        source=source,
        checkpoint=checkpoint,
        family=family,
        spec=spec,
        lane=lane,
        dialect=get_dialect(lane.dialect, quantized=quantized),
        selector=selector,
        signals={} if isinstance(selector, InLLMSelector) else resolve_signals(selector, family),
        weights=WeightSource(
            checkpoint,
            shapes,
            options.dtype,
            max_bytes=max_bytes,
            scheme=options.quant_scheme(),
            method=options.quant_method,
        ),
        tensor_names=frozenset(shapes),
        num_image_tokens=num_image_tokens,
        num_kept=num_kept,
        max_seq_len=max_seq_len,
        max_weight_mib=max_weight_mib,
    )


def _selector(
    options: ExportOptions, family: Family, num_image_tokens: int, num_layers: int
) -> Selector | InLLMSelector:
    if options.inside_llm:
        inside = get_in_llm_selector(options.selector, options.layer, options.tau)
        _check_layer(inside, num_layers, is_default=options.layer is None)
        return inside
    return get_selector(options.selector, _setting(options, family, num_image_tokens))


def _num_kept(
    options: ExportOptions, selector: Selector | InLLMSelector, num_image_tokens: int
) -> int:
    if options.keep is None:
        return 0
    asked = kept_count(options.keep, num_image_tokens)
    if isinstance(selector, InLLMSelector):
        return asked
    return selector.count(num_image_tokens, asked)


def _setting(options: ExportOptions, family: Family, num_image_tokens: int) -> Setting:
    patch = family.patch_size
    rows, columns = (pixels // patch for pixels in family.image_size)
    # More patches than tokens: a SigLIP tower whose first patch is cropped as if it were a class
    # token. Nothing is known then about where a token lies.
    grid = (rows, columns) if rows * columns <= num_image_tokens else None
    return Setting(options.seed, grid=grid, patch_size=patch)


def _check_layer(selector: InLLMSelector, num_layers: int, *, is_default: bool) -> None:
    if selector.layer >= num_layers:
        raise OptionError(
            f"--layer of {selector.name} is beyond the last decoder layer",
            expected=f"1 to {num_layers - 1}: the model has {num_layers} layers",
            found=f"{selector.layer}" + (", the default" if is_default else ""),
            fix=f"--layer {max(1, num_layers // 2)}" if num_layers > 1 else None,
        )


def _check_quantized_once(options: ExportOptions, checkpoint: Checkpoint) -> None:
    layers = checkpoint.packed_layers()
    if options.quant is None or not layers:
        return
    raise OptionError(
        f"--quant {options.quant} is for weights that are not quantised yet",
        expected="no --quant with a quantised checkpoint, whose weights are taken as they are",
        found=f"{layers[0].format.method} in groups of {layers[0].format.block}",
        fix="leave --quant out, or export the model that was quantised",
    )


def _max_seq_len(options: ExportOptions, model_limit: int) -> int:
    if options.max_seq_len is None:
        return min(_DEFAULT_MAX_SEQ_LEN, model_limit)
    if options.max_seq_len > model_limit:
        raise OptionError(
            "--max-seq-len is more than the model can",
            expected=f"at most {model_limit} (max_position_embeddings)",
            found=options.max_seq_len,
        )
    return options.max_seq_len
