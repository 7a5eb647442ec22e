"""Open and check a checkpoint, and decide what its graphs will be like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.checkpoint.preprocessing import load_tokenizer, read_preprocessor_config
from divprune.export.checkpoint.quantization.rounding import DEFAULT_METHOD
from divprune.export.checkpoint.source import ModelSource
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.dialects import get_dialect
from divprune.export.decoder.spec import DecoderSpec, check_text_model
from divprune.export.families import Family
from divprune.export.graphs.lanes import LANES
from divprune.export.planning.options import ExportOptions
from divprune.export.planning.plan import EVERYDAY_SIZE, ExportPlan, example_inputs
from divprune.export.planning.signals import Signal, resolve_signals
from divprune.export.selection import (
    InLLMSelector,
    Selector,
    Setting,
    get_in_llm_selector,
    get_selector,
)
from divprune.export.selection.sizes import KEPT, TOKENS
from divprune.runtime import families as runtime_families
from divprune.runtime.directory.config_ranges import values_of
from divprune.runtime.directory.keep import kept_count
from divprune.runtime.directory.limits import default_max_seq_len
from divprune.runtime.directory.manifest import DimRange
from divprune.runtime.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["make_plan"]


def make_plan(options: ExportOptions, source: ModelSource) -> ExportPlan:
    """Open and check the checkpoint and decide what its graphs will be like.

    Raises:
        DivPruneError: for a model that is missing, damaged or not supported.
    """
    if not options.inside_llm:
        get_selector(options.selector)  # an unknown name before anything is opened
    checkpoint = Checkpoint.open(source.path)
    _check_quantized_once(options, checkpoint)
    with values_of("config.json"):
        family = checkpoint.family(checkpoint.config)
    check_text_model(family.text_config)
    tokenizer = load_tokenizer(source.path)
    with values_of("config.json"):
        facts = _facts(family, tokenizer)
    runtime_family = _runtime_family(options, checkpoint, family, facts)
    num_image_tokens = _largest_picture(runtime_family)
    max_seq_len = _max_seq_len(
        options, family.text_config.max_position_embeddings, num_image_tokens
    )
    with values_of("config.json"):
        spec = DecoderSpec.from_config(
            family.text_config, tied_head=family.tied_head, planes=family.vision_outputs()
        )
    checkpoint.validate()  # after the kinds of its parts, which name what is not supported
    example = example_inputs(runtime_family)
    _check_width(family, example, spec.hidden_size)
    varies = TOKENS in runtime_family.dims()
    max_tokens = num_image_tokens if varies else None
    selector = _selector(options, family, spec.num_layers, max_tokens)
    num_kept = _num_kept(options, selector, num_image_tokens)
    dims = _dims(options, selector, runtime_family)
    signals: Mapping[str, Signal] = {}
    if not isinstance(selector, InLLMSelector):
        signals = resolve_signals(selector, family, example, varies=TOKENS in dims)
    shapes = expected_tensors(checkpoint.config)
    lane = LANES[options.target]
    quantized = options.quant is not None or bool(checkpoint.packed_layers())
    max_weight_mib = options.max_weight_mib or lane.max_weight_mib
    return ExportPlan(
        options=options,
        source=source,
        checkpoint=checkpoint,
        family=family,
        facts=facts,
        tokenizer=tokenizer,
        runtime_family=runtime_family,
        dims=dims,
        spec=spec,
        lane=lane,
        dialect=get_dialect(lane.dialect, quantized=quantized),
        selector=selector,
        signals=signals,
        weights=_weights(options, checkpoint, shapes, max_weight_mib),
        tensor_names=frozenset(shapes),
        num_image_tokens=num_image_tokens,
        num_kept=num_kept,
        positions=_positions(options, family),
        max_seq_len=max_seq_len,
        max_weight_mib=max_weight_mib,
    )


def _facts(family: Family, tokenizer: Any) -> dict[str, Any]:
    """What the runtime module reads: the family's facts, and the texts of its visual tokens."""
    facts = family.facts()
    for kind, token in (("image", family.image_token_id), ("video", family.video_token_id)):
        text = None if token is None else tokenizer.convert_ids_to_tokens(token)
        if token is not None and text is None:
            raise CheckpointError(
                f"the tokenizer has no token {token}, the model's {kind} placeholder",
                expected=f"a token of that number in a vocabulary of {len(tokenizer)}",
                found="none",
                fix="copy tokenizer.json and tokenizer_config.json of the model into the directory",
            )
        facts[f"{kind}_token"] = text
    return facts


