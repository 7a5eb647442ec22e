"""Advice about checkpoints of LLaVA's original code: it is done, and the export asked again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from original_checkpoints import write_original

from tests.advice.covered import ORIGINAL
from tests.advice.tools import assert_gave, attempt
from tests.checkpoints import write_hub_cache

Step = Callable[[Path], object]


def name_tower(name: object) -> Step:
    def step(original: Path) -> None:
        config = original / "config.json"
        content = json.loads(config.read_text()) | {"mm_vision_tower": name}
        config.write_text(json.dumps(content))

    return step


def tower_of(original: Path) -> Path:
    return original.with_name(original.name + "-tower")


def without_processor(original: Path) -> None:
    (tower_of(original) / "preprocessor_config.json").unlink()


def again(original: Path) -> None:
    """Download the tower again, with its preprocessor_config.json."""
    shutil.copytree(original.with_name("hub"), tower_of(original), dirs_exist_ok=True)


def write_directory(original: Path) -> None:
    """Write the tower's directory to mm_vision_tower."""
    name_tower(str(tower_of(original)))(original)


CASES: dict[str, tuple[Step, Step]] = {
    # Name: (what damages it, what the advice says).
    "a tower that is nowhere": (name_tower("/no/such/tower"), write_directory),
    "a tower without its processor": (without_processor, again),
}


@pytest.fixture
def original(any_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    path = write_original(tmp_path / "original", any_checkpoint("clip-llama-hub"))
    shutil.copytree(tower_of(path), tmp_path / "hub")
    return path


def words(original: Path) -> list[str]:
    output = original.with_name("engine")
    return f"divprune-export --model {original} --keep 0.3 --output {output}".split()


@pytest.mark.parametrize("name", CASES)
def test_the_mended_checkpoint_is_taken(original: Path, name: str) -> None:
    damage, mend = CASES[name]
    damage(original)
    refused = attempt(words(original), whole=False)
    assert_gave(refused, ORIGINAL[name])
    mend(original)
    mended = attempt(words(original), whole=False)
    assert mended.code == 0, (refused.message, mended.message)


def test_the_tower_of_the_advice_is_taken(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name_tower(None)(original)
    refused = attempt(words(original), whole=False)
    assert_gave(refused, ORIGINAL["no tower"])
    advice = re.fullmatch(r'.*"mm_vision_tower": "(.+)"', refused.fix)
    assert advice is not None, refused.fix
    write_hub_cache(tmp_path / "hf", advice[1], tower_of(original), "0" * 40)
    name_tower(advice[1])(original)
    mended = attempt(words(original), whole=False)
    assert mended.code == 0, mended.message
