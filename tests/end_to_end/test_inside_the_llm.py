"""Selection between decoder layers, against transformers with hooks written from the papers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from PIL import Image, ImageOps

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from divprune.runtime.cli.bench import main as bench_main
from divprune.runtime.cli.run import main as run_main
from divprune.runtime.errors import OptionError
from tests.export.rtx_builder import build_engine

PROMPT = "What is in the picture?"
NEW_TOKENS = 24
KEEP = 0.2
CHECKPOINTS = ["clip-llama-v4-gqa2-full", "siglip-qwen3-v5"]


class Reference:
    """A checkpoint in transformers whose layers from L on see only what a rule leaves.

    The whole sequence is run anew for every token, without a cache: the prompt and the answer
    through all layers, with the rows that the rule removed taken out in front of layer L.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(checkpoint)

    def inputs(self, pictures: Sequence[Image.Image]) -> Any:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": PROMPT}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        bos = self.processor.tokenizer.bos_token
        return self.processor(
            text=text,
            images=list(pictures),
            return_tensors="pt",
            add_special_tokens=bos is None or not text.startswith(bos),
        )

    def unpruned(self, pictures: Sequence[Image.Image]) -> list[int]:
        inputs = self.inputs(pictures)
        ids = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()

    def pruned(
        self, pictures: Sequence[Image.Image], layer: int, choose: Callable[..., list[int]]
    ) -> tuple[list[list[int]], list[int]]:
        """Kept indices of each picture, ascending, and NEW_TOKENS greedy ids."""
        inputs = self.inputs(pictures)
        ids = inputs["input_ids"][0]
        visual = (ids == self.model.config.image_token_id).nonzero()[:, 0]
        spans = visual.reshape(len(pictures), -1)
        with torch.no_grad():
            features = self.model.get_image_features(inputs["pixel_values"]).pooler_output
            rows = self.model.get_input_embeddings()(ids)
            rows[visual] = torch.cat(list(features))
            outputs = self.model.model.language_model(
                inputs_embeds=rows[None], output_hidden_states=True, output_attentions=True
            )
        state = outputs.hidden_states[layer][0]
        attention = outputs.attentions[layer - 1][0]
        kept = [sorted(choose(state[span], state[-1], attention[:, -1, span])) for span in spans]
        gone = torch.zeros(len(ids), dtype=torch.bool)
        gone[visual] = True
        for span, places in zip(spans, kept, strict=True):
            gone[span[places]] = False
        answer: list[int] = []
        while len(answer) < NEW_TOKENS:
            answer.append(self.next_token(rows, gone, layer))
            embedding = self.model.get_input_embeddings()(torch.tensor([answer[-1]]))
            rows = torch.cat([rows, embedding.detach()])
        return kept, answer

    def next_token(self, rows: torch.Tensor, gone: torch.Tensor, layer: int) -> int:
        """One pass over everything, by hand: layer after layer, rows removed before ``layer``."""
        text = self.model.model.language_model
        positions = torch.arange(len(rows))
        hidden = rows
        with torch.no_grad():
            for number, block in enumerate(text.layers):
                if number == layer:
                    stays = ~torch.cat([gone, torch.zeros(len(rows) - len(gone), dtype=torch.bool)])
                    hidden, positions = hidden[stays], positions[stays]
                mask = torch.full((len(hidden), len(hidden)), -math.inf).triu(1)
                rope = text.rotary_emb(hidden[None], positions[None])
                out = block(hidden[None], attention_mask=mask[None, None], position_embeddings=rope)
                hidden = (out[0] if isinstance(out, tuple) else out).reshape(-1, rows.shape[1])
            return int(self.model.lm_head(text.norm(hidden[-1])).argmax())


def greedy_prune(tau: float, keep: float) -> Callable[..., list[int]]:
    """Sorted by saliency; a token too close to one that was kept waits for the filling."""

    def choose(visual: torch.Tensor, last: torch.Tensor, attention: torch.Tensor) -> list[int]:
        saliency = torch.cosine_similarity(visual, last[None], dim=1).tolist()
        ranked = sorted(range(len(visual)), key=lambda i: -saliency[i])
        count = max(1, round(keep * len(visual)))
        kept: list[int] = []
        for token in ranked:
            near = [float(torch.cosine_similarity(visual[token], visual[k], dim=0)) for k in kept]
            if all(cosine <= tau for cosine in near):
                kept.append(token)
        return (kept + [token for token in ranked if token not in kept])[:count]

    return choose


def fastv(keep: float) -> Callable[..., list[int]]:
    def choose(visual: torch.Tensor, last: torch.Tensor, attention: torch.Tensor) -> list[int]:
        weights = attention.mean(dim=0)
        return weights.argsort(descending=True)[: max(1, round(keep * len(visual)))].tolist()

    return choose


def nothing(*_: torch.Tensor) -> list[int]:
    return []