def _runtime_family(
    options: ExportOptions, checkpoint: Checkpoint, family: Family, facts: Mapping[str, Any]
) -> runtime_families.Family:
    """What prepares pictures at run time, from what the checkpoint says about it."""
    preprocessor = read_preprocessor_config(checkpoint.path, checkpoint.config)
    with values_of("preprocessor_config.json"):
        return runtime_families.family_class(family.name).from_facts(
            facts, preprocessor, options.max_image_tokens
        )


def _largest_picture(family: runtime_families.Family) -> int:
    """N of the largest picture; of every picture where it is fixed."""
    tokens = family.dims().get("tokens")
    return family.count_tokens(*EVERYDAY_SIZE) if tokens is None else tokens.maximum


def _check_width(family: Family, example: Mapping[str, NDArray[Any]], hidden_size: int) -> None:
    import torch

    inputs = [torch.from_numpy(example[each.name]).to("meta") for each in family.vision_inputs()]
    with torch.no_grad():
        outputs = family.vision_module()(*inputs)
    features = outputs[0] if isinstance(outputs, tuple) else outputs
    if (width := int(features.shape[1])) != hidden_size:
        raise CheckpointError(
            "projector and text model do not fit each other",
            expected=f"image features of width {hidden_size}",
            found=width,
        )


def _dims(
    options: ExportOptions,
    selector: Selector | InLLMSelector,
    family: runtime_families.Family,
) -> dict[str, DimRange]:
    """The ranges of the graphs' named dimensions; ``kept`` follows from ``tokens``."""
    dims = dict(family.dims())
    if (tokens := dims.get(TOKENS)) is None:
        return dims
    if isinstance(selector, InLLMSelector) and not selector.inputs:
        return dims  # nothing is chosen, whatever N is
    least, best, most = (
        kept_count(options.keep or 1.0, n) for n in (tokens.minimum, tokens.optimum, tokens.maximum)
    )
    return dims | {KEPT: DimRange(least, best, most)}


def _positions(options: ExportOptions, family: Family) -> str:
    if options.inside_llm:
        return "original"
    chosen = options.positions or family.positions[0]
    if chosen not in family.positions:
        raise OptionError(
            f"--positions {chosen} is not for this model",
            expected=" or ".join(family.positions),
            found=chosen,
            fix="leave --positions out",
        )
    return chosen


def _selector(
    options: ExportOptions, family: Family, num_layers: int, max_tokens: int | None
) -> Selector | InLLMSelector:
    if options.inside_llm:
        inside = get_in_llm_selector(options.selector, options.layer, options.tau)
        _check_layer(inside, num_layers, is_default=options.layer is None)
        return inside
    setting = Setting(
        options.seed or 0,
        grid=family.patch_grid,
        patch_size=family.tower.patch_size,
        max_tokens=max_tokens,
    )
    return get_selector(options.selector, setting)


def _num_kept(
    options: ExportOptions, selector: Selector | InLLMSelector, num_image_tokens: int
) -> int:
    if options.keep is None:
        return 0
    asked = kept_count(options.keep, num_image_tokens)
    if isinstance(selector, InLLMSelector):
        return asked
    return selector.count(num_image_tokens, asked)


def _weights(
    options: ExportOptions,
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    max_weight_mib: int | None,
) -> WeightSource:
    return WeightSource(
        checkpoint,
        shapes,
        options.dtype,
        max_bytes=None if max_weight_mib is None else max_weight_mib * 2**20,
        scheme=options.quant_scheme(),
        method=options.quant_method or DEFAULT_METHOD,
    )


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


def _max_seq_len(options: ExportOptions, model_limit: int, num_image_tokens: int) -> int:
    if options.max_seq_len is None:
        return default_max_seq_len(num_image_tokens, model_limit)
    if options.max_seq_len > model_limit:
        raise OptionError(
            "--max-seq-len is more than the model can",
            expected=f"at most {model_limit} (max_position_embeddings)",
            found=options.max_seq_len,
        )
    return options.max_seq_len
