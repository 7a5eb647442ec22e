"""``divprune-export`` as a user meets it: what is refused, how, and that nothing is left."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from divprune.export.cli import main
from divprune.runtime.directory.engine_directory import EngineDirectory

CHECKPOINT = "clip-llama-v4-gqa2-full"  # one file of weights


@pytest.fixture
def tiny(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to be broken."""
    return Path(shutil.copytree(checkpoint(CHECKPOINT), tmp_path / "tiny"))


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command in an empty directory, where it must leave nothing; its message."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: object, keep: object = 0.1) -> str:
        capsys.readouterr()  # what making the checkpoint has printed
        code = main([*map(str, arguments), "--keep", str(keep)])
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert list(here.iterdir()) == []
        return err

    return run


def change_config(checkpoint: Path, part: str | None = None, **fields: Any) -> None:
    file = checkpoint / "config.json"
    content = json.loads(file.read_text())
    (content if part is None else content[part]).update(fields)
    file.write_text(json.dumps(content))


def change_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# Options


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("0", "--keep must be above 0"),
        ("-0.1", "--keep must be above 0"),
        ("1.5", "--keep must not be above 1"),
        ("10", "--keep 0.1 if 10 % was meant"),
        ("nan", "--keep is not a number"),
        ("inf", "--keep is not a number"),
    ],
)
def test_a_bad_keep_is_refused_before_the_model_is_looked_for(
    refused: Callable[..., str], keep: str, message: str
) -> None:
    assert message in refused("--model", "no/such/model", keep=keep)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--target", "coreml", "--target is not known"),
        ("--dtype", "int3", "--dtype is not known"),
        ("--selector", "randomly", "--selector is not known"),
        ("--seed", "-1", "--seed cannot be used"),
        ("--positions", "shuffled", "--positions is not known"),
        ("--max-seq-len", "1", "--max-seq-len is too small"),
        ("--max-weight-mib", "0", "--max-weight-mib is too small"),
    ],
)
def test_a_bad_option_is_refused_before_the_model_is_looked_for(
    refused: Callable[..., str], option: str, value: str, message: str
) -> None:
    err = refused("--model", "no/such/model", option, value)
    assert message in err
    assert any(words in err for words in ("one of", "at least", "0 to 2^63 - 1"))


def test_an_unknown_selector_is_refused_with_all_that_there_are(
    refused: Callable[..., str],
) -> None:
    err = refused("--model", "no/such/model", "--selector", "scop")
    assert "divprune, scope, prumerge, visionzip, random, uniform, downsample" in err


def test_a_selector_that_needs_a_class_token_is_refused_on_a_tower_without_one(
    refused: Callable[..., str], checkpoint: Callable[[str], Path]
) -> None:
    err = refused("--model", checkpoint("siglip-qwen2-hub"), "--selector", "prumerge")
    assert "--selector prumerge needs a signal that this vision tower does not give" in err
    assert "expected: reader_cls_attention: a tower with a class token (CLIP)" in err
    assert "found:    siglip_vision_model" in err


def test_help_lists_the_selectors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "divprune, scope, prumerge, visionzip, random, uniform, downsample" in words


@pytest.mark.parametrize("arguments", [[], ["--keep", "0.1"], ["--model", "m", "--keep", "ten"]])
def test_a_command_line_that_cannot_be_parsed_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "divprune-export --help" in err


def test_max_seq_len_above_the_models_is_refused_with_its_limit(
    refused: Callable[..., str], tiny: Path
) -> None:
    err = refused("--model", tiny, "--max-seq-len", 513)
    assert "--max-seq-len is more than the model can" in err
    assert "at most 512 (max_position_embeddings)" in err


def test_max_seq_len_that_no_picture_fits_into_is_refused(
    refused: Callable[..., str], tiny: Path
) -> None:
    err = refused("--model", tiny, "--max-seq-len", 20, "--no-baseline")
    assert "no room for a picture and an answer" in err
    assert "--max-seq-len of at least" in err


def test_max_seq_len_that_only_the_baseline_does_not_fit_into_names_a_length_that_fits(
    refused: Callable[..., str], tiny: Path
) -> None:
    err = refused("--model", tiny, "--max-seq-len", 64)
    assert "at keep 1.0, the baseline" in err
    assert "fix:      --max-seq-len 211" in err


