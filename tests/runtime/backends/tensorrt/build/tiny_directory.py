"""Engine directories of a few kilobytes with the inputs and outputs of real ones.

Without ``onnx`` the graphs are bytes that only the fake TensorRT reads.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from divprune.runtime.directory.manifest import (
    SCHEMA_VERSION,
    FileRecord,
    GraphSpec,
    KVCacheSpec,
    Manifest,
    ModelInfo,
    SelectorInfo,
    TensorSpec,
)
from tests.runtime.example_manifest import EXAMPLE_TOWER, with_changes

N, K, HIDDEN, VOCAB, SLOTS = 6, 2, 8, 16, 32
VISION = GraphSpec(
    "vision/model.onnx",
    20,
    (TensorSpec("pixel_values", "float32", (1, 3, 4, 4)),),
    (
        TensorSpec("image_features", "float32", (N, HIDDEN)),
        TensorSpec("selection_order", "int64", (K,)),
        TensorSpec("selected_features", "float32", (K, HIDDEN)),
    ),
)
SELECTION = GraphSpec("vision/selection.onnx", 20, (VISION.outputs[0],), VISION.outputs[1:])
_CACHE = (1, 1, SLOTS, HIDDEN)
LLM = GraphSpec(
    "llm/model.onnx",
    24,
    (
        TensorSpec("inputs_embeds", "float32", (1, "sequence", HIDDEN)),
        TensorSpec("position_ids", "int64", (1, "sequence")),
        TensorSpec("write_indices", "int64", (1,)),
        TensorSpec("past_key_0", "float32", _CACHE),
        TensorSpec("past_value_0", "float32", _CACHE),
    ),
    (
        TensorSpec("logits", "float32", (1, 1, VOCAB)),
        TensorSpec("present_key_0", "float32", _CACHE),
        TensorSpec("present_value_0", "float32", _CACHE),
    ),
)


def write_directory(path: Path, *, real: bool = False, **changes: Any) -> Path:
    """Write a directory for TensorRT-RTX; ``changes`` are those of ``with_changes``.

    Args:
        path: Created.
        real: Whether the graphs are ONNX that a TensorRT can build; needs ``onnx``.
        changes: Fields of the manifest.
    """
    files = _real_files() if real else {
        "vision/model.onnx": b"a vision graph",
        "vision/model.onnx.data": b"its weights",
        "vision/selection.onnx": b"a selection graph",
        "llm/model.onnx": b"an LLM graph",
    }  # fmt: skip
    if graphs := changes.get("graphs"):
        paths = {graph.path for graph in (*graphs.values(), VISION, SELECTION, LLM)}
        changes["files"] = dict.fromkeys(sorted(paths), FileRecord("0" * 64, 1))
    # Records first: a manifest with graphs that are no files is none.
    manifest = with_changes(_manifest(), **dict(sorted(changes.items())))
    for graph in manifest.graphs.values():
        files.setdefault(graph.path, b"another graph")
    write_files(path, manifest, files)
    return path


def write_files(path: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    """Write or replace files, and the manifest with the records of all of them."""
    records = {}
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
        records[name] = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    (path / "manifest.json").write_text(replace(manifest, files=records).to_json())


def _manifest() -> Manifest:
    graphs = {"vision": VISION, "selection": SELECTION, "llm": LLM}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            "some/model",
            None,
            "llava",
            "clip",
            "llama",
            HIDDEN,
            VOCAB,
            15,
            None,
            1,
            64,
            1,
            16,
            EXAMPLE_TOWER,
            {},
        ),
        selector=SelectorInfo("divprune", 1, 1 / 3, N, K, "contiguous", True, False, False, {}),
        target="tensorrt-rtx",
        dialect="onnx",
        dtype="fp32",
        quant=None,
        vision_quant=None,
        prefill_quant=None,
        graphs=graphs,
        dims={},
        kv_cache=KVCacheSpec(1, 1, HIDDEN, "float32"),
        max_prefill_len=SLOTS - 1,
        max_seq_len=SLOTS,
        max_weight_mib=None,
        baseline=True,
        verified=False,
        requires={},
        tools={},
        files={graph.path: FileRecord("0" * 64, 1) for graph in graphs.values()},
    )


def _real_files() -> dict[str, bytes]:
    return {
        VISION.path: _vision_graph(pixels=True),
        SELECTION.path: _vision_graph(pixels=False),
        LLM.path: _llm_graph(),
    }


def _vision_graph(*, pixels: bool) -> bytes:
    """Features are the pixels in another shape; kept are those with the largest sums."""
    import numpy as np
    from onnx import helper, numpy_helper

    constants = {
        "shape": np.array([N, HIDDEN]),
        "column": np.array([1]),
        "row": np.array([1, N]),
        "count": np.array([K]),
        "flat": np.array([K]),
    }
    nodes = [
        helper.make_node("ReduceSum", ["image_features", "column"], ["sums"], keepdims=0),
        helper.make_node("Reshape", ["sums", "row"], ["row_of_sums"]),
        helper.make_node("TopK", ["row_of_sums", "count"], ["_values", "best"], axis=1),
        helper.make_node("Reshape", ["best", "flat"], ["selection_order"]),
        helper.make_node("TopK", ["selection_order", "count"], ["ascending", "_places"], largest=0),
        helper.make_node("Gather", ["image_features", "ascending"], ["selected_features"]),
    ]
    spec = VISION if pixels else SELECTION
    if pixels:
        nodes.insert(0, helper.make_node("Reshape", ["cut", "shape"], ["image_features"]))
        nodes.insert(0, helper.make_node("Slice", ["flat_pixels", *"abc"], ["cut"]))
        nodes.insert(0, helper.make_node("Reshape", ["pixel_values", "minus"], ["flat_pixels"]))
        constants |= {
            "a": np.array([0]),
            "b": np.array([N * HIDDEN]),
            "c": np.array([0]),
            "minus": np.array([-1]),
        }
    else:
        del constants["shape"]
    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    return _model(spec, nodes, initializers)


def _llm_graph() -> bytes:
    """Logits of the last row; keys and values are the embeddings themselves."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((HIDDEN, VOCAB)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(weight, "head"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.array([1, 1, 1]), "ones"),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["inputs_embeds", "axis"], ["new"]),
        helper.make_node(
            "TensorScatter", ["past_key_0", "new", "write_indices"], ["present_key_0"], axis=2
        ),
        helper.make_node(
            "TensorScatter", ["past_value_0", "new", "write_indices"], ["present_value_0"], axis=2
        ),
        helper.make_node("Gather", ["inputs_embeds", "last"], ["row"], axis=1),
        helper.make_node("MatMul", ["row", "head"], ["scores"]),
        helper.make_node("Gather", ["position_ids", "last"], ["position"], axis=1),
        helper.make_node("Cast", ["position"], ["position_f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["position_f", "ones"], ["shift"]),
        helper.make_node("Add", ["scores", "shift"], ["logits"]),
    ]
    return _model(LLM, nodes, initializers)


def _model(spec: GraphSpec, nodes: list[Any], initializers: list[Any]) -> bytes:
    from onnx import TensorProto, helper

    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def infos(tensors: tuple[TensorSpec, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in tensors]

    graph = helper.make_graph(nodes, "g", infos(spec.inputs), infos(spec.outputs), initializers)
    opset = helper.make_opsetid("", spec.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
