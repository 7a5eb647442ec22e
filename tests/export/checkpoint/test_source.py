"""Finding a checkpoint: presets, directories, the hub's cache, and a hub that says no."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from divprune.configs import list_presets
from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.files import weight_files
from divprune.export.checkpoint.source import resolve_model
from divprune.runtime.errors import CheckpointError, OptionError
from divprune.runtime.reports.plan.source import find_model
from tests.checkpoints import write_hub_cache, write_tiny_checkpoint
from tests.hub import COMMIT, point_at, run_hf, serve_hub

HUB_ID = "llava-hf/llava-1.5-7b-hf"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint; tests copy what they change."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", "clip-llama-hub")


@pytest.fixture
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HF_HOME that the hub library, offline, looks into."""
    home = tmp_path / "hf"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home


# Presets and the hub's cache


def test_preset_is_found_under_its_hub_id(hf_home: Path, tiny: Path) -> None:
    snapshot = write_hub_cache(hf_home, HUB_ID, tiny, COMMIT)
    source = resolve_model("llava-1.5-7b")
    assert (source.path, source.model_id, source.revision) == (snapshot, HUB_ID, COMMIT)
    Checkpoint.open(source.path).validate()


def test_revision_may_be_a_branch_or_a_commit(hf_home: Path, tiny: Path) -> None:
    write_hub_cache(hf_home, HUB_ID, tiny, COMMIT)
    write_hub_cache(hf_home, HUB_ID, tiny, OTHER_COMMIT, branch="float32")
    assert resolve_model(HUB_ID).revision == COMMIT
    assert resolve_model(HUB_ID, "float32").revision == OTHER_COMMIT
    assert resolve_model(HUB_ID, OTHER_COMMIT).path.name == OTHER_COMMIT


def test_environment_alone_selects_an_offline_cache(tmp_path: Path, tiny: Path) -> None:
    write_hub_cache(tmp_path, HUB_ID, tiny, COMMIT)
    code = (
        "from divprune.export.checkpoint.source import resolve_model\n"
        "print(resolve_model('llava-1.5-7b').revision)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == COMMIT


def test_offline_and_not_cached_gives_the_download_command(hf_home: Path) -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE") as caught:
        resolve_model(HUB_ID, "float32")
    assert caught.value.fix == f"HF_HUB_OFFLINE=0 hf download {HUB_ID} --revision float32"


def test_cached_snapshot_without_config_is_refused(hf_home: Path, tiny: Path) -> None:
    snapshot = write_hub_cache(hf_home, HUB_ID, tiny, COMMIT)
    (snapshot / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve_model(HUB_ID)


def test_cached_snapshot_with_a_missing_shard_is_refused(hf_home: Path, tiny: Path) -> None:
    snapshot = write_hub_cache(hf_home, HUB_ID, tiny, COMMIT)
    shard = min(snapshot.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        resolve_model(HUB_ID)


def test_repository_without_safetensors_is_read_from_its_pickles(hf_home: Path, tiny: Path) -> None:
    snapshot = write_hub_cache(hf_home, HUB_ID, tiny, COMMIT)
    pickle_weights(snapshot)
    Checkpoint.open(resolve_model(HUB_ID).path).validate()


def pickle_weights(checkpoint: Path) -> None:
    """The weights of a checkpoint as one ``pytorch_model.bin``."""
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.glob("model*.safetensors"):
        tensors |= load_file(file)
    for file in checkpoint.glob("model*"):
        file.unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")


# Directories


def test_the_directory_at_hand_is_named_by_its_path(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    source = resolve_model(".")
    assert (source.path, source.model_id, source.revision) == (Path(), str(tiny), None)


@pytest.mark.parametrize("given", ["tiny", "./tiny", "org/name", "../here/tiny", "~/tiny", "{}"])
def test_a_directory_keeps_the_name_that_it_was_given_and_is_found_by_it_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    here = tmp_path / "here"
    for name in ("tiny", "org/name"):
        shutil.copytree(tiny, here / name)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    given = given.format(here / "tiny")
    source = resolve_model(given)
    assert source.model_id.removeprefix("./") == given.removeprefix("./")
    assert source.model_id.startswith(("./", "../", "~/", "/"))
    assert resolve_model(source.model_id).path.samefile(source.path)


@pytest.mark.parametrize("kind", ["config.json", "adapter_config.json", "manifest.json"])
def test_a_preset_and_a_directory_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "llava-1.5-7b").mkdir()
    (tmp_path / "llava-1.5-7b" / kind).write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"(?s)preset, and.*--model \./llava-1\.5-7b.*llava-hf/"):
        resolve_model("llava-1.5-7b")
    with pytest.raises(OptionError, match=r"(?s)preset, and.*divprune-plan \./llava-1\.5-7b"):
        find_model("llava-1.5-7b")


def test_another_directory_called_like_a_preset_is_nothing_to_tell_it_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llava-1.5-7b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("llava-1.5-7b").keep is not None


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"m\xff")
    odd.mkdir()
    with pytest.raises(OptionError, match=r"(?s)UTF-8.*rename it"):
        resolve_model(str(odd))


def test_tilde_means_the_home_directory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny, tmp_path / "model")
    assert resolve_model("~/model").path == tmp_path / "model"


def test_directory_wins_over_a_hub_id(
    hf_home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "org" / "name")
    assert resolve_model("org/name").revision is None


def test_revision_of_a_directory_is_refused(tiny: Path) -> None:
    with pytest.raises(OptionError, match="--revision"):
        resolve_model(str(tiny), "main")


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        resolve_model(str(tmp_path))


