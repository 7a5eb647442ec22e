"""Tokens in an evaluation are those of the pictures asked about, however many each has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.cli.eval import main
from divprune.runtime.reports.eval.flops import decoder_shape, paper_flops, prefill_macs
from tests.runtime.families.anyres_cases import noise

pytest.importorskip("onnxruntime")
pytest.importorskip("torch", reason="engine directories are exported here")

SIZES = ((64, 48), (30, 70), (200, 20))
QUESTION = "What is in the picture?"
COVER = "auto:0.5"
OPTIONS = ("--max-new-tokens", "3", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def anyres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.6 in miniature at keep 0.3: pictures of different sizes have different N."""
    from anyres_checkpoints import write_anyres_checkpoint

    from divprune.export.export_model import ExportOptions, export_model

    folder = tmp_path_factory.mktemp("eval-tokens")
    model = str(write_anyres_checkpoint(folder / "checkpoint", "next-llama-hub"))
    output = folder / "engine"
    export_model(ExportOptions(model=model, keep=0.3, dtype="fp32", verify=False, output=output))
    return output


@pytest.fixture(scope="module")
def fixed(target_dir: Callable[..., Path]) -> Path:
    return target_dir("onnxruntime", keep=0.5)


def write_data(folder: Path, pictures: list[Image.Image]) -> Path:
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    path = folder / "data.jsonl"
    samples = (
        {"image": f"{number}.png", "question": QUESTION, "answer": "yes"}
        for number in range(len(pictures))
    )
    path.write_text("\n".join(map(json.dumps, samples)))
    return path


def evaluate(engine: Path, data: Path, keeps: str, *more: str) -> dict[str, dict]:
    out = data.parent / "out"
    command = [str(engine), str(data), "--keep", keeps, "--output", str(out), *OPTIONS, *more]
    assert main(command) == 0
    rows = json.loads((out / "report.json").read_text())["rows"]
    return {f"auto:{row['auto']}" if row["auto"] else f"{row['keep']:g}": row for row in rows}


def log_of(engine: Path, data: Path) -> list[dict]:
    lines = (data.parent / "out" / f"{engine.name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_each_picture_counts_with_its_own_tokens(anyres, tmp_path):
    pictures = [noise(size, seed) for seed, size in enumerate(SIZES)]
    data = write_data(tmp_path, pictures)
    rows = evaluate(anyres, data, f"0.3,0.1,{COVER}")
    pipeline = Pipeline.from_dir(anyres, threads=1)
    manifest = pipeline.manifest
    for keep in ("1", "0.3", "0.1", COVER):
        results = [
            pipeline.generate(picture, QUESTION, keep=keep, max_new_tokens=3).result
            for picture in pictures
        ]
        total, kept = (
            np.array([getattr(result.images[0], name) for result in results])
            for name in ("num_image_tokens", "num_kept")
        )
        assert len(set(total)) == 3
        assert total.max() < manifest.selector.num_image_tokens
        text = pipeline.count_text_tokens(QUESTION)
        row = rows[keep]
        assert row["num_image_tokens"] == pytest.approx(total.mean())
        assert row["num_kept"] == row["layer_tokens"] == pytest.approx(kept.mean())
        assert row["text_tokens"] == text
        shape = decoder_shape(manifest)
        sizes = (shape.num_layers, shape.hidden_size, shape.intermediate_size)
        flops = np.array([paper_flops(*sizes, float(text + k)) for k in kept])
        whole = np.array([paper_flops(*sizes, float(text + n)) for n in total])
        assert row["paper_flops"] == pytest.approx(flops.mean())
        assert row["paper_ratio"] == pytest.approx((flops / whole).mean())
        macs = [prefill_macs(shape, float(text + k)) for k in kept]
        assert row["macs"] == pytest.approx(np.mean(macs))
    lines = log_of(anyres, data)
    assert len(lines) == 4 * len(SIZES)
    assert len({line["num_image_tokens"] for line in lines}) == len(SIZES)


def test_a_similarity_stands_beside_fractions_of_the_same_mean(fixed, tmp_path, capsys):
    flat = Image.new("RGB", (60, 60), "navy")
    half = flat.copy()
    half.paste(noise((60, 30), 5), (0, 0))
    data = write_data(tmp_path, [flat, half, noise((60, 60), 3)])
    keeps = f"0.5,0.25,0.03,{COVER},auto:1"
    rows = evaluate(fixed, data, keeps)
    shown = capsys.readouterr().out
    assert list(rows) == ["1", "0.5", "0.25", "0.03", "auto:1.0", COVER]
    pipeline = Pipeline.from_dir(fixed, threads=1)
    kept = [
        pipeline.generate(tmp_path / f"{n}.png", QUESTION, keep=COVER, max_new_tokens=1)
        .result.images[0]
        .num_kept
        for n in range(3)
    ]
    assert len(set(kept)) > 1
    row = rows[COVER]
    total = pipeline.manifest.selector.num_image_tokens
    assert (row["num_kept"], row["keep"]) == pytest.approx((np.mean(kept), np.mean(kept) / total))
    middle = tuple(np.quantile(kept, (0.1, 0.9)))
    assert (row["kept_low"], row["kept_high"]) == pytest.approx(middle)
    assert row["difference"] is not None
    assert row["gain"] is not None
    assert rows["0.25"]["gain"] is None
    assert f"keep {COVER}: " in shown
    assert f"at its mean of {np.mean(kept):.1f} tokens" in shown


def test_a_similarity_is_asked_only_once(fixed, tmp_path, monkeypatch):
    data = write_data(tmp_path, [noise((60, 60), 3)])
    first = evaluate(fixed, data, COVER)
    monkeypatch.setattr(Pipeline, "__init__", None)
    assert evaluate(fixed, data, COVER) == first


def test_a_directory_that_tells_no_cover_answers_with_fractions_alone(
    fixed, target_dir, tmp_path, capsys
):
    uniform = target_dir("onnxruntime", keep=0.5, selector="uniform")
    data = write_data(tmp_path, [noise((60, 60), 3)])
    assert main([str(uniform), str(data), "--keep", COVER, *OPTIONS]) == 2
    assert "does not tell how well" in capsys.readouterr().err
    out = str(tmp_path / "both")
    command = [str(fixed), str(uniform), str(data), "--keep", f"0.5,{COVER}", "--output", out]
    assert main([*command, *OPTIONS]) == 0
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [row["auto"] for row in report["rows"]] == [None, None, 0.5, None]
    assert f"{uniform.name} cannot serve keep {COVER}" in report["notes"]


@pytest.mark.parametrize("value", ["auto:0", "auto:1.5", "auto:nan", "auto:", "0.1,auto:2"])
def test_a_similarity_out_of_range_is_refused_before_anything_is_opened(value, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main([missing, missing, "--keep", value]) == 2
    shown = capsys.readouterr().err
    assert "auto:" in shown
    assert "missing" not in shown
