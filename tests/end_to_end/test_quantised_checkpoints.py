"""AWQ and GPTQ checkpoints of every kind on the hub answer as the models that they stand for.

The decoder's layers are packed; tower, projector, output layer and embeddings stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from qwen_checkpoints import write_qwen_checkpoint
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.output.staging import record_files
from divprune.runtime import Pipeline
from divprune.runtime.directory.engine_directory import EngineDirectory
from tests.end_to_end.qwen_reference import QwenReference
from tests.end_to_end.reference import messages_about
from tests.end_to_end.tiled_reference import TiledReference
from tests.export.checkpoint.quantization.packed_checkpoints import write_packed
from tests.runtime.engine_copies import read_manifest
from tests.runtime.families.processors import picture

PROMPT = "What is in the picture?"
NEW_TOKENS = 12
MAX_TOKENS = 160
Write = Callable[[Path, str], Path]

# Checkpoint, packing, the modules that its config names as not packed.
CASES: list[tuple[Write, str, str, tuple[str, ...]]] = [
    (write_qwen_checkpoint, "qwen25-hub", "awq", ("visual",)),
    (write_qwen_checkpoint, "qwen2-hub-tied", "gptq", ()),
    (write_qwen_checkpoint, "qwen3-v5", "gptq_v2", ()),
    (
        write_tiled_checkpoint,
        "internvl-qwen2-hub",
        "awq",
        ("vision_tower", "multi_modal_projector"),
    ),
]


def export(packed: Path, **options: Any) -> Path:
    output = packed.with_name("engine")
    fixed = {"keep": 0.3, "output": output, "max_image_tokens": MAX_TOKENS}
    export_model(ExportOptions(model=str(packed), **fixed, **options))
    return output


def keep_activations_in_float(engine: Path) -> None:
    """Exports let ONNX Runtime round what goes into a 4-bit layer to 8 bits; take that back."""
    path = engine / "llm" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    levels = [
        attribute
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    ]
    assert levels
    for level in levels:
        level.i = 0
    onnx.save(model, path)
    manifest = replace(read_manifest(engine), files=record_files(engine))
    (engine / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


@pytest.mark.parametrize(("write", "name", "form", "kept"), CASES)
def test_answers_are_those_of_the_dequantised_model(
    write: Write, name: str, form: str, kept: tuple[str, ...], tmp_path: Path
) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    write_packed(write(tmp_path / "source", name), packed, plain, form, kept=kept)
    engine = export(packed, dtype="fp32", verify=False)
    keep_activations_in_float(engine)
    pipeline = Pipeline.from_dir(engine)
    is_qwen = write is write_qwen_checkpoint
    reference = QwenReference(plain, MAX_TOKENS) if is_qwen else TiledReference(plain)
    positions, image = pipeline.manifest.selector.positions, picture(40, 30)
    for keep in (1.0, 0.3):
        expected = reference.answer([image], PROMPT, keep, NEW_TOKENS, positions)
        result = pipeline.chat(
            messages_about([image], PROMPT, keys=True),
            keep=keep,
            max_new_tokens=NEW_TOKENS,
            ignore_eos=True,
        ).result
        assert [list(each.kept_indices) for each in result.images] == expected.kept
        assert list(result.token_ids) == expected.token_ids


def test_the_tower_is_quantised_on_its_own(tmp_path: Path) -> None:
    """On ONNX Runtime, where the export's own check holds its numbers against the model's."""
    source = write_qwen_checkpoint(tmp_path / "source", "qwen25-hub")
    packed = tmp_path / "packed"
    write_packed(source, packed, tmp_path / "plain", "awq", kept=["visual"])
    output = export(packed, vision_quant="int8")
    manifest = EngineDirectory.open(output).manifest
    assert manifest.verified
    assert manifest.quant is not None
    assert (manifest.quant.method, manifest.quant.scheme) == ("awq", "int4-g32-asym")
    assert manifest.vision_quant == "int8"
    graph = onnx.load(output / "vision" / "model.onnx", load_external_data=False).graph
    # Five linear layers in each of the tower's four layers.
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 5 * 4
