"""Build the manifest of an export."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from divprune.export.checkpoint.quantization.rounding import DEFAULT_METHOD
from divprune.export.graphs.progress import Progress
from divprune.export.output.staging import record_files
from divprune.export.planning.plan import ExportPlan
from divprune.runtime.directory.manifest import (
    SCHEMA_VERSION,
    GraphSpec,
    KVCacheSpec,
    Manifest,
    ModelInfo,
    QuantInfo,
    SelectorInfo,
)
from divprune.runtime.directory.quant_scheme import QuantScheme

__all__ = ["make_manifest"]

_TOOLS = ("divprune-edge", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def make_manifest(
    plan: ExportPlan, directory: Path, graphs: dict[str, GraphSpec], progress: Progress
) -> Manifest:
    """Describe the plan, its graphs and every file written to ``directory`` so far."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    with progress.step("hashing", size) as advance:
        files = record_files(directory, advance)
    spec, options = plan.spec, plan.options
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=_model_info(plan),
        selector=_selector_info(plan),
        target=options.target,
        dialect=plan.dialect.name,
        dtype=options.dtype,
        quant=_quant_info(plan),
        vision_quant=options.vision_quant,
        prefill_quant=options.prefill_quant,
        graphs=graphs,
        dims=dict(plan.dims),
        kv_cache=KVCacheSpec(
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype="float16" if options.dtype == "fp16" else "float32",
        ),
        max_prefill_len=plan.max_seq_len - 1,
        max_seq_len=plan.max_seq_len,
        max_weight_mib=plan.max_weight_mib,
        baseline=options.baseline,
        verified=options.verify,
        requires={"onnxruntime": plan.dialect.min_onnxruntime, **plan.lane.requires},
        tools={name: importlib.metadata.version(name) for name in _TOOLS},
        files=files,
    )


def _model_info(plan: ExportPlan) -> ModelInfo:
    return ModelInfo(
        id=plan.source.model_id,
        revision=plan.source.revision,
        family=plan.family.name,
        vision_model=plan.family.vision_model,
        text_model=plan.spec.model_type,
        hidden_size=plan.spec.hidden_size,
        vocab_size=plan.spec.vocab_size,
        image_token_id=plan.family.image_token_id,
        video_token_id=plan.family.video_token_id,
        position_axes=plan.family.position_axes,
        max_position_embeddings=plan.spec.max_position_embeddings,
        num_heads=plan.spec.num_heads,
        intermediate_size=plan.family.text_config.intermediate_size,
        tower=plan.family.tower,
        facts=dict(plan.facts),
    )


def _quant_info(plan: ExportPlan) -> QuantInfo | None:
    options, layers = plan.options, plan.checkpoint.packed_layers()
    if layers:
        form = layers[0].format
        scheme = QuantScheme(4, form.block, all(layer.symmetric for layer in layers))
        return QuantInfo(str(scheme), form.method, 4, form.block, scheme.symmetric)
    chosen = options.quant_scheme()
    if chosen is None:
        return None
    method = options.quant_method or DEFAULT_METHOD
    return QuantInfo(str(chosen), method, chosen.bits, chosen.block, chosen.symmetric)


def _selector_info(plan: ExportPlan) -> SelectorInfo:
    selector = plan.selector
    names = [signal.name for signal in plan.signals.values()]
    signals = {"signals": names} if names else {}
    return SelectorInfo(
        name=selector.name,
        version=selector.version,
        keep=plan.options.keep or 0.0,
        num_image_tokens=plan.num_image_tokens,
        num_kept=plan.num_kept,
        positions=plan.positions,
        nested=selector.nested,
        merges=selector.merges,
        inside_llm=selector.inside_llm,
        parameters=selector.parameters | signals,
    )
