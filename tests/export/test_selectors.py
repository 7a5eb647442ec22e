"""Selectors in exported directories: graph against transformers, and answers at every keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

from divprune.export.export_model import export_model
from divprune.export.planning.options import ExportOptions
from divprune.export.selection import Setting, get_selector
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import OptionError, UnsupportedError
from divprune.runtime.pipeline import Pipeline
from tests.export.rtx_builder import build_engine

EXPORTS = {
    "prumerge": "clip-llama-hub",
    "visionzip": "clip-llama-v5-layers-biases",
    "scope": "siglip-qwen2-hub",
    "downsample": "clip-llama-v4-gqa2-full",
}
PICTURE = Image.fromarray(np.random.default_rng(5).integers(0, 255, (60, 80, 3), np.uint8))
PIXELS = np.random.default_rng(3).standard_normal((1, 3, 56, 56)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function from a key of EXPORTS to its engine directory (fp32, keep 0.2)."""
    folder = tmp_path_factory.mktemp("selectors")

    def get(name: str) -> Path:
        output = folder / name
        if not output.exists():
            source = str(checkpoint(EXPORTS[name]))
            options = ExportOptions(source, 0.2, dtype="fp32", selector=name, output=output)
            export_model(options)
        return output

    return get


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """A function from a key of EXPORTS to the transformers model, with eager attention."""

    def get(name: str) -> Any:
        return transformers.LlavaForConditionalGeneration.from_pretrained(
            checkpoint(EXPORTS[name]), attn_implementation="eager"
        ).eval()

    return get


def run(directory: Path, graph: str = "model") -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(directory / "vision" / f"{graph}.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixel_values": PIXELS}), strict=True))


def tower(model: Any) -> Any:
    with torch.no_grad():
        return model.model.vision_tower(
            torch.from_numpy(PIXELS), output_hidden_states=True, output_attentions=True
        )


def projected(model: Any, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        projector = model.model.multi_modal_projector
        return projector(torch.from_numpy(rows)[None])[0].numpy()


def test_scope_on_a_tower_without_class_token_uses_the_attention_that_tokens_receive(
    exported: Callable[[str], Path], model: Callable[[str], Any]
) -> None:
    outputs = run(exported("scope"))
    received = tower(model("scope")).attentions[-1].mean(dim=(1, 2))[0].numpy()
    signals = {"cls_attention": received}
    expected = get_selector("scope").select(outputs["image_features"], 10, signals)
    np.testing.assert_array_equal(outputs["selection_order"], expected)
    selector = EngineDirectory.open(exported("scope")).manifest.selector
    assert selector.parameters == {"signals": ["mean_attention"]}
    assert selector.nested


def test_prumerge_reads_the_last_layer_as_one_head(
    exported: Callable[[str], Path], model: Callable[[str], Any]
) -> None:
    outputs, llava = run(exported("prumerge")), model("prumerge")
    seen = {}
    attention = llava.model.vision_tower.encoder.layers[-1].self_attn
    for name in ("q_proj", "k_proj"):
        hook = lambda _module, _inputs, output, name=name: seen.update({name: output[0]})  # noqa: E731
        getattr(attention, name).register_forward_hook(hook)
    rows = tower(llava).hidden_states[-2][0, 1:].numpy()
    logits = seen["q_proj"][0] @ seen["k_proj"].T / seen["k_proj"].shape[-1] ** 0.5
    weights = torch.softmax(logits, dim=-1)[1:].detach().numpy()
    keys = seen["k_proj"][1:].detach().numpy()
    signals = {"reader_cls_attention": weights, "reader_keys": keys, "patch_features": rows}
    prumerge = get_selector("prumerge")
    order = prumerge.select(outputs["image_features"], 10, signals)
    np.testing.assert_array_equal(outputs["selection_order"], order)
    expected = projected(llava, prumerge.mix(order, signals))
    np.testing.assert_allclose(outputs["selected_features"], expected, atol=1e-4)


def test_visionzip_merges_what_the_projector_reads(
    exported: Callable[[str], Path], model: Callable[[str], Any]
) -> None:
    outputs, llava = run(exported("visionzip")), model("visionzip")
    inside = tower(llava)
    block = llava.model.vision_tower.encoder.layers[-2]
    with torch.no_grad():
        keys = block.self_attn.k_proj(block.layer_norm1(inside.hidden_states[-3]))[0, 1:].numpy()
    rows = torch.cat([inside.hidden_states[i][0, 1:] for i in (-2, -4)], dim=-1).numpy()
    cls_attention = inside.attentions[-2][0, :, 0, 1:].mean(dim=0).numpy()
    signals = {"cls_attention": cls_attention, "keys": keys, "patch_features": rows}
    visionzip = get_selector("visionzip")
    order = visionzip.select(outputs["image_features"], 10, signals)
    np.testing.assert_array_equal(outputs["selection_order"], order)
    expected = projected(llava, visionzip.mix(order, signals))
    np.testing.assert_allclose(outputs["selected_features"], expected, atol=1e-4)


def test_downsample_shows_the_tower_a_picture_of_nine_patches(
    exported: Callable[[str], Path], model: Callable[[str], Any]
) -> None:
    outputs, llava = run(exported("downsample")), model("downsample")
    planes = [
        Image.fromarray(plane).resize((24, 24), Image.Resampling.BICUBIC) for plane in PIXELS[0]
    ]
    small = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])[None])
    with torch.no_grad():
        features = llava.model.get_image_features(small, interpolate_pos_encoding=True)
    expected = features.pooler_output[0].numpy()[1:]  # without the class token
    np.testing.assert_allclose(outputs["selected_features"], expected, atol=2e-4)
    order = get_selector("downsample", Setting(grid=(7, 7))).select(np.ones((50, 1)), 9)
    np.testing.assert_array_equal(outputs["selection_order"], order)
    with torch.no_grad():
        full = llava.model.get_image_features(torch.from_numpy(PIXELS)).pooler_output[0].numpy()
    found = run(exported("downsample"), "full")["image_features"]
    np.testing.assert_allclose(found, full, atol=2e-4)


