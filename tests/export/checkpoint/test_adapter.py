"""LoRA adapters are merged while a checkpoint is read, or refused by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.source import resolve_model
from divprune.runtime.errors import CheckpointError, UnsupportedError

QUERY = "language_model.layers.0.self_attn.q_proj"
LAYOUTS = ("clip-llama-hub", "clip-llama-v4-gqa2-full", "siglip-qwen3-v5")
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}


@pytest.fixture
def tiny(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("clip-llama-v5-llama3-rope"), tmp_path / "tiny"))


def factors(shape: tuple[int, ...], rank: int = 4, dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(rank, shape[1], generator=generator) / 8
    return [a.to(dtype), torch.randn(shape[0], rank, generator=generator).to(dtype)]


def write_adapter(
    directory: Path, tensors: dict[str, torch.Tensor], **config: Any
) -> dict[str, torch.Tensor]:
    directory.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return tensors


def shape_of(directory: Path, name: str) -> tuple[int, ...]:
    return Checkpoint.open(directory).shape(f"{name}.weight")


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.layers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_is_the_sum_whatever_the_layout_of_the_keys(
    tiny: Path, prefix: str, dtype: Any
) -> None:
    a, b = factors(shape_of(tiny, QUERY), dtype=dtype)
    before = Checkpoint.open(tiny).read(f"{QUERY}.weight")
    key = (
        QUERY.replace("language_model.layers", prefix)
        if prefix.endswith("layers")
        else prefix + QUERY
    )
    write_adapter(tiny, {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b})
    merged = Checkpoint.open(tiny).read(f"{QUERY}.weight")
    torch.testing.assert_close(merged, before + 2 * (b.float() @ a.float()))
    other = "language_model.layers.1.self_attn.q_proj.weight"
    assert Checkpoint.open(tiny).read(other).dtype == before.dtype


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 1}, 1 / 4),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(4)),
        ({"r": 64, "rank_pattern": {"q_proj": 4}}, 2),
        ({"alpha_pattern": {"q_proj": 12}}, 3),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 20, "q_proj": 12}}, 5),
        ({"alpha_pattern": {"v_proj": 12}}, 2),
        ({"alpha_pattern": {r".*\.0\..*q_proj": 12}}, 3),
        ({"alpha_pattern": None}, 2),
        ({"lora_alpha": 0.5}, 0.125),
    ],
)
def test_scale_is_that_of_the_config(tiny: Path, config: dict[str, Any], scale: float) -> None:
    a, b = factors(shape_of(tiny, QUERY))
    before = Checkpoint.open(tiny).read(f"{QUERY}.weight")
    write_adapter(tiny, {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b}, **config)
    torch.testing.assert_close(
        Checkpoint.open(tiny).read(f"{QUERY}.weight"), before + scale * (b @ a)
    )


def test_embedding_and_modules_to_save_are_merged(tiny: Path) -> None:
    plain = Checkpoint.open(tiny)
    table = plain.read("language_model.embed_tokens.weight")
    a, b = factors((table.shape[1], table.shape[0]))
    norm = torch.randn(plain.shape("language_model.norm.weight"))
    write_adapter(
        tiny,
        {
            "language_model.embed_tokens.lora_embedding_A": a,
            "language_model.embed_tokens.lora_embedding_B": b,
            "language_model.norm.modules_to_save.weight": norm,
        },
    )
    merged = Checkpoint.open(tiny)
    torch.testing.assert_close(
        merged.read("language_model.embed_tokens.weight"), table + 2 * (b @ a).T
    )
    assert torch.equal(merged.read("language_model.norm.weight"), norm)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_those_of_peft(
    checkpoint: Callable[[str], Path], tmp_path: Path, layout: str, rslora: bool
) -> None:
    peft = pytest.importorskip("peft", reason="peft is the reference")
    transformers = pytest.importorskip("transformers")
    source = checkpoint(layout)
    model = transformers.AutoModelForImageTextToText.from_pretrained(source)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        use_rslora=rslora,
        target_modules=["q_proj", "down_proj", "linear_1", "embed_tokens"],
        modules_to_save=["linear_2"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 3},
    )
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad and name != "":
            parameter.data.normal_(0, 0.1)
    directory = tmp_path / "tuned"
    shutil.copytree(source, directory)
    tuned.save_pretrained(directory)
    ours = Checkpoint.open(directory)
    canonical = Checkpoint.open(source)
    theirs = tuned.merge_and_unload().state_dict()
    assert sorted(ours.names()) == sorted(canonical.names())
    merged = {ours.family.canonical_name(key): value for key, value in theirs.items()}
    for name in merged.keys() & set(ours.names()):
        torch.testing.assert_close(ours.read(name).float(), merged[name], rtol=1e-5, atol=1e-6)
    changed = [n for n in merged if not torch.equal(merged[n], canonical.read(n).float())]
    assert {name.split(".")[-2] for name in changed} >= {"q_proj", "down_proj", "linear_1"}


# --- refused by name


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "8"},
        {"lora_alpha": None},
        {"lora_alpha": True},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"lora_alpha": 1e308},
        {"alpha_pattern": "q_proj"},
        {"alpha_pattern": ["q_proj"]},
        {"alpha_pattern": 8},
        {"alpha_pattern": {"q_proj": None}},
        {"alpha_pattern": {"q_proj": [8]}},
        {"alpha_pattern": {"[": 8}},
        {"alpha_pattern": {"(": 8}},
        {"alpha_pattern": {"(.+)+x": 8}},
        {"alpha_pattern": {".*.*.*.*.*.*.*.*x": 8}},
    ],
)
def test_a_scale_that_cannot_be_used_is_refused_by_its_name(
    tiny: Path, config: dict[str, Any]
) -> None:
    a, b = factors(shape_of(tiny, QUERY))
    write_adapter(tiny, {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b}, **config)
    with pytest.raises(CheckpointError, match=next(iter(config)) + "|lora_alpha"):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type None"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias=all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_its_name(
    tiny: Path, config: dict[str, Any], named: str
) -> None:
    a, b = factors(shape_of(tiny, QUERY))
    write_adapter(tiny, {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b}, **config)
    with pytest.raises(UnsupportedError, match=named) as caught:
        Checkpoint.open(tiny)
    assert "merge_and_unload" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), "B missing"),
        (lambda t: t.update({f"{QUERY}.lora_B.weight": torch.zeros(64, 3)}), r"B \[64, 3\]"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 9)}), "does not fit"),
        (lambda t: t.update({"no.such.lora_A.weight": torch.zeros(4, 9)}), "B missing"),
        (lambda t: t.update({"no.such.weight": torch.zeros(4)}), "no such tensor"),
        (lambda t: t.update({f"{QUERY}.lora_C.weight": torch.zeros(4)}), "lora_C"),
        (lambda t: t.update({f"{QUERY}.lora_magnitude_vector": torch.zeros(4)}), "magnitude"),
        (lambda t: t.update({"language_model.norm.weight": torch.zeros(3)}), "does not fit"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tiny: Path, change: Callable[[dict[str, torch.Tensor]], object], named: str
) -> None:
    a, b = factors(shape_of(tiny, QUERY))
    tensors = {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b}
    change(tensors)
    write_adapter(tiny, tensors)
    with pytest.raises((CheckpointError, UnsupportedError), match=named):
        Checkpoint.open(tiny)


def test_adapter_without_weights_is_refused(tiny: Path) -> None:
    (tiny / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="download the adapter again"):
        Checkpoint.open(tiny)


def test_pickled_adapter_is_merged_like_any_other(tiny: Path) -> None:
    a, b = factors(shape_of(tiny, QUERY))
    write_adapter(tiny, {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b})
    name = f"{QUERY}.weight"
    merged = Checkpoint.open(tiny).read(name)
    torch.save(load_file(tiny / "adapter_model.safetensors"), tiny / "adapter_model.bin")
    (tiny / "adapter_model.safetensors").unlink()
    assert torch.equal(Checkpoint.open(tiny).read(name), merged)


# --- without its model


@pytest.fixture
def alone(tiny: Path, tmp_path: Path) -> Path:
    """An adapter as trainers save it, with the tokenizer, naming ``tiny``."""
    a, b = factors(shape_of(tiny, QUERY))
    directory = tmp_path / "my-adapter"
    write_adapter(
        directory,
        {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b},
        base_model_name_or_path=str(tiny),
    )
    shutil.copy(tiny / "tokenizer.json", directory)
    return directory


@pytest.mark.parametrize("with_config", [True, False])
def test_adapter_alone_is_put_on_the_model_that_it_names(
    alone: Path, tiny: Path, with_config: bool
) -> None:
    if with_config:
        broken = {**json.loads((tiny / "config.json").read_text()), "quantization_config": {"a": 1}}
        (alone / "config.json").write_text(json.dumps(broken))
    (alone / "tokenizer_config.json").write_text('{"of": "the adapter"}')
    source = resolve_model(str(alone))
    assert source.model_id == str(alone)
    assert json.loads((source.path / "tokenizer_config.json").read_text()) == {"of": "the adapter"}
    name = f"{QUERY}.weight"
    merged, plain = Checkpoint.open(source.path).read(name), Checkpoint.open(tiny).read(name)
    tensors = load_file(alone / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{QUERY}.lora_{letter}.weight"] for letter in "AB")
    torch.testing.assert_close(merged, plain + 2 * (b @ a))
    assert not any(path.is_symlink() for path in (*tiny.iterdir(), *alone.iterdir()))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "does not say what it was trained on"),
        ("", "does not say what it was trained on"),
        (3, "does not say what it was trained on"),
        ("/no/such/directory", "its model is not here"),
        ("my-adapter", "another adapter"),
    ],
)
def test_adapter_without_its_model_is_refused(
    alone: Path, base: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(alone.parent)
    (alone / "adapter_config.json").write_text(
        json.dumps({**CONFIG, "base_model_name_or_path": base})
    )
    with pytest.raises(CheckpointError, match=said):
        resolve_model(str(alone))


# --- what else trainers put around a key


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"base_model.model.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: key.replace("layers.0.", "layers.0._orig_mod."),
        lambda key: f"module.base_model.model.{key}",
        lambda key: f"module.module.{key}",
        lambda key: f"_forward_module.{key}",
        lambda key: f"_fsdp_wrapped_module.{key}",
        lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda key: key.replace("mlp.", "mlp._checkpoint_wrapped_module."),
        lambda key: f"module.{key}" if "layers.1." in key else key,
    ],
)
def test_prefixes_of_trainers_are_taken_off(tiny: Path, wrap: Callable[[str], str]) -> None:
    names = Checkpoint.open(tiny).names()
    file = tiny / "model.safetensors"
    save_file({wrap(key): value for key, value in load_file(file).items()}, file)
    assert Checkpoint.open(tiny).names() == names
    Checkpoint.open(tiny).validate()
