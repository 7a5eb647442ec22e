"""``--vision-quant int8`` on the towers of all families; Qwen2.5-VL's is tested with AWQ layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from anyres_checkpoints import write_anyres_checkpoint
from qwen_checkpoints import write_qwen_checkpoint
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.checkpoint.source import ModelSource
from divprune.export.graphs.progress import Progress
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.verify.vision import check_vision
from divprune.export.vision.graphs import write_vision_graphs

# Checkpoint, and how many linear layers a layer of its tower has.
TOWERS: dict[str, tuple[Callable[[Path, str], Path], int]] = {
    "next-llama-hub": (write_anyres_checkpoint, 6),  # CLIP
    "onevision-qwen2-hub": (write_anyres_checkpoint, 6),  # SigLIP
    "internvl-qwen2-hub": (write_tiled_checkpoint, 6),
    "smolvlm-llama": (write_tiled_checkpoint, 6),
    "qwen2-hub-tied": (write_qwen_checkpoint, 4),
    "qwen3-v5": (write_qwen_checkpoint, 4),
}


@pytest.mark.parametrize("name", TOWERS)
def test_every_linear_layer_of_the_tower_is_in_8_bits(name: str, tmp_path: Path) -> None:
    write, linear = TOWERS[name]
    path = write(tmp_path / "checkpoint", name)
    options = ExportOptions(
        str(path),
        keep=0.3,
        dtype="fp32",
        vision_quant="int8",
        max_seq_len=1024,
        max_image_tokens=160,
    )
    plan = make_plan(options, ModelSource(path, "made-up", None))
    write_vision_graphs(plan, tmp_path, Progress(bars=False))
    graph = onnx.load(tmp_path / "vision" / "model.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["MatMulInteger"] == linear * plan.family.tower.num_layers
    # What leaves the tower is rounded, and no more than that: of the worst row, the cosine to
    # the float one is at least (1 - error²)^½.
    assert 1e-4 < check_vision(plan, tmp_path) < 0.05
