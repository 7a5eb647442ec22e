"""Selection between decoder layers where pictures have a varying number of visual tokens.

Token ids and kept indices are those of transformers with the rows taken out in front of the layer:
three positions a token, rows that layers add (DeepStack), pictures of several spans.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyres_checkpoints import write_anyres_checkpoint
from PIL import Image
from qwen_checkpoints import write_qwen_checkpoint
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from divprune.runtime.errors import OptionError
from divprune.runtime.families import VideoFrames
from tests.end_to_end.anyres_reference import AnyresReference
from tests.end_to_end.in_llm_reference import Choose, answer_inside
from tests.end_to_end.qwen_reference import FPS as QWEN_FPS
from tests.end_to_end.qwen_reference import QwenReference
from tests.end_to_end.reference import Answer, Media, Reference, messages_about
from tests.end_to_end.test_inside_the_llm import fastv, greedy_prune, nothing
from tests.end_to_end.tiled_reference import FPS as TILED_FPS
from tests.end_to_end.tiled_reference import TiledReference
from tests.runtime.families.processors import picture

PROMPT = "What is in the picture?"
NEW_TOKENS = 12
MAX_TOKENS = 160
SIZES = ((48, 40), (16, 130), (8, 8), (100, 90))
MAIN = ("qwen25-hub", "internvl-qwen2-hub")
CHECKED = ("qwen25-hub-fastv", "internvl-qwen2-hub-greedyprune")  # by the export itself
CASES: dict[str, tuple[dict[str, Any], Callable[[float], Choose]]] = {
    "greedyprune": (
        {"keep": 0.3, "tau": 0.5, "layer": 2},
        lambda keep: greedy_prune(0.5, keep),
    ),
    "fastv": ({"keep": 0.3, "layer": 1}, fastv),
    "vtw": ({"layer": 1}, lambda _: nothing),
}


class Both:
    """An engine directory, and its checkpoint in transformers."""

    def __init__(self, checkpoint: Path, case: str, engine: Path, options: dict[str, Any]) -> None:
        self.layer, self.path = options["layer"], engine
        self.choose = CASES[case][1]
        self.pipeline = Pipeline.from_dir(engine, backend="onnxruntime")
        self.reference = _reference(checkpoint)

    def check(self, media: Media, keep: float | None = None) -> Any:
        result = self._ask(media, keep)
        choose = self.choose(0.3 if keep is None else keep)
        expected = answer_inside(
            self.reference, media, PROMPT, self.layer, choose, result.token_ids
        )
        return _compare(result, expected)

    def check_unpruned(self, media: Media) -> Any:
        result = self._ask(media, 1.0)
        return _compare(result, self.reference.answer(media, PROMPT, 1.0, NEW_TOKENS, "original"))

    def _ask(self, media: Media, keep: float | None) -> Any:
        fps = QWEN_FPS if isinstance(self.reference, QwenReference) else TILED_FPS
        given = [m if isinstance(m, Image.Image) else VideoFrames(tuple(m), fps) for m in media]
        frames = [len(m) for m in media if not isinstance(m, Image.Image)]
        return self.pipeline.chat(
            messages_about(given, PROMPT, keys=True),
            keep=keep,
            max_new_tokens=NEW_TOKENS,
            ignore_eos=True,
            num_frames=max(frames, default=None),
        ).result


def _compare(result: Any, expected: Answer) -> Any:
    assert [image.num_image_tokens for image in result.images] == expected.num_tokens
    assert [list(image.kept_indices) for image in result.images] == expected.kept
    assert len(result.token_ids) == NEW_TOKENS
    assert list(result.token_ids) == expected.token_ids
    return result


def _reference(checkpoint: Path) -> Reference:
    name = checkpoint.name
    if name.startswith("qwen"):
        return QwenReference(checkpoint, MAX_TOKENS)
    return AnyresReference(checkpoint) if name.startswith("next") else TiledReference(checkpoint)


def _write(folder: Path, name: str) -> Path:
    writers = {"qwen": write_qwen_checkpoint, "next": write_anyres_checkpoint}
    return writers.get(name[:4], write_tiled_checkpoint)(folder / name, name)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Both]:
    """A function from a checkpoint and a selector to both; each is made once."""
    folder = tmp_path_factory.mktemp("any-size-inside")
    made: dict[str, Both] = {}

    def get(name: str, case: str, **more: Any) -> Both:
        key = f"{name}-{case}"
        if key in made:
            return made[key]

        checkpoint = folder / name
        if not checkpoint.exists():
            _write(folder, name)
        options = {**CASES[case][0], "max_seq_len": 512, "verify": key in CHECKED, **more}
        if name.startswith("qwen"):
            options["max_image_tokens"] = MAX_TOKENS
        output = folder / key
        export_model(
            ExportOptions(
                model=str(checkpoint), selector=case, dtype="fp32", output=output, **options
            )
        )
        made[key] = Both(checkpoint, case, output, options)
        return made[key]

    return get


def _frames(count: int) -> tuple[Image.Image, ...]:
    return tuple(picture(30, 20, seed) for seed in range(count))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MAIN)
def test_pictures_of_every_shape(name: str, case: str, both: Callable[..., Both]) -> None:
    one = both(name, case)
    counts = {one.check([picture(*size)]).images[0].num_image_tokens for size in SIZES}
    assert len(counts) > 1
    one.check_unpruned([picture(*SIZES[0])])


@pytest.mark.parametrize("case", ["greedyprune", "fastv"])
@pytest.mark.parametrize("name", MAIN)
def test_a_smaller_keep_at_run_time(name: str, case: str, both: Callable[..., Both]) -> None:
    both(name, case).check([picture(*SIZES[0])], 0.1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MAIN)
def test_two_pictures_of_different_size_are_pruned_each_on_its_own(
    name: str, case: str, both: Callable[..., Both]
) -> None:
    result = both(name, case).check([picture(48, 40), picture(8, 8, 1)])
    first, second = result.images
    assert first.num_image_tokens > second.num_image_tokens


@pytest.mark.parametrize("case", ["greedyprune", "fastv"])
@pytest.mark.parametrize("name", MAIN)
def test_a_video_is_several_spans(name: str, case: str, both: Callable[..., Both]) -> None:
    both(name, case).check([_frames(4)])


def test_rows_that_layers_add_go_on_behind_the_selection(
    both: Callable[..., Both], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 1 of Qwen3-VL is among those that DeepStack adds rows to."""
    one = both("qwen3-v5", "fastv", verify=True)
    graphs = one.pipeline.manifest.graphs
    added = [
        [tensor.name for tensor in graphs[half].inputs if "deepstack" in tensor.name]
        for half in ("llm_front", "llm_back")
    ]
    assert added == [["deepstack_0"], ["deepstack_1"]]
    for media in ([picture(48, 40)], [picture(16, 130), picture(8, 8, 1)], [_frames(4)]):
        one.check(media)
    one.check([picture(48, 40)], 0.1)
    one.check_unpruned([picture(48, 40)])
    backend: Any = one.pipeline.backend
    monkeypatch.setattr(backend, "rows_at_once", 16)  # long prompts go through in pieces
    one.check([picture(48, 40)])


@pytest.mark.parametrize(
    ("name", "case"), [("smolvlm-llama", "fastv"), ("next-llama-hub", "greedyprune")]
)
def test_without_the_baseline_and_in_other_families(
    name: str, case: str, both: Callable[..., Both]
) -> None:
    one = both(name, case, baseline=False)
    for media in ([picture(40, 30)], [picture(20, 100), picture(16, 16, 1)]):
        one.check(media)
    with pytest.raises(OptionError, match="without the baseline"):
        one.check_unpruned([picture(16, 16)])
    manifest = one.pipeline.manifest  # a small picture and a long text have to fit
    assert manifest.kv_cache_bytes == manifest.max_seq_len * manifest.kv_cache.bytes_per_token
