"""How far the two arithmetics of int4 weights are from the model that these weights stand for.

    python benchmarks/int4_arithmetic.py [--output FILE]

The small model with ``--quant int4`` in fp16 answers questions on the CPU with activations rounded
to 8 bits (accuracy level 4, what we export), with activations in float (level 1, what the CUDA
provider does at any level), and with plain MatMul of the dequantised weights. The report has the
distance of the logits after the prompt from that last one, and how many answers have the same token
ids: up to the end of the answer, and twelve tokens regardless of it.

Optimisation level BASIC is in it because the first comparison with a GPU was made there. At that
level ONNX Runtime 1.31.1 rewrites ``down_proj`` to float32 and leaves its scales behind a Cast; its
CPU kernel for 8-bit activations wants them constant when it packs the weights, and computes
something else. The default level folds that Cast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from divprune.runtime import Pipeline
from divprune.runtime.directory.manifest import FileRecord, Manifest

__all__ = ["ARITHMETICS", "compare", "export_int4", "measure"]

MODEL = Path(__file__).parents[1] / "models" / "small_scenes"
BASIC = "8-bit activations, optimisation level BASIC"
ARITHMETICS = ("8-bit activations", "float activations", BASIC, "dequantised weights")
QUESTIONS = ("How many objects are there?", "What color is the largest object?")
KEEPS = (0.25, 1.0)
TOKENS = 12
_LEVELS = {"8-bit activations": 4, "float activations": 1, BASIC: 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="where the report goes; default: only printed")
    parser.add_argument("--pictures", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = compare(Path(folder), arguments.pictures)
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def compare(folder: Path, num_pictures: int) -> dict:
    """The report of all three arithmetics against the dequantised weights."""
    engine = export_int4(folder / "engine")
    pictures = sorted((MODEL / "scenes").glob("*.png"))[:num_pictures]
    found = {}
    for name in ARITHMETICS:
        copy = shutil.copytree(engine, folder / name.replace(" ", "-"))
        _spell(copy, name)
        with _optimisation_level("BASIC" if name == BASIC else "ALL"):
            found[name] = measure(Pipeline.from_dir(copy, device="cpu", threads=2), pictures)
    exact = found.pop("dequantised weights")
    return {
        "model": "models/small_scenes, --quant int4 --dtype fp16",
        "onnxruntime": onnxruntime.__version__,
        "answers": len(exact),
        **{name: _distance(rows, exact) for name, rows in found.items()},
    }


def export_int4(output: Path) -> Path:
    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    export_model(
        ExportOptions(
            model=str(MODEL / "checkpoint"),
            keep=0.25,
            dtype="fp16",
            quant="int4",
            output=output,
            verify=False,
        )
    )
    return output


def measure(pipeline: Pipeline, pictures: list[Path]) -> list[dict]:
    """Logits after each prompt, and token ids, for every picture, question and keep."""
    rows: list[dict] = []
    forward = pipeline.backend.forward

    def remember(*arguments):
        logits = forward(*arguments)
        if rows[-1]["logits"] is None:
            rows[-1]["logits"] = np.array(logits, np.float64)
        return logits

    pipeline.backend.forward = remember
    for picture in pictures:
        for question in QUESTIONS:
            for keep in KEEPS:
                rows.append({"logits": None})
                for name, on in (("answer", False), ("regardless", True)):
                    result = pipeline.generate(
                        str(picture), question, keep=keep, max_new_tokens=TOKENS, ignore_eos=on
                    ).result
                    rows[-1][name] = list(result.token_ids)
    return rows


@contextmanager
def _optimisation_level(level: str) -> Iterator[None]:
    """Sessions that are opened meanwhile have this level."""
    usual = onnxruntime.SessionOptions

    class Options(usual):
        def __init__(self) -> None:
            super().__init__()
            levels = onnxruntime.GraphOptimizationLevel
            self.graph_optimization_level = getattr(levels, f"ORT_ENABLE_{level}")

    onnxruntime.SessionOptions = Options
    try:
        yield
    finally:
        onnxruntime.SessionOptions = usual


def _distance(rows: list[dict], exact: list[dict]) -> dict:
    errors = [
        float(np.linalg.norm(a["logits"] - b["logits"]) / np.linalg.norm(b["logits"]))
        for a, b in zip(rows, exact, strict=True)
    ]
    same = {
        name: sum(a[name] == b[name] for a, b in zip(rows, exact, strict=True))
        for name in ("answer", "regardless")
    }
    return {
        "relative_distance_mean": float(np.mean(errors)),
        "relative_distance_max": max(errors),
        "same_token_ids": same["answer"],
        f"same_{TOKENS}_token_ids_regardless_of_the_end": same["regardless"],
    }


def _spell(engine: Path, arithmetic: str) -> None:
    """Rewrite the LLM graph of a directory for one of ``ARITHMETICS``, and its record."""
    path = engine / "llm" / "model.onnx"
    model = onnx.load(path, load_external_data=arithmetic == "dequantised weights")
    if arithmetic in _LEVELS:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = _LEVELS[arithmetic]
    else:
        _dequantise(model.graph)
    onnx.save(model, path)
    manifest_path = engine / "manifest.json"
    manifest = Manifest.from_json(manifest_path.read_text(encoding="utf-8"))
    content = path.read_bytes()
    record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    files = {**manifest.files, "llm/model.onnx": record}
    manifest_path.write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


def _dequantise(graph: onnx.GraphProto) -> None:
    stored = {each.name: each for each in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "MatMulNBits":
            graph.node.append(node)
            continue
        name = node.input[1]
        packed, scales = (numpy_helper.to_array(stored[each]) for each in node.input[1:3])
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
        weight = (codes.astype(np.float32) - 8) * scales.astype(np.float32)[..., None]
        matrix = np.ascontiguousarray(weight.reshape(len(packed), -1).T)
        graph.initializer.append(numpy_helper.from_array(matrix, f"{name}.float"))
        wide, product = f"{name}.x", f"{name}.y"
        graph.node.extend(
            [
                helper.make_node("Cast", [node.input[0]], [wide], to=onnx.TensorProto.FLOAT),
                helper.make_node("MatMul", [wide, f"{name}.float"], [product]),
                helper.make_node("Cast", [product], list(node.output), to=onnx.TensorProto.FLOAT16),
            ]
        )


if __name__ == "__main__":
    main()