# Models


def test_a_model_that_is_nowhere_is_refused(refused: Callable[..., str]) -> None:
    assert "not a preset, a directory or a hub id" in refused("--model", "no/such/model")


def test_imports_are_frozen_and_the_collector_is_on_again(refused: Callable[..., str]) -> None:
    gc.unfreeze()
    refused("--model", "no/such/directory")
    assert gc.get_freeze_count() > 100_000
    assert gc.isenabled()


def test_a_hub_model_that_cannot_be_downloaded_is_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "hf download nobody/nothing" in refused("--model", "nobody/nothing")


def test_a_revision_of_a_directory_is_refused(refused: Callable[..., str], tiny: Path) -> None:
    assert "--revision" in refused("--model", tiny, "--revision", "main")


def no_config(tiny: Path) -> None:
    (tiny / "config.json").unlink()


def no_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()


def renamed_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")


def truncated_weights(tiny: Path) -> None:
    content = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(content[:-100])


def missing_tensor(tiny: Path) -> None:
    change_tensors(tiny, lambda tensors: tensors.pop("model.language_model.norm.weight"))


def unknown_tensor(tiny: Path) -> None:
    change_tensors(tiny, lambda tensors: tensors.update({"model.adapter": torch.ones(2, 3)}))


def reshaped_tensor(tiny: Path) -> None:
    change_tensors(tiny, lambda tensors: tensors.update({"lm_head.weight": torch.ones(479, 64)}))


def other_architecture(tiny: Path) -> None:
    change_config(tiny, architectures=["PaliGemmaForConditionalGeneration"], model_type="paligemma")


def quantised(tiny: Path) -> None:
    change_config(tiny, quantization_config={"quant_method": "awq", "bits": 4})


def other_text_model(tiny: Path) -> None:
    change_config(tiny, "text_config", model_type="gemma")


def text_model_without_positions(tiny: Path) -> None:
    change_config(tiny, text_config={"model_type": "bloom", "tie_word_embeddings": False})


def other_tower(tiny: Path) -> None:
    change_config(tiny, "vision_config", model_type="pixtral")


def other_activation(tiny: Path) -> None:
    change_config(tiny, "text_config", hidden_act="gelu")


def rope_by_length(tiny: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    change_config(tiny, "text_config", rope_scaling={"rope_type": "longrope", **factors})


def sliding_window(tiny: Path) -> None:
    fields = {"model_type": "mistral", "sliding_window": 64}
    change_config(tiny, "text_config", **fields)


def smaller_pictures(tiny: Path) -> None:
    file = tiny / "preprocessor_config.json"
    content = json.loads(file.read_text())
    content["crop_size"] = {"height": 48, "width": 48}
    file.write_text(json.dumps(content))


def no_picture_facts(tiny: Path) -> None:
    (tiny / "preprocessor_config.json").unlink()


def no_template(tiny: Path) -> None:
    (tiny / "chat_template.jinja").unlink()


def broken_template(tiny: Path) -> None:
    (tiny / "chat_template.jinja").write_text("{% for message in messages %}")


def blind_template(tiny: Path) -> None:
    (tiny / "chat_template.jinja").write_text("USER: {{ messages[0].content[1].text }}")


def broken_tokenizer(tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text('{"model": ')


def other_tokenizer(tiny: Path) -> None:
    change_config(tiny, image_token_index=479)


def no_eos(tiny: Path) -> None:
    (tiny / "generation_config.json").write_text('{"eos_token_id": "</s>"}')


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (no_config, ["is not a checkpoint directory", "config.json"]),
        (no_weights, ["has no weights"]),
        (renamed_weights, ["pytorch_model.bin is not a whole file of weights"]),
        (truncated_weights, ["model.safetensors is not a whole safetensors file"]),
        (missing_tensor, ["1 missing", "missing: language_model.norm.weight [64]"]),
        (unknown_tensor, ["1 unknown", "unknown: adapter [2, 3]"]),
        (reshaped_tensor, ["1 of another shape", "expected [480, 64], found [479, 64]"]),
        (other_architecture, ["PaliGemmaForConditionalGeneration is not supported"]),
        (quantised, ["quantised (awq)"]),
        (other_text_model, ["the text model is of a kind", "qwen3", "gemma"]),
        (text_model_without_positions, ["the text model is of a kind", "bloom"]),
        (other_tower, ["the vision tower is of a kind", "clip_vision_model", "pixtral"]),
        (other_activation, ["hidden_act", "gelu"]),
        (rope_by_length, ["rope scaling", "longrope"]),
        (sliding_window, ["sliding-window", "found:    64", "--max-seq-len 64"]),
        (smaller_pictures, ["image processor and vision tower", "(56, 56)", "(48, 48)"]),
        (no_picture_facts, ["how pictures are prepared", "preprocessor_config.json"]),
        (no_template, ["no chat template", "chat_template.jinja"]),
        (broken_template, ["chat template is not valid jinja", "line 1"]),
        (blind_template, ["does not write one image placeholder '<image>'"]),
        (broken_tokenizer, ["no tokenizer that can be used", "tokenizer.json"]),
        (other_tokenizer, ["image_token_index", "470 (<image>)", "set image_token_index to 470"]),
        (no_eos, ["does not say which token ends an answer", '"</s>"']),
    ],
)
def test_a_checkpoint_that_cannot_be_exported_is_refused(
    refused: Callable[..., str], tiny: Path, damage: Callable[[Path], None], messages: list[str]
) -> None:
    damage(tiny)
    err = refused("--model", tiny)
    for message in messages:
        assert message in err


