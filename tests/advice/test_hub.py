"""Advice about a model hub, which is one on this machine: it is done, and the tool asked again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from divprune.configs import load_preset
from tests.advice.covered import HUB
from tests.advice.tools import assert_gave, attempt, follow, refused
from tests.checkpoints import write_hub_cache
from tests.hub import COMMIT, Hub, point_at, run_hf, serve_hub

GOOD = "org/good"


@pytest.fixture
def source(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("clip-llama-hub")


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has one model, and nothing downloaded from it yet."""
    monkeypatch.chdir(tmp_path)
    with serve_hub(tmp_path / "hf", monkeypatch) as running:
        running.repositories[GOOD] = source
        yield running


def export(model: str) -> list[str]:
    return f"divprune-export --model {model} --keep 0.1 --output engine".split()


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9")


def switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("hinder", [no_network, switched_off])
@pytest.mark.parametrize(
    "lost", ["*", "config.json", "model.safetensors.index.json", "model-00001*", "model*"]
)
def test_the_download_brings_what_the_cache_lacks(hub, source, tmp_path, monkeypatch, hinder, lost):
    snapshot = write_hub_cache(tmp_path / "hf", GOOD, source, COMMIT)
    for file in snapshot.glob(lost):
        file.unlink()
    if lost == "*":
        shutil.rmtree(tmp_path / "hf")
    with monkeypatch.context() as hindered:
        hinder(hindered)
        refusal = attempt(export(GOOD), whole=False)
    name = "nothing in the cache" if lost == "*" else "a copy that is not whole"
    assert_gave(refusal, HUB[name])
    if hinder is switched_off:
        hinder(monkeypatch)
    assert run_hf(shlex.split(refusal.fix), monkeypatch) == 0
    switched_off(monkeypatch)
    mended = attempt(export(GOOD), whole=False)
    assert mended.code == 0, (refusal.message, mended.message)


def test_a_download_that_the_hub_broke_off_is_made_again(hub, monkeypatch):
    hub.unwell = True
    refusal = attempt(export(GOOD), whole=False)
    assert_gave(refusal, HUB["a hub that fails"])
    assert "could not be downloaded" in refusal.message
    hub.unwell = False
    assert run_hf(shlex.split(refusal.fix), monkeypatch) == 0
    switched_off(monkeypatch)
    assert attempt(export(GOOD), whole=False).code == 0


def test_a_conversion_is_left_for_the_model_that_its_page_names(hub, tmp_path):
    other = hub.repositories["org/good-GGUF"] = tmp_path / "other"
    other.mkdir()
    (other / "good.Q4_K_M.gguf").write_bytes(b"GGUF")
    (other / "README.md").write_text(f"---\nbase_model: {GOOD}\n---\n")
    refusal = attempt(export("org/good-GGUF"), whole=False)
    assert_gave(refusal, HUB["a repository of another kind"])
    with urllib.request.urlopen(re.search(r"http://\S+", refusal.fix)[0]) as page:
        named = re.search(r"base_model: (\S+)", page.read().decode())[1]
    assert attempt(export(named), whole=False).code == 0


@pytest.mark.parametrize("status", [401, 403])
def test_who_logs_in_gets_a_gated_model(hub, monkeypatch, status):
    hub.refusals[GOOD] = status, "GatedRepo"
    refusal = attempt(export(GOOD), whole=False)
    assert_gave(refusal, HUB["a gated model"])
    terms, command = re.fullmatch(r"accept the terms at (\S+), then: (.*)", refusal.fix).groups()
    assert terms == f"{hub.url}/{GOOD}"
    assert run_hf(command.split(), monkeypatch) == 0
    assert attempt(export(GOOD), whole=False).code == 0


def test_who_logs_in_gets_a_private_model(hub, monkeypatch):
    hub.refusals[GOOD] = 401, "RepoNotFound"
    refusal = attempt(export(GOOD), whole=False)
    assert_gave(refusal, HUB["a model that the hub does not show"])
    assert run_hf(refusal.fix.partition("if it is private: ")[2].split(), monkeypatch) == 0
    assert attempt(export(GOOD), whole=False).code == 0


def test_a_misspelt_id_is_right_where_its_page_opens(hub):
    refusal = attempt(export("org/goood"), whole=False)
    assert_gave(refusal, HUB["a model that the hub does not show"])
    page = re.search(r"check the name at (http://[^;]+);", refusal.fix)[1]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(page)
    with urllib.request.urlopen(page.replace("goood", "good")):
        assert attempt(export(GOOD), whole=False).code == 0


def test_the_preset_that_a_forbidden_id_is_like_is_taken(hub, source):
    hub.repositories[load_preset("llava-1.5-7b").hub_id] = source
    words = export("llava-hf/llava--1.5-7b")
    refusal = attempt(words, whole=False)
    assert_gave(refusal, HUB["an id that no hub allows"])
    assert attempt(follow(words, refusal), whole=False).code == 0


@pytest.mark.parametrize("name", ["lava-1.5-7b", "LLaVA-1.5-7B", "llava-1.5-7", "llava-v1.5-7b"])
def test_the_preset_that_was_meant_is_loaded(name):
    refusal = refused(lambda: load_preset(name))
    assert_gave(refusal, HUB["a misspelt preset"])
    assert load_preset(refusal.fix.split()[0]).name == "llava-1.5-7b"


@pytest.mark.parametrize(
    "variable", ["HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
)
def test_a_plan_reads_what_was_downloaded(hub, tmp_path, monkeypatch, variable):
    for other in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/else")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if variable == "HF_HOME" else "")
    refusal = attempt(["divprune-plan", GOOD])
    assert_gave(refusal, HUB["a plan of what is not in the cache"])
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    tools |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(refusal.fix, shell=True, check=True, capture_output=True, env=os.environ | tools)
    assert attempt(["divprune-plan", GOOD]).code == 0
    shutil.rmtree(tmp_path / "else")
    assert attempt(["divprune-plan", GOOD]).code == 2