CASES: dict[str, tuple[dict[str, Any], Callable[..., list[int]]]] = {
    "greedyprune": ({"keep": KEEP, "tau": 0.5}, greedy_prune(0.5, KEEP)),
    "greedyprune-filled": ({"keep": 0.5, "tau": -0.9}, greedy_prune(-0.9, 0.5)),
    "fastv": ({"keep": KEEP}, fastv(KEEP)),
    "vtw": ({}, nothing),
}


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Reference]:
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = Reference(checkpoint(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def pictures(picture: Image.Image) -> list[Image.Image]:
    return [picture, ImageOps.invert(picture).rotate(90, expand=True)]


@pytest.fixture(scope="module")
def engine(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Exports a checkpoint, checked by itself; each once."""
    made: dict[str, Path] = {}

    def export(name: str, case: str, layer: int, **more: Any) -> Path:
        key = f"{name} {case} {layer} {more}"
        if key not in made:
            options = {**CASES[case][0], "selector": case.partition("-")[0], "layer": layer, **more}
            made[key] = tmp_path_factory.mktemp("engines") / "engine"
            model = str(checkpoint(name))
            export_model(ExportOptions(model=model, dtype="fp32", output=made[key], **options))
        return made[key]

    return export


@pytest.fixture(scope="module")
def export(engine: Callable[..., Path]) -> Callable[..., Pipeline]:
    """The same, loaded."""
    return lambda *case, **more: Pipeline.from_dir(engine(*case, **more), backend="onnxruntime")


def answer(pipeline: Pipeline, pictures: Sequence[Image.Image], keep: float | None = None) -> Any:
    return pipeline.generate(
        pictures, PROMPT, keep=keep, max_new_tokens=NEW_TOKENS, ignore_eos=True
    ).result


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_token_ids_are_those_of_transformers_with_the_rows_taken_out(
    export: Callable[..., Pipeline],
    reference: Callable[[str], Reference],
    pictures: list[Image.Image],
    name: str,
    case: str,
    layer: int,
) -> None:
    kept, ids = reference(name).pruned(pictures[:1], layer, CASES[case][1])
    result = answer(export(name, case, layer), pictures[:1])
    assert [list(image.kept_indices) for image in result.images] == kept
    assert list(result.token_ids) == ids


@pytest.mark.parametrize("case", CASES)
def test_keep_1_gives_the_token_ids_of_transformers_generate(
    export: Callable[..., Pipeline],
    reference: Callable[[str], Reference],
    pictures: list[Image.Image],
    case: str,
) -> None:
    pipeline = export(CHECKPOINTS[0], case, 1)
    result = pipeline.generate(pictures, PROMPT, keep=1.0, max_new_tokens=NEW_TOKENS).result
    assert list(result.token_ids) == reference(CHECKPOINTS[0]).unpruned(pictures)
    assert result.timings.selection is None
    tokens = pipeline.manifest.selector.num_image_tokens
    assert [image.num_kept for image in result.images] == [tokens, tokens]


@pytest.mark.parametrize("case", ["greedyprune", "fastv", "vtw"])
def test_several_pictures_are_pruned_each_on_its_own(
    export: Callable[..., Pipeline],
    reference: Callable[[str], Reference],
    pictures: list[Image.Image],
    case: str,
) -> None:
    kept, ids = reference(CHECKPOINTS[0]).pruned(pictures, 1, CASES[case][1])
    result = answer(export(CHECKPOINTS[0], case, 1), pictures)
    assert [list(image.kept_indices) for image in result.images] == kept
    assert list(result.token_ids) == ids


@pytest.mark.parametrize(("case", "choose"), [("greedyprune", greedy_prune), ("fastv", fastv)])
def test_a_smaller_keep_at_run_time_is_the_choice_of_that_keep(
    export: Callable[..., Pipeline],
    reference: Callable[[str], Reference],
    pictures: list[Image.Image],
    case: str,
    choose: Callable[..., Any],
) -> None:
    rule = choose(0.5, 0.1) if case == "greedyprune" else choose(0.1)
    kept, ids = reference(CHECKPOINTS[0]).pruned(pictures[:1], 1, rule)
    result = answer(export(CHECKPOINTS[0], case, 1), pictures[:1], keep=0.1)
    assert [list(image.kept_indices) for image in result.images] == kept
    assert list(result.token_ids) == ids


def test_the_halves_fill_caches_of_different_length(
    export: Callable[..., Pipeline], pictures: list[Image.Image]
) -> None:
    pipeline: Any = export(CHECKPOINTS[0], "fastv", 1)
    result = answer(pipeline, pictures)
    front, back = pipeline.backend._residents.decoder().parts
    fed = result.prompt_tokens + NEW_TOKENS - 1  # the last token is never fed
    removed = sum(image.num_image_tokens - image.num_kept for image in result.images)
    assert (front.cache.filled, back.cache.filled) == (fed, fed - removed)
    answer(pipeline, pictures, keep=1.0)
    assert front.cache.filled == back.cache.filled == fed
    shape = pipeline.manifest.kv_cache
    rows = [part.cache.values.keys() for part in (front, back)]
    assert not rows[0] & rows[1], "no layer in both"
    assert len(rows[0]) + len(rows[1]) == 2 * shape.num_layers


def test_no_weight_is_in_both_halves(engine: Callable[..., Path]) -> None:
    folder = engine(CHECKPOINTS[0], "fastv", 1) / "llm"
    names = [
        {tensor.name for tensor in onnx.load(folder / half / "model.onnx").graph.initializer}
        for half in ("front", "back")
    ]
    both = {name for name in names[0] & names[1] if not name.startswith("shared/")}
    assert both == set()
    assert {name for name in names[0] if ".layers.0." in name}
    assert {name for name in names[1] if ".layers.1." in name}


def test_without_the_baseline_the_back_has_room_for_kept_tokens_only(
    export: Callable[..., Pipeline], pictures: list[Image.Image]
) -> None:
    with_it = export(CHECKPOINTS[0], "fastv", 1)
    without = export(CHECKPOINTS[0], "fastv", 1, baseline=False, verify=False)
    assert answer(without, pictures).token_ids == answer(with_it, pictures).token_ids
    selector, cache = without.manifest.selector, without.manifest.kv_cache
    saved = (selector.num_image_tokens - selector.num_kept) * (cache.num_layers - 1)
    expected = with_it.manifest.kv_cache_bytes - saved * cache.bytes_per_token // cache.num_layers
    assert without.manifest.kv_cache_bytes == expected
    with pytest.raises(OptionError, match="without the baseline"):
        answer(without, pictures, keep=1.0)


def test_vtw_takes_no_other_keep(
    export: Callable[..., Pipeline], pictures: list[Image.Image]
) -> None:
    pipeline = export(CHECKPOINTS[0], "vtw", 1)
    with pytest.raises(OptionError, match="vtw keeps no visual token"):
        answer(pipeline, pictures, keep=0.1)
    result = answer(pipeline, pictures)
    assert result.describe_keep() == "0 of 100 kept, 100.0 % removed in 2 images"


def test_the_result_says_what_was_selected_and_how_long_it_took(
    export: Callable[..., Pipeline], pictures: list[Image.Image]
) -> None:
    result = answer(export(CHECKPOINTS[0], "fastv", 1), pictures[:1])
    (image,) = result.images
    assert sorted(image.selection_order) == list(image.kept_indices)
    assert image.selection_order != image.kept_indices
    assert 0 < result.timings.selection < result.timings.prefill
    assert result.to_dict()["timings_ms"]["selection"] > 0


@pytest.mark.parametrize("case", ["greedyprune", "vtw"])
def test_the_tools_take_such_a_directory(
    engine: Callable[..., Path],
    picture: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    directory, image = str(engine(CHECKPOINTS[0], case, 1)), tmp_path / "image.png"
    picture.save(image)
    overlay = tmp_path / "overlay.png"
    common = ["--max-new-tokens", "3", "--json", "--quiet"]
    assert run_main([directory, str(image), *common, "--overlay", str(overlay)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert overlay.exists()
    assert answer["num_kept"] == len(answer["kept_indices"]) == (0 if case == "vtw" else 10)
    assert answer["prompt_tokens"] > answer["num_image_tokens"]

    rounds = ["--iters", "2", "--warmup", "0", "--ignore-eos"]
    assert bench_main([directory, "--image", str(image), *rounds, *common]) == 0
    report = json.loads(capsys.readouterr().out)
    baseline, pruned = report["runs"]
    assert (baseline["keep"], pruned["num_kept"]) == (1.0, answer["num_kept"])
    assert baseline["prompt_tokens"] == pruned["prompt_tokens"] == answer["prompt_tokens"]
    assert baseline["stages"]["selection"] is None
    assert pruned["stages"]["selection"]["p50"] < pruned["stages"]["prefill"]["p50"]
    removed = answer["num_image_tokens"] - answer["num_kept"]
    saved = removed * 2 * 2 * 2 * 16 * 4  # layers behind, key and value, heads, head dim, bytes
    assert baseline["live_kv_bytes"] - pruned["live_kv_bytes"] == saved
    assert pruned["predicted"]["prefill"]["ms"] < baseline["predicted"]["prefill"]["ms"]


@pytest.mark.parametrize("target", ["tensorrt-rtx", "jetpack6"])
@pytest.mark.parametrize("case", ["fastv", "greedyprune"])
def test_every_dialect_splits_alike_and_builds(
    export: Callable[..., Pipeline],
    engine: Callable[..., Path],
    pictures: list[Image.Image],
    case: str,
    target: str,
) -> None:
    expected = answer(export(CHECKPOINTS[0], case, 1), pictures)
    result = answer(export(CHECKPOINTS[0], case, 1, target=target), pictures)
    assert result.images == expected.images
    assert result.token_ids == expected.token_ids

    folder = engine(CHECKPOINTS[0], case, 1, target=target) / "llm"
    model = "model.tensorrt.onnx" if target == "tensorrt-rtx" else "model.onnx"
    for half in ("front", "back"):
        assert build_engine(folder / half / model, 86, [(1, 1, 1), (1, 60, 511)])
    assert build_engine(folder / "selection.onnx", 86)
