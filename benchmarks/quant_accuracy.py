"""What reduced precision costs: exact match on held-out scenes, and how far logits move.

    python benchmarks/quant_accuracy.py

Exports the small model in every precision that ONNX Runtime is given, asks each engine directory
the same questions by the code of ``divprune-eval``, and compares with fp16 question by question.
int4 is run at both accuracy levels of MatMulNBits: 4 (activations of 8 bits), which exports have,
and 0 (float activations). Logits are those before the first answer token, of the small model and
of one with random weights. Writes ``quant-small-scenes.json`` and a table beside it.

Data, engines and answers stay in ``build/quant_accuracy``: run it again after an interruption and
it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.selector_grid import checkpoint_key, write_scenes  # noqa: E402
from divprune.runtime.backends import load_backend  # noqa: E402
from divprune.runtime.directory.engine_directory import EngineDirectory  # noqa: E402
from divprune.runtime.pipeline import Pipeline  # noqa: E402
from divprune.runtime.reports.bench.device import core_count, cpu_name, tool_versions  # noqa: E402
from divprune.runtime.reports.eval.dataset import load_dataset  # noqa: E402
from divprune.runtime.reports.eval.evaluate import evaluate_run, open_log, to_do  # noqa: E402
from divprune.runtime.reports.eval.intervals import bootstrap, wilson  # noqa: E402
from divprune.runtime.reports.eval.metrics import get_metric  # noqa: E402
from divprune.runtime.reports.eval.plan import EvalOptions, plan_runs  # noqa: E402

KEEPS = (1.0, 0.25)
OPTIONS = EvalOptions(keeps=KEEPS, max_new_tokens=40, threads=1)
BASELINE = "fp16"
LOGIT_QUESTIONS = 100
EVERY_QUESTION = 99  # no scene has as many
INT4 = [("int4", method) for method in ("rtn", "mse")]
INT4 += [("int4-g32-asym", method) for method in ("rtn", "mse")]
INT4 += [("int4-g64", method) for method in ("rtn", "mse")]
INT4_MSE = {"quant": "int4", "quant_method": "mse"}
VARIANTS = {
    BASELINE: {},
    **{f"{quant} {way}": {"quant": quant, "quant_method": way} for quant, way in INT4},
    "int8": {"quant": "int8"},
    "vision int8": {"vision_quant": "int8"},
    "int4 mse, vision int8": INT4_MSE | {"vision_quant": "int8"},
    "int4 mse, prefill int8": INT4_MSE | {"prefill_quant": "int8"},
    "int4 mse, prefill and vision int8": INT4_MSE
    | {"prefill_quant": "int8", "vision_quant": "int8"},
}
FLOAT_ACTIVATIONS = ", level 0"


def main():
    options = parse_arguments()
    work = options.work / checkpoint_key(options.checkpoint)
    random_model = write_random_model(options.work)
    with ProcessPoolExecutor(
        options.processes, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        data = write_scenes(work, "plain", options.scenes, EVERY_QUESTION)
        trained = make_engines(pool, options.checkpoint, work / "trained")
        random = make_engines(pool, random_model, work / "random")
        answers = dict(pool.map(answer, trained.items(), [data] * len(trained)))
        logits = {
            key: dict(pool.map(first_logits, engines.items(), [data] * len(engines)))
            for key, engines in (("trained", trained), ("random", random))
        }
    report = make_report(answers, logits, data)
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1) + "\n"
    (options.output / "quant-small-scenes.json").write_text(text, encoding="utf-8")
    table = render(report)
    (options.output / "quant-small-scenes.md").write_text(table, encoding="utf-8")
    print(table)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    small = ROOT / "models" / "small_scenes" / "checkpoint"
    parser.add_argument("--checkpoint", type=Path, default=small)
    parser.add_argument("--scenes", type=int, default=300, help="about 7.6 questions each")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quant_accuracy")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def write_random_model(work):
    path = work / "random-tiny"
    if not (path / "config.json").exists():
        from divprune.export.checkpoint.random import write_random_checkpoint

        write_random_checkpoint(path, "llava-tiny")
    return path


def make_engines(pool, checkpoint, folder):
    """Engine directories by label; what is there already is taken as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    engines = {label: folder / label.replace(" ", "_").replace(",", "") for label in VARIANTS}
    list(pool.map(export, [checkpoint] * len(engines), engines.values(), VARIANTS.values()))
    for label in ("int4 rtn", "int4 mse"):
        output = engines[label].with_name(engines[label].name + "_level_0")
        if not output.exists():
            keep_activations_in_float(engines[label], output)
        engines[label + FLOAT_ACTIVATIONS] = output
    return engines


def export(checkpoint, output, choices):
    if output.exists():  # an export is renamed into place when it is whole
        return
    from divprune.export.export_model import export_model
    from divprune.export.graphs.progress import Progress
    from divprune.export.planning.options import ExportOptions

    options = ExportOptions(
        model=str(checkpoint), keep=KEEPS[1], output=output, verify=False, **choices
    )
    export_model(options, Progress(bars=False))