@pytest.mark.parametrize("name", EXPORTS)
def test_the_exported_keep_and_the_baseline_answer(
    exported: Callable[[str], Path], name: str
) -> None:
    pipeline = Pipeline.from_dir(exported(name))
    selector = pipeline.manifest.selector
    for keep, kept in ((None, selector.num_kept), (0.2, selector.num_kept), (1.0, None)):
        answer = pipeline.generate(PICTURE, "What is it?", keep=keep, max_new_tokens=2).result
        image = answer.images[0]
        assert image.num_kept == (kept or selector.num_image_tokens)
        assert list(image.kept_indices) == sorted(set(image.kept_indices))
        drawn = pipeline.draw_overlay(PICTURE, image)
        assert drawn.size == PICTURE.size


@pytest.mark.parametrize("name", ["prumerge", "visionzip", "downsample"])
def test_a_smaller_keep_is_refused_where_the_order_is_not_nested(
    exported: Callable[[str], Path], name: str
) -> None:
    pipeline = Pipeline.from_dir(exported(name))
    with pytest.raises(OptionError, match=f"selector {name} cannot keep fewer"):
        pipeline.generate(PICTURE, "What is it?", keep=0.1, max_new_tokens=1)


def test_the_full_graph_reads_the_weights_from_the_small_ones_file(
    exported: Callable[[str], Path],
) -> None:
    folder = exported("downsample") / "vision"
    assert not (folder / "full.onnx.data").exists()
    tensors = onnx.load(folder / "full.onnx", load_external_data=False).graph.initializer
    files = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    assert files == {"model.onnx.data"}


def test_the_full_graph_is_opened_only_for_the_baseline(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from divprune.runtime.backends.onnxruntime import loading as adapter

    opened = []
    really_open = adapter.open_session

    def note(library: Any, directory: Any, graph: str, **options: Any) -> Any:
        opened.append(graph)
        return really_open(library, directory, graph, **options)

    monkeypatch.setattr(adapter, "open_session", note)
    pipeline = Pipeline.from_dir(exported("downsample"))
    pipeline.generate(PICTURE, "What is it?", max_new_tokens=1)
    assert sorted(opened) == ["llm", "vision"]
    for _ in range(2):
        pipeline.generate(PICTURE, "What is it?", keep=1.0, max_new_tokens=1)
    assert sorted(opened) == ["full", "llm", "vision"]


def test_without_baseline_no_full_graph_is_written(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = str(checkpoint("clip-llama-hub"))
    options = ExportOptions(
        source, 0.2, dtype="fp32", selector="downsample", output=tmp_path / "e", baseline=False
    )
    export_model(options)
    assert not (tmp_path / "e" / "vision" / "full.onnx").exists()
    pipeline = Pipeline.from_dir(tmp_path / "e")
    assert pipeline.generate(PICTURE, "What?", max_new_tokens=1).result.images[0].num_kept == 9
    assert pipeline.image_features(PICTURE).shape[0] == 9
    with pytest.raises(OptionError, match="without the baseline"):
        pipeline.generate(PICTURE, "What?", keep=1.0, max_new_tokens=1)


def test_downsample_is_refused_where_tokens_are_no_grid(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = str(checkpoint("siglip-qwen3-v5"))
    with pytest.raises(UnsupportedError, match="needs a token for every patch"):
        export_model(ExportOptions(source, 0.2, selector="downsample", output=tmp_path / "e"))


@pytest.mark.parametrize("target", ["tensorrt-rtx", "jetpack6"])
def test_both_vision_graphs_of_downsample_build_for_tensorrt(
    checkpoint: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    options = ExportOptions(
        str(checkpoint("clip-llama-hub")),
        0.2,
        selector="downsample",
        target=target,
        output=tmp_path / "e",
    )
    export_model(options)
    for name in ("model", "full", "selection"):
        assert build_engine(tmp_path / "e" / "vision" / f"{name}.onnx", 86)


def test_a_merging_selector_exports_for_tensorrt_and_answers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ExportOptions(
        str(checkpoint("clip-llama-hub")),
        0.2,
        selector="visionzip",
        target="jetpack6",
        output=tmp_path / "e",
    )
    export_model(options)
    build_engine(tmp_path / "e" / "vision" / "model.onnx", 86)
    build_engine(tmp_path / "e" / "vision" / "selection.onnx", 86)
    pipeline = Pipeline.from_dir(tmp_path / "e", backend="onnxruntime")
    answer = pipeline.generate(PICTURE, "What is it?", max_new_tokens=2).result
    assert answer.images[0].num_kept == 10
