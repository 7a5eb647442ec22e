"""What ONNX Runtime may do to our graphs, and the one fusion that breaks them on CUDA.

That fusion runs for the CUDA provider only, so no session of this machine shows it. What is held
here: our graphs have the pattern that it looks for, its name is one the installed library knows,
a session leaves out what is named, and ours names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.backends.onnxruntime.loading import load
from divprune.runtime.backends.onnxruntime.session import DISABLED_OPTIMIZERS
from divprune.runtime.directory.engine_directory import EngineDirectory

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

_LINEAR = ("MatMul", "MatMulNBits")


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def optimized(graph: Path, folder: Path, *disabled: str) -> Counter[str]:
    """The operators that a session on the CPU really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    return operators(folder / "optimized.onnx")


@pytest.mark.parametrize("dtype, quant", [("fp16", None), ("fp16", "int4")])
def test_our_decoder_has_the_pattern_that_the_fusion_takes(
    target_dir: Callable[..., Path], dtype: str, quant: str | None
) -> None:
    """Once this fails the fusion cannot fire, and need not be disabled any more."""
    path = target_dir("onnxruntime", dtype, quant) / "llm/model.onnx"
    nodes = onnx.load(path, load_external_data=False).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    attentions = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    assert attentions
    for node in attentions:
        query, key, value = (made_by[name] for name in node.input[:3])
        assert (query.op_type, key.op_type) == ("RotaryEmbedding", "RotaryEmbedding")
        projections = [made_by[query.input[0]], made_by[key.input[0]], value]
        assert all(each.op_type in _LINEAR for each in projections)
        cosine = made_by[query.input[2]]  # computed for the rows at hand: no table of positions
        assert cosine.op_type == "Cast"


def test_every_disabled_optimizer_is_one_that_the_installed_library_knows() -> None:
    """Unknown names are passed over without a word: a new library may call it something else."""
    library = next(Path(ort.__file__).parent.glob("capi/onnxruntime_pybind11_state*"))
    content = library.read_bytes()
    for name in DISABLED_OPTIMIZERS:
        assert b"\0" + name.encode() + b"\0" in content


def test_a_session_leaves_out_exactly_the_optimizers_that_are_named(
    target_dir: Callable[..., Path], tmp_path: Path
) -> None:
    graph = target_dir("onnxruntime", "fp16") / "llm/model.onnx"
    usual, ours = optimized(graph, tmp_path), optimized(graph, tmp_path, *DISABLED_OPTIMIZERS)
    without = optimized(graph, tmp_path, "QuickGeluFusion")
    assert usual["QuickGelu"] > 0
    assert ours == usual
    assert without["QuickGelu"] == 0
    assert without["Sigmoid"] == usual["QuickGelu"]


def test_every_session_of_the_backend_disables_them(
    target_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, Any] = {}
    real = ort.InferenceSession

    def open_it(path: str, *arguments: Any, **options: Any) -> Any:
        opened[Path(path).parent.name] = options.get("disabled_optimizers")
        return real(path, *arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", open_it)
    load(EngineDirectory.open(target_dir("onnxruntime", "fp16")), device="cpu", threads=1)
    assert opened == {"vision": DISABLED_OPTIMIZERS, "llm": DISABLED_OPTIMIZERS}
    assert "GroupQueryAttentionFusion" in DISABLED_OPTIMIZERS