@pytest.mark.parametrize(
    ("name", "value", "messages"),
    [
        # One tensor that is written into the graph, one that is written beside it.
        ("multi_modal_projector.linear_2.bias", float("nan"), ["NaN or Inf"]),
        (
            "vision_tower.embeddings.patch_embedding.weight",
            1e5,
            ["overflows fp16", "bfloat16", "--dtype fp32"],
        ),
    ],
)
def test_a_weight_that_cannot_be_written_ends_the_export_halfway(
    refused: Callable[..., str], tiny: Path, name: str, value: float, messages: list[str]
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        key = "model." + name.replace("vision_tower.", "vision_tower.vision_model.")
        tensors[key] = tensors[key].to(torch.bfloat16)
        tensors[key].view(-1)[3] = value

    change_tensors(tiny, spoil)
    err = refused("--model", tiny)
    for message in (name, *messages):
        assert message in err


# Outputs


def test_an_existing_output_is_refused_without_force(
    refused: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    err = refused("--model", tiny, "--output", tmp_path / "mine")
    assert "exists" in err
    assert "--force" in err


def test_force_does_not_delete_somebody_elses_directory(
    refused: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    err = refused("--model", tiny, "--output", tmp_path / "mine", "--force")
    assert "is not an engine directory: --force does not delete it" in err
    assert "thesis.tex" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_an_existing_engine_directory_is_as_before_when_its_replacement_fails(
    refused: Callable[..., str], tiny: Path, engine_dir: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    no_template(tiny)
    refused("--model", tiny, "--output", output, "--force")
    assert EngineDirectory.open(output, verify="full").manifest.verified
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# What works


def test_an_export_with_defaults_lands_in_the_current_directory_and_can_be_replaced(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--model", str(checkpoint(CHECKPOINT)), "--keep", "0.1", "--no-verify"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "5 of 50 kept, 90.0 % removed" in out
    assert "skipped (--no-verify)" in out
    assert err == ""
    output = tmp_path / f"{CHECKPOINT}-keep0.1"
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    manifest = EngineDirectory.open(output, verify="full").manifest
    assert (manifest.dtype, manifest.verified, manifest.baseline) == ("fp16", False, True)

    assert main([*command, "--force", "--no-baseline", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    manifest = EngineDirectory.open(output, verify="full").manifest
    assert (manifest.verified, manifest.baseline) == (False, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--selector", "fastv", "--layer", "3"], "expected: 1 to 2: the model has 3 layers"),
        (["--selector", "vtw"], "found:    15, the default"),
        (["--layer", "1"], "--selector divprune takes no --layer"),
        (["--selector", "greedyprune", "--tau", "-1"], "--tau is no cosine"),
    ],
)
def test_a_selector_inside_the_llm_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], tiny: Path, arguments: list[str], message: str
) -> None:
    output = tiny.parent / "refused"
    keep = [] if "vtw" in arguments else ["--keep", "0.1"]
    assert main(["--model", str(tiny), "--output", str(output), *keep, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
