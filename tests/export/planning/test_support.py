"""docs/models.md and the list behind it say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.checkpoint.source import ModelSource
from divprune.export.families import model_types
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.planning.support import FAMILIES, family_of, render, selectors_of
from divprune.export.selection import IN_LLM_FLAGS, selector_names
from divprune.runtime.errors import DivPruneError, UnsupportedError


def test_every_family_is_in_the_list() -> None:
    assert sorted(each.model_type for each in FAMILIES) == sorted(model_types())


@pytest.mark.parametrize("each", FAMILIES, ids=lambda each: each.model_type)
def test_what_is_stated_is_what_the_family_says(each, root: Path) -> None:
    family = family_of(each.model_type)
    assert (family.video_token_id is not None) == each.videos
    assert (root / "tests" / "end_to_end" / each.test).is_file()


def test_the_page_is_printed_from_the_list(root: Path) -> None:
    page = (root / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == render(), "python -m divprune.export.planning.support > docs/models.md"


def test_selectors_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    checkpoint = write_tiled_checkpoint(tmp_path / "checkpoint", "internvl-qwen2-hub")
    family = family_of("internvl")
    for name in selector_names():
        keep = 0.5 if "keep" in IN_LLM_FLAGS.get(name, ("keep",)) else None
        layer = 1 if name in IN_LLM_FLAGS else None
        options = ExportOptions(
            str(checkpoint), keep=keep, selector=name, layer=layer, max_seq_len=256
        )
        try:
            make_plan(options, ModelSource(checkpoint, "made-up", None))
            works = True
        except (UnsupportedError, DivPruneError):
            works = False
        assert works == (name in selectors_of(family)), name
