"""AWQ and GPTQ checkpoints: their numbers become the graph's, whatever is wrong is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.source import resolve_model
from divprune.export.cli import main
from divprune.export.export_model import export_model
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.runtime.backends import load_backend
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import QuantInfo
from divprune.runtime.errors import CheckpointError
from tests.export.checkpoint.quantization.packed_checkpoints import change_config, write_packed

NAME = "clip-llama-v5-layers-biases"
LAYER = "language_model.layers.0.mlp.down_proj"


@pytest.fixture
def pair(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def write(form: str, *, symmetric: bool = False) -> tuple[Path, Path]:
        packed, plain = tmp_path / "packed", tmp_path / "plain"
        write_packed(checkpoint(NAME), packed, plain, form, symmetric=symmetric)
        return packed, plain

    return write


@pytest.mark.parametrize("form", ["awq", "gptq", "gptq_v2"])
def test_packed_weights_are_those_they_were_made_from(
    pair: Callable[..., tuple[Path, Path]], form: str
) -> None:
    packed, plain = (Checkpoint.open(path) for path in pair(form))
    packed.validate()
    assert packed.names() == plain.names()
    assert len(packed.packed_layers()) == 3 * 7
    assert max(layer.max_zero for layer in packed.packed_layers()) == (16 if form == "gptq" else 15)
    for name in plain.names():
        assert packed.shape(name) == plain.shape(name)
        torch.testing.assert_close(packed.read(name), plain.read(name), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_bias_that_the_model_has_not_may_only_be_zeros(
    checkpoint: Callable[[str], Path], tmp_path: Path, value: float
) -> None:
    """AutoGPTQ gives every packed layer one."""
    packed = tmp_path / "packed"
    write_packed(checkpoint("clip-llama-hub"), packed, tmp_path / "plain", "gptq")
    file = packed / "model.safetensors"
    tensors = load_file(file)
    (name,) = (key for key in tensors if key.endswith("layers.1.mlp.up_proj.bias"))
    tensors[name][3] = value
    save_file(tensors, file)
    if not value:
        Checkpoint.open(packed).validate()
        return
    with pytest.raises(CheckpointError, match=r"unknown: .*layers\.1\.mlp\.up_proj\.bias \[96\]"):
        Checkpoint.open(packed).validate()


def logits(directory: Path) -> np.ndarray:
    opened = EngineDirectory.open(directory)
    backend = load_backend("onnxruntime", opened, device="cpu", threads=1)
    backend.reset()
    embeds = np.random.default_rng(6).standard_normal((1, 9, 64)).astype(np.float32)
    found = backend.forward(embeds, np.arange(9)[None])
    return np.asarray(found if isinstance(found, np.ndarray) else found.numpy())


@pytest.mark.parametrize(
    ("form", "target", "symmetric"),
    [
        ("awq", "onnxruntime", False),
        ("gptq", "tensorrt", False),
        ("gptq_v2", "jetpack6", False),
        ("gptq", "onnxruntime", True),
    ],
)
def test_logits_are_those_of_the_dequantised_model(
    pair: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    form: str,
    target: str,
    symmetric: bool,
) -> None:
    packed, plain = pair(form, symmetric=symmetric)
    for source in (packed, plain):
        output = tmp_path / f"engine-{source.name}"
        options = ExportOptions(
            model=str(source), keep=0.1, output=output, target=target, dtype="fp32"
        )
        errors = export_model(options).verify_errors
        assert errors is not None
        assert max(errors["blocks"], errors["head"]) < 1e-5
    found, expected = (logits(tmp_path / f"engine-{name}") for name in ("packed", "plain"))
    # ONNX Runtime rounds the activations of 4-bit layers to 8 bits.
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    info = EngineDirectory.open(tmp_path / "engine-packed").manifest.quant
    kind = "sym" if symmetric else "asym"
    assert info == QuantInfo(f"int4-g32-{kind}", form.removesuffix("_v2"), 4, 32, symmetric)


def test_packed_layers_are_rounded_again_for_a_prefill_graph(
    pair: Callable[..., tuple[Path, Path]],
) -> None:
    packed, _ = pair("awq", symmetric=False)
    options = ExportOptions(model=str(packed), keep=0.1, dtype="fp32", prefill_quant="int8")
    plan = make_plan(options, resolve_model(options.model))
    assert plan.prefill_part is not None
    name = "language_model.layers.0.mlp.down_proj.weight"
    exact, rounded = (
        weights.reference(name) for weights in (plan.weights, plan.weights_of(plan.prefill_part))
    )
    assert 0 < torch.linalg.norm(exact - rounded) < 0.01 * torch.linalg.norm(exact)
    assert plan.weights.quantized(name)[0].scheme.bits == 4


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")


def part(tensors: dict[str, torch.Tensor], suffix: str) -> str:
    (name,) = (key for key in tensors if re.search(rf"layers\.0\.mlp\.down_proj\.{suffix}$", key))
    return name


def reorder(path: Path) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        name = part(tensors, "g_idx")
        tensors[name] = tensors[name].flip(0)

    change_tensors(path, swap)


def cut(suffix: str) -> Callable[[Path], None]:
    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        name = part(tensors, suffix)
        tensors[name] = tensors[name][:, :-1] if tensors[name].dim() == 2 else tensors[name][:-1]

    return lambda path: change_tensors(path, shorten)


def drop_zeros(path: Path) -> None:
    change_tensors(path, lambda tensors: tensors.pop(part(tensors, "qzeros")))


@pytest.mark.parametrize(
    ("damage", "arguments", "messages"),
    [
        (lambda path: change_config(path, quant_method="aqlm"), [], ["method", "aqlm"]),
        (lambda path: change_config(path, bits=3), [], ["bit width", "found:    3"]),
        (lambda path: change_config(path, group_size=48), [], ["group size", "48"]),
        (lambda path: change_config(path, group_size=64), [], ["groups of 64 do not divide"]),
        (lambda path: change_config(path, checkpoint_format="marlin"), [], ["marlin"]),
        (reorder, [], ["act-order", LAYER]),
        (cut("scales"), [], [f"{LAYER}.scales does not fit gptq"]),
        (cut("qzeros"), [], [f"{LAYER}.qzeros does not fit gptq"]),
        (cut("g_idx"), [], [f"{LAYER}.g_idx does not fit gptq"]),
        (drop_zeros, [], [f"{LAYER}.qzeros does not fit gptq", "none"]),
        (lambda path: None, ["--quant", "int4"], ["--quant int4 is for weights that are not"]),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(
    pair: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    arguments: list[str],
    messages: list[str],
) -> None:
    packed, _ = pair("gptq")
    damage(packed)
    output = tmp_path / "engine"
    code = main(["--model", str(packed), "--keep", "0.1", "--output", str(output), *arguments])
    assert code == 2
    assert not output.exists()
    err = capsys.readouterr().err
    for message in messages:
        assert message in err
