"""Options: what is refused before anything is loaded, and where the output goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from divprune.export.planning.options import ExportOptions
from divprune.runtime.errors import OptionError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("keep", 0.0, "--keep must be above 0"),
        ("keep", -0.1, "--keep must be above 0"),
        ("keep", 1.5, "--keep must not be above 1"),
        ("keep", 10, r"--keep 0\.1 if 10 % was meant"),
        ("keep", float("nan"), "--keep is not a number"),
        ("keep", float("inf"), "--keep is not a number"),
        ("target", "coreml", r"--target is not known(.|\n)*onnxruntime(.|\n)*coreml"),
        ("dtype", "bf16", r"--dtype is not known(.|\n)*fp16, fp32(.|\n)*bf16"),
        ("quant", "int3", r"--quant int3 is not known(.|\n)*int4-g64-asym"),
        ("quant", "int4-g16", r"group size(.|\n)*32, 64, 128(.|\n)*16"),
        ("quant_method", "gptq", r"--quant-method is not known(.|\n)*rtn, mse(.|\n)*gptq"),
        ("vision_quant", "int4", r"--vision-quant is not known(.|\n)*int8(.|\n)*int4"),
        ("prefill_quant", "int4", r"--prefill-quant is not known(.|\n)*int8(.|\n)*int4"),
        ("positions", "shuffled", r"--positions is not known(.|\n)*contiguous, original"),
        ("max_seq_len", 1, r"--max-seq-len is too small(.|\n)*at least 2(.|\n)*1"),
        ("max_seq_len", -5, "--max-seq-len is too small"),
        ("max_weight_mib", 0, r"--max-weight-mib is too small(.|\n)*at least 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(**{"model": "llava-1.5-7b", "keep": 0.1, field: value})


@pytest.mark.parametrize(
    "options", [{"quant": "int8"}, {"vision_quant": "int8"}, {"prefill_quant": "int8"}]
)
def test_dynamic_int8_is_for_onnxruntime(options: dict[str, str]) -> None:
    ExportOptions(model="m", keep=0.1, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"int8 is not for --target jetpack6(.|\n)*int4"):
        ExportOptions(model="m", keep=0.1, target="jetpack6", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "int8", "keep": 0.1}, r"adds nothing to --quant int8(.|\n)*leave"),
        ({"selector": "vtw"}, r"not for --selector vtw(.|\n)*in front of the LLM"),
    ],
)
def test_a_prefill_graph_is_refused_where_it_has_no_place(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(model="m", prefill_quant="int8", **options)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"seed": 3}, "seed"),
        ({"seed": 0, "selector": "uniform"}, "seed"),
        ({"quant_method": "mse"}, "quant-method"),
        ({"quant_method": "rtn", "quant": "int8"}, "quant-method"),
        ({"quant_method": "mse", "vision_quant": "int8"}, "quant-method"),
        ({"keep": 1.0, "baseline": False}, "no-baseline"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(OptionError, match=f"--{flag} would have no effect") as caught:
        ExportOptions(**{"model": "m", "keep": 0.1, **options})
    assert caught.value.fix == f"leave --{flag} out"


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3, "selector": "random"},
        {"quant": "int4-g64", "quant_method": "mse"},
        {"baseline": False},
    ],
)
def test_the_same_option_with_an_effect_is_taken(options: dict[str, Any]) -> None:
    ExportOptions(model="m", keep=0.1, **options)


@pytest.mark.parametrize("keep", [1e-6, 1.0])
def test_the_ends_of_the_range_are_accepted(keep: float) -> None:
    options = ExportOptions(model="m", keep=keep, max_seq_len=2)
    assert (options.dtype, options.positions, options.verify) == ("fp16", None, True)


@pytest.mark.parametrize(
    ("model", "keep", "name"),
    [
        ("llava-1.5-7b", 0.1, "llava-1.5-7b-keep0.1"),
        ("llava-hf/llava-1.5-7b-hf", 0.25, "llava-1.5-7b-hf-keep0.25"),
        ("/data/models/mine/", 1.0, "mine-keep1"),
        ("../mine", 0.1, "mine-keep0.1"),
    ],
)
def test_output_is_named_after_model_and_keep(model: str, keep: float, name: str) -> None:
    assert ExportOptions(model=model, keep=keep).output_directory() == Path(name)


@pytest.mark.parametrize(
    ("model", "name"), [(".", "inner-keep0.1"), ("./", "inner-keep0.1"), ("..", "outer-keep0.1")]
)
def test_output_of_a_directory_without_a_name_has_its_real_name(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "inner")
    assert ExportOptions(model=model, keep=0.1).output_directory() == Path(name)


def test_output_that_was_given_is_taken_as_it_is() -> None:
    options = ExportOptions(model="m", keep=0.1, output=Path("somewhere/else"))
    assert options.output_directory() == Path("somewhere/else")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"selector": "divprun"},
            r"--selector is not known(.|\n)*divprune,.*greedyprune, fastv, vtw",
        ),
        ({}, r"--selector divprune needs --keep"),
        ({"selector": "fastv"}, r"--selector fastv needs --keep"),
        ({"selector": "vtw", "keep": 0.1}, r"--selector vtw takes no --keep(.|\n)*only --layer"),
        ({"keep": 0.1, "layer": 2}, r"--selector divprune takes no --layer(.|\n)*only --keep"),
        ({"keep": 0.1, "tau": 0.5}, r"--selector divprune takes no --tau"),
        ({"selector": "fastv", "keep": 0.1, "tau": 0.5}, r"--selector fastv takes no --tau"),
        ({"selector": "fastv", "keep": 0.1, "layer": 0}, r"--layer is too small(.|\n)*at least 1"),
        ({"selector": "vtw", "layer": -1}, r"--layer is too small"),
        *(
            ({"selector": "greedyprune", "keep": 0.1, "tau": tau}, r"--tau(.|\n)*-1 < tau <= 1")
            for tau in (-1.0, 1.01, float("nan"), float("-inf"))
        ),
        (
            {"selector": "fastv", "keep": 0.1, "positions": "contiguous"},
            r"cannot number the kept tokens anew(.|\n)*--positions original",
        ),
    ],
)
def test_flags_that_the_selector_does_not_take_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(model="m", **options)


@pytest.mark.parametrize("tau", [-0.99, 1.0, None])
def test_a_selector_inside_the_llm_keeps_original_positions(tau: float | None) -> None:
    options = ExportOptions(model="m", selector="greedyprune", keep=0.1, layer=1, tau=tau)
    assert options.inside_llm


def test_output_without_a_keep_is_named_after_the_selector() -> None:
    options = ExportOptions(model="m", selector="vtw", positions="original")
    assert options.output_directory() == Path("m-vtw")