def keep_activations_in_float(engine, output):
    """Copy an engine directory and set MatMulNBits to accuracy level 0."""
    import onnx

    from divprune.export.output.staging import record_files

    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(engine, partial)
    path = partial / "llm" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, path)
    manifest = EngineDirectory.open(engine).manifest
    manifest = dataclasses.replace(manifest, files=record_files(partial))
    (partial / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    partial.rename(output)


def answer(item, data):
    """Of a labelled engine directory: per keep, whether each question was answered rightly."""
    label, path = item
    dataset, metric = load_dataset(data), get_metric(OPTIONS.metric)
    (run,), _ = plan_runs([EngineDirectory.open(path)], KEEPS)
    folder = path.parent / f"answers-{dataset.sha256[:12]}"
    folder.mkdir(exist_ok=True)
    with open_log(folder, run, dataset, OPTIONS) as log:
        if to_do(run, dataset, log):
            evaluate_run(run, dataset, OPTIONS, log)
        records = log.records
    print(f"{label} has answered", file=sys.stderr)
    return label, {
        keep: [
            metric.count(records[sample.id, keep].text or "", sample.answers)[0]
            for sample in dataset.samples
        ]
        for keep in run.keeps
    }


class Listener:
    """A backend that remembers the logits of its last step."""

    def __init__(self, backend):
        self._backend = backend
        self.latest = None

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def forward(self, *arguments, **options):
        logits = self._backend.forward(*arguments, **options)
        self.latest = np.asarray(logits if isinstance(logits, np.ndarray) else logits.numpy())
        return logits


def first_logits(item, data):
    """Logits [questions, vocabulary] of a labelled engine directory, everything kept."""
    label, path = item
    directory = EngineDirectory.open(path)
    listener = Listener(load_backend(None, directory, device=None, threads=1))
    pipeline, rows = Pipeline(directory, listener), []
    samples = load_dataset(data, LOGIT_QUESTIONS).samples
    pictures = {image: pipeline.encode_image(image) for image in {s.image for s in samples}}
    for sample in samples:
        picture = pictures[sample.image]
        list(pipeline.generate(picture, sample.question, keep=1.0, max_new_tokens=1, reuse=False))
        rows.append(listener.latest.astype(np.float64).ravel())
    return label, np.array(rows)


def make_report(answers, logits, data):
    dataset = load_dataset(data)
    pictures = np.unique([sample.image for sample in dataset.samples], return_inverse=True)[1]
    rows = []
    for label, by_keep in answers.items():
        row = {"variant": label, "keeps": {}}
        for keep, right in by_keep.items():
            row["keeps"][f"{keep:g}"] = compare(right, answers[BASELINE][keep], pictures)
        for model, found in logits.items():
            row[f"logits_{model}"] = distance(found[label], found[BASELINE])
        rows.append(row)
    return {
        "device": f"{cpu_name()}, {core_count()} cores",
        "tools": tool_versions(),
        "data": {
            "split": "plain",
            "questions": len(dataset.samples),
            "pictures": int(pictures.max()) + 1,
            "sha256": dataset.sha256,
        },
        "logit_questions": LOGIT_QUESTIONS,
        "rows": rows,
    }


def compare(right, baseline, pictures):
    """Share of right answers and its difference to the baseline, with 95 % intervals."""
    right, baseline = np.array(right, np.float64), np.array(baseline, np.float64)
    sums = np.zeros((pictures.max() + 1, 2))
    np.add.at(sums, pictures, np.stack([right - baseline, np.ones_like(right)], axis=-1))
    return {
        "exact_match": right.mean(),
        "interval": wilson(right.sum(), len(right)),
        "difference": float((right - baseline).mean()),
        "difference_interval": bootstrap(sums, lambda total: total[..., 0] / total[..., 1]),
    }


def distance(found, reference):
    """Relative 2-norm of the logits' error, and the divergence of the distributions (nats)."""
    error = np.linalg.norm(found - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    expected, got = log_softmax(reference), log_softmax(found)
    divergence = (np.exp(expected) * (expected - got)).sum(-1)
    return {"relative_error": float(error.mean()), "kl": float(divergence.mean())}


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def render(report):
    data = report["data"]
    columns = [f"keep {keep:g}, % | difference to {BASELINE}, points" for keep in KEEPS]
    columns += ["logit error, % | KL, nats | random: logit error, % | KL, nats"]
    questions, pictures = f"{data['questions']:,}", data["pictures"]
    runtime = report["tools"].get("onnxruntime", "")
    lines = [
        "# Accuracy of reduced precision",
        "",
        f"Exact match of the small model (`models/small_scenes`) on {questions} questions about",
        f"{pictures} held-out pictures, through engine directories on ONNX Runtime {runtime}",
        "(CPU). In brackets 95 % intervals: Wilson's of a share, and a bootstrap over pictures of",
        "differences between the same questions. Logits before the first answer token of",
        f"{report['logit_questions']} questions, against fp16; `random` is a tiny model with",
        "random weights. Level 0 multiplies in float what exports multiply with 8-bit activations",
        f"(level 4). Written by `python benchmarks/quant_accuracy.py --scenes {pictures}`.",
        "",
        "| weights | " + " | ".join(columns) + " |",
        "| --- |" + " --: |" * 8,
    ]
    for row in report["rows"]:
        cells = [row["variant"]]
        for keep in KEEPS:
            score = row["keeps"][f"{keep:g}"]
            cells.append(interval(score["exact_match"], score["interval"], "{:.1f}"))
            same = row["variant"] == BASELINE
            found = interval(score["difference"], score["difference_interval"], "{:+.2f}")
            cells.append("-" if same else found)
        for model in ("trained", "random"):
            found = row[f"logits_{model}"]
            cells += [f"{100 * found['relative_error']:.2f}", f"{found['kl']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interval(value, bounds, form):
    value, low, high = (form.format(100 * number) for number in (value, *bounds))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
