from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from divprune.export.checkpoint.source import resolve_model
from divprune.export.export_model import export_model
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.planning.room import check_room, longest_sequence
from divprune.runtime.errors import DivPruneError, OptionError, UnsupportedError

QWEN3 = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (transformers.MistralConfig(sliding_window=64, max_position_embeddings=512), 64),
        (transformers.MistralConfig(sliding_window=4096, max_position_embeddings=512), 512),
        (transformers.MistralConfig(sliding_window=None, max_position_embeddings=512), 512),
        (transformers.Qwen3Config(**QWEN3, sliding_window=64, use_sliding_window=False), 32768),
        (
            transformers.Qwen3Config(
                **QWEN3, sliding_window=64, use_sliding_window=True, max_window_layers=0
            ),
            64,
        ),
        (transformers.LlamaConfig(max_position_embeddings=512), 512),
    ],
)
def test_a_sequence_is_as_long_as_positions_and_the_window_of_some_layer(config, longest):
    assert longest_sequence(config) == longest


@pytest.fixture
def with_window(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[int | None], Path]:
    """A checkpoint of 49 visual tokens (5 at keep 0.1), with a prompt of 32 more."""

    def write(window: int | None) -> Path:
        copy = shutil.copytree(checkpoint("clip-mistral-hub-gqa1"), tmp_path / "checkpoint")
        config = json.loads((copy / "config.json").read_text())
        config["text_config"]["sliding_window"] = window
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    return write


def _check(model: Path, **options) -> None:
    """What an export checks before it writes a graph; the prompt takes 32 tokens."""
    check_room(make_plan(ExportOptions(str(model), **options), resolve_model(str(model))), 32)


def _options_of(fix: str) -> dict[str, object]:
    """What the words of an advice say, and nothing else stands in it."""
    match = re.fullmatch(r"--max-seq-len (\d+)( --no-baseline)?", fix)
    assert match, fix
    return {"max_seq_len": int(match[1]), **({"baseline": False} if match[2] else {})}


@pytest.mark.parametrize(
    ("window", "asked"),
    [
        (400, {}),
        (100, {}),
        (100, {"max_seq_len": 300}),
        (83, {}),
        (64, {}),
        (64, {"max_seq_len": 64}),
        (64, {"baseline": False}),
        (39, {}),
        (None, {"max_seq_len": 40}),
        (None, {"max_seq_len": 20, "baseline": False}),
        (None, {"max_seq_len": 81}),
    ],
)
def test_following_the_advice_about_the_cache_works_at_once(with_window, window, asked):
    model = with_window(window)
    with pytest.raises((OptionError, UnsupportedError)) as refused:
        _check(model, keep=0.1, **asked)
    _check(model, keep=0.1, **{**asked, **_options_of(refused.value.fix)})


@pytest.mark.parametrize(("window", "keep"), [(30, 0.1), (64, 0.9), (4, 0.1)])
def test_a_window_that_holds_no_picture_gets_no_advice(with_window, window, keep):
    with pytest.raises(UnsupportedError, match="too short for a picture") as refused:
        _check(with_window(window), keep=keep)
    assert refused.value.fix is None


def test_advice_that_the_model_cannot_follow_is_not_given(with_window):
    model = with_window(None)
    with pytest.raises(DivPruneError, match="has no room") as refused:
        _check(model, keep=1.0, max_seq_len=60)
    assert refused.value.fix == "--max-seq-len 210"


def test_an_export_follows_its_own_advice(with_window, tmp_path):
    options = {"model": str(with_window(64)), "keep": 0.1, "output": tmp_path / "engine"}
    with pytest.raises(UnsupportedError, match="sliding-window") as refused:
        export_model(ExportOptions(**options, verify=False))
    advice = _options_of(refused.value.fix)
    written = export_model(ExportOptions(**options, verify=False, **advice))
    assert written.manifest.max_seq_len == 64
    assert not written.manifest.baseline