def test_file_is_not_a_checkpoint(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        resolve_model(str(tiny / "config.json"))


def test_pickled_weights_are_those_that_were_pickled(tiny: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny, tmp_path / "old")
    pickle_weights(path)
    pickled, plain = (Checkpoint.open(resolve_model(str(each)).path) for each in (path, tiny))
    assert pickled.names() == plain.names()
    for name in plain.names():
        assert torch.equal(pickled.read(name), plain.read(name))


# What is none of these


@pytest.mark.parametrize("model", ["llava-1.5-7", "./llava-1.5-7b", "a/b/c", "org/", ""])
def test_unknown_name_lists_the_presets_and_the_form_of_a_hub_id(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as caught:
        resolve_model(model)
    message = str(caught.value)
    assert "org/name" in message
    assert all(name in message for name in list_presets())


@pytest.mark.parametrize(
    "model", ["x" * 300, "a/" + "x" * 300, "~nobody-here/x", "a\0b", "./\ud800"]
)
def test_a_name_that_no_file_can_have_is_refused(model: str) -> None:
    for find in (resolve_model, find_model):
        with pytest.raises((OptionError, CheckpointError)):
            find(model)


@pytest.mark.parametrize("shard", ["x" * 300, "a\0b", "\ud800", "", "..", "no-such-file"])
def test_an_index_with_a_name_that_no_file_can_have_is_refused(shard: str, tmp_path: Path) -> None:
    content = json.dumps({"weight_map": {"a": shard}})
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError):
        weight_files(tmp_path)


def test_near_miss_of_a_preset_is_guessed() -> None:
    with pytest.raises(OptionError) as caught:
        resolve_model("lava-1.5-13b")
    assert caught.value.fix == "--model llava-1.5-13b if that was meant"


def test_single_file_wins_over_an_index(tiny: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny, tmp_path / "both")
    (path / "model.safetensors").write_bytes(b"")
    assert weight_files(path) == (path / "model.safetensors",)


def test_index_names_each_shard_once(tiny: Path) -> None:
    assert len(weight_files(tiny)) == len(list(tiny.glob("model-*.safetensors")))


# A hub that answers, on this machine


@pytest.fixture
def hub(
    hf_home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A hub with one good repository; yields the directory it serves."""
    served = shutil.copytree(tiny, tmp_path / "served")
    with serve_hub(hf_home, monkeypatch) as server:
        server.repositories["org/good"] = served
        server.refusals = {"org/gone": (404, "RepoNotFound"), "org/gated": (403, "GatedRepo")}
        yield served


def test_download_takes_pickles_only_without_safetensors(hub: Path) -> None:
    pickle_weights(hub)
    source = resolve_model("org/good")
    assert (source.path / "pytorch_model.bin").is_file()
    Checkpoint.open(source.path).validate()


def test_download_takes_what_is_needed_and_nothing_else(hub: Path) -> None:
    wanted = {file.name for file in hub.iterdir()}
    for name in ("pytorch_model.bin", "README.md", "consolidated.safetensors", "onnx/config.json"):
        (hub / name).parent.mkdir(exist_ok=True)
        (hub / name).write_bytes(b"not needed")
    source = resolve_model("org/good")
    assert source.revision == COMMIT
    assert {file.name for file in source.path.iterdir()} == wanted
    Checkpoint.open(source.path).validate()


def test_repository_without_weights_is_told_from_a_copy_that_is_not_whole(hub: Path) -> None:
    for file in hub.glob("model*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint.*has no weights") as caught:
        resolve_model("org/good")
    assert "org/good names it" in str(caught.value.fix)


@pytest.mark.parametrize(
    "repo, what, fix",
    [
        ("org/gone", "the hub has no org/gone", "hf auth login"),
        ("org/gated", "access to org/gated is gated", "accept the terms"),
    ],
)
def test_refusal_of_the_hub_gives_reason_and_remedy(
    repo: str, what: str, fix: str, hub: Path
) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        resolve_model(repo)
    assert fix in str(caught.value.fix)


def test_unknown_revision_is_named(hub: Path) -> None:
    with pytest.raises(CheckpointError, match="org/good has no revision nonesuch"):
        resolve_model("org/good", "nonesuch")


def test_hub_out_of_reach_gives_the_download_command(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="out of reach") as caught:
        resolve_model("org/good")
    assert caught.value.fix == "hf download org/good"


def test_id_that_the_hub_does_not_allow_is_an_option_error(hf_home: Path) -> None:
    with pytest.raises(OptionError, match="org/na--me"):
        resolve_model("org/na--me")


@pytest.mark.parametrize("offline", [True, False])
def test_the_download_command_of_the_error_brings_the_model(
    hub: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    constants = huggingface_hub.constants
    reachable = constants.ENDPOINT
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CheckpointError) as caught:
        resolve_model("org/good")
    point_at(monkeypatch, reachable)
    words = shlex.split(str(caught.value.fix))
    assert (words[0] == "HF_HUB_OFFLINE=0") == offline
    assert run_hf(words, monkeypatch) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Checkpoint.open(resolve_model("org/good").path).validate()


def test_the_preset_that_was_meant_is_taken(hf_home: Path, tiny: Path) -> None:
    write_hub_cache(hf_home, HUB_ID, tiny, COMMIT)
    with pytest.raises(OptionError) as caught:
        resolve_model("lava-1.5-7b")
    option, name, *_ = shlex.split(str(caught.value.fix))
    assert option == "--model"
    assert resolve_model(name).revision == COMMIT


def test_a_revision_that_the_hub_has_is_taken(hub: Path) -> None:
    with pytest.raises(CheckpointError, match="no revision") as caught:
        resolve_model("org/good", "nonesuch")
    assert str(caught.value.fix).startswith("take a branch, tag or commit")
    assert resolve_model("org/good", "main").revision == COMMIT
