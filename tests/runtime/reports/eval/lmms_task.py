"""A task of lmms-eval as small as they come: two pictures in a JSON file on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

__all__ = ["TASK", "write_task"]

TASK = "divprune_tiny"
_YAML = """\
task: divprune_tiny
dataset_path: json
dataset_kwargs:
  data_files: {data}
  cache_dir: {cache}
test_split: train
output_type: generate_until
doc_to_visual: !function tiny.doc_to_visual
doc_to_text: !function tiny.doc_to_text
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
process_results: !function tiny.process_results
metric_list:
  - metric: agreement
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
_FUNCTIONS = """\
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"agreement": float(results[0] == doc["answer"])}
"""


def write_task(folder: Path, answers: list[str], question: str) -> Path:
    """A task folder whose pictures have the colours of ``answers``' places."""
    folder.mkdir()
    documents = []
    for number, answer in enumerate(answers):
        path = folder / f"{number}.png"
        Image.linear_gradient("L").rotate(90 * number).resize((60, 60)).convert("RGB").save(path)
        documents.append({"image": str(path), "question": question, "answer": answer})
    data = folder / "data.json"
    data.write_text("\n".join(map(json.dumps, documents)))
    (folder / "tiny.py").write_text(_FUNCTIONS)
    (folder / "tiny.yaml").write_text(_YAML.format(data=data, cache=folder / "cache"))
    return folder
