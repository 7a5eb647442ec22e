"""What each model family takes and what of it was checked: the list behind docs/models.md.

What the code itself knows (selectors, positions, videos) is read from it; what nobody can derive,
such as what a test compares, is stated here. ``python -m divprune.export.planning.support`` prints
the page; a test holds both against the code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from divprune.configs import Preset, list_presets, load_preset
from divprune.export.families import Family, class_of
from divprune.export.planning.options import ExportOptions
from divprune.export.selection import IN_LLM_SELECTORS, SELECTORS, get_selector
from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.errors import OptionError

__all__ = ["FAMILIES", "PRECISIONS", "FamilySupport", "family_of", "render", "selectors_of"]

PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "fp16": {"dtype": "fp16"},
    "fp32": {"dtype": "fp32"},
    "int4": {"quant": "int4"},
    "int8": {"quant": "int8"},
    "int8 tower": {"vision_quant": "int8"},
}
"""Names of precisions, and the options that ask for them."""


@dataclass(frozen=True)
class FamilySupport:
    """One model type.

    Attributes:
        model_type: As config.json spells it.
        models: What people call them.
        videos: Whether it takes videos.
        checked: What tests compare with transformers on small random checkpoints.
        test: The file that does.
        gain: What pruning can do for the time to the first token.
    """

    model_type: str
    models: str
    videos: bool
    checked: str
    test: str
    gain: str


# Of families without a preset: what of their configuration differs from transformers' default.
_WITHOUT_PRESET: Mapping[str, Mapping[str, Any]] = {
    "idefics3": {"vision_config": {"image_size": 384, "patch_size": 14}, "scale_factor": 3},
    "qwen2_vl": {},
}

_ALL = "token ids, kept indices and pixels"
_EVERYTHING = f"{_ALL}, pictures, turns and videos"
_TARGETS = "targets for TensorRT on ONNX Runtime"
_TILED, _ANYRES = "test_tiled_families.py", "test_anyres.py"
_QWEN = "test_qwen.py"

FAMILIES: tuple[FamilySupport, ...] = (
    FamilySupport(
        "llava",
        "LLaVA-1.5, LLaVA-Interleave, BakLLaVA",
        videos=False,
        checked=f"{_ALL}, pictures and turns; {_TARGETS}",
        test="test_against_transformers.py",
        gain="large: the LLM is most of the work",
    ),
    FamilySupport(
        "llava_next",
        "LLaVA-1.6",
        videos=False,
        checked=f"{_ALL}, pictures and turns",
        test=_ANYRES,
        gain="large",
    ),
    FamilySupport(
        "llava_next_video",
        "LLaVA-NeXT-Video",
        videos=True,
        checked=f"{_EVERYTHING}; {_TARGETS}",
        test=_ANYRES,
        gain="large",
    ),
    FamilySupport(
        "llava_onevision",
        "LLaVA-OneVision",
        videos=True,
        checked=f"{_EVERYTHING}; {_TARGETS}",
        test=_ANYRES,
        gain="large at 7B, small at 0.5B",
    ),
    FamilySupport(
        "internvl",
        "InternVL3, InternVL3.5",
        videos=True,
        checked=f"{_EVERYTHING}; {_TARGETS}",
        test=_TILED,
        gain="large from 4B on; at 1B and 2B the tower is half of the work or more",
    ),
    FamilySupport(
        "smolvlm",
        "SmolVLM2",
        videos=True,
        checked=f"{_EVERYTHING}; {_TARGETS}",
        test=_TILED,
        gain="small, 1.1 to 1.3 times at best: the tower is most of the work. It saves KV cache",
    ),
    FamilySupport(
        "idefics3",
        "SmolVLM, Idefics3",
        videos=False,
        checked=f"{_ALL}, pictures",
        test=_TILED,
        gain="small at SmolVLM's sizes",
    ),
    FamilySupport(
        "qwen2_vl",
        "Qwen2-VL",
        videos=True,
        checked=_EVERYTHING,
        test=_QWEN,
        gain="medium",
    ),
    FamilySupport(
        "qwen2_5_vl",
        "Qwen2.5-VL",
        videos=True,
        checked=f"{_EVERYTHING}; {_TARGETS}",
        test=_QWEN,
        gain="medium",
    ),
    FamilySupport(
        "qwen3_vl",
        "Qwen3-VL",
        videos=True,
        checked=f"{_EVERYTHING}; {_TARGETS}",
        test=_QWEN,
        gain="medium",
    ),
)

_PAGE = """\
# Models

<!-- Printed by `python -m divprune.export.planning.support`; a test compares. -->

Sizes and image tokens of the presets are those of the hub's configurations. Everything was checked
on small checkpoints with random weights of the same form, **none of the real ones was at hand**:
try yours (the export checks itself against transformers). [support.md](support.md) says what ran
on which machine; how to add a family is [a page of its own](add-a-family.md).

{families}

What was checked are answers of the engine directory on ONNX Runtime in fp32, against transformers
fed the kept rows: the files are in `tests/end_to_end/`. Every family was exported for
`onnxruntime`, `tensorrt-rtx` and `jetpack6` in fp16 and int4 with its self-check; TensorRT-RTX 1.7
built every engine for compute capability 8.6, 8.9 and 12.0, on a CPU; none has run on a GPU.

## Selectors

{selectors}

Selectors that rank by the tower's attention need one row of it a token: not where a token joins
several patches. What those inside the LLM (`greedyprune`, `fastv`, `vtw`) choose and answer is
compared with transformers for LLaVA-1.5 ([test](../tests/end_to_end/test_inside_the_llm.py)),
LLaVA-1.6, InternVL, SmolVLM, Qwen2.5-VL and Qwen3-VL
([test](../tests/end_to_end/test_inside_the_llm_any_size.py)).

## Targets and precisions

{precisions}

The same for every family, and so are AWQ and GPTQ checkpoints in four bits: they are taken as
they are packed, for every target ([quantization.md](quantization.md)).

## Layouts

Checkpoints as transformers has saved them since 4.52, and the `-hf` repositories of before; in
safetensors, or else in `pytorch_model.bin`, which is read where it lies: nothing in it is run. LoRA
adapters beside the weights, or alone with the name of their model, are merged while they are read.

Checkpoints in the layout of the code that a model was first published with, which is that of most
fine-tunes, are read directly, by their hub id or as a directory; no weight is copied, and what
transformers' model has no place for is refused by name:

- LLaVA-1.5, LLaVA-1.6 and OneVision (`LlavaLlamaForCausalLM`, `LlavaMistralForCausalLM`,
  `LlavaQwenForCausalLM`). The tower comes from where `mm_vision_tower` says, and what that code
  saves with LoRA (`non_lora_trainables.bin`) is put on the base that it names. The conversation is
  the original code's; a warning says which one was chosen.
- InternVL3 and 3.5 (`InternVLChatModel`) with a Qwen decoder and the conversation `internvl2_5`, or
  another one in `chat_template.jinja`.

Answers are compared with the steps of that code, written down in tests, on small random checkpoints
([LLaVA](../tests/end_to_end/test_original_layout.py),
[InternVL](../tests/end_to_end/test_original_internvl.py)).
"""


def family_of(model_type: str) -> Family:
    """The family of the first preset of a model type, or of a default configuration."""
    from transformers import AutoConfig

    preset = next(_presets(model_type), None)
    content = dict(preset.config) if preset else dict(_WITHOUT_PRESET[model_type])
    content.pop("model_type", None)
    return class_of(model_type)(AutoConfig.for_model(model_type, **content))


def selectors_of(family: Family) -> tuple[str, ...]:
    """Names of the selectors that a family's directories can have."""
    shapes = (each.shape for each in family.vision_inputs())
    varies = any(isinstance(size, str) for shape in shapes for size in shape)
    return (*_before_the_llm(family, varies), *IN_LLM_SELECTORS)


def render() -> str:
    """The page."""
    return _PAGE.format(
        families=_table(_family_rows()),
        selectors=_table(_selector_rows()),
        precisions=_table(_precision_rows()),
    )


def _before_the_llm(family: Family, varies: bool) -> Iterator[str]:
    for name in SELECTORS:
        selector = get_selector(name)
        given = (selector.substitutes.get(need, need) for need in selector.needs)
        named = {*selector.needs} <= family.signals or {*given} <= family.signals
        if named and (selector.any_size or not varies):
            yield name


def _family_rows() -> Iterator[tuple[str, ...]]:
    yield "models", "`model_type`", "presets", "videos", "positions", "checked", "gain by pruning"
    for each in FAMILIES:
        kind = class_of(each.model_type)
        presets = ", ".join(f"`{preset.name}`" for preset in _presets(each.model_type))
        yield (
            each.models,
            f"`{each.model_type}`",
            presets or "none: `--model` takes the hub's name",
            "yes" if each.videos else "no",
            " or ".join(kind.positions),
            f"{each.checked} ([test](../tests/end_to_end/{each.test}))",
            each.gain,
        )


def _selector_rows() -> Iterator[tuple[str, ...]]:
    names = (*SELECTORS, *IN_LLM_SELECTORS)
    yield ("`model_type`", *(f"`{name}`" for name in names))
    for each in FAMILIES:
        able = selectors_of(family_of(each.model_type))
        yield (f"`{each.model_type}`", *("yes" if name in able else "" for name in names))


def _precision_rows() -> Iterator[tuple[str, ...]]:
    yield ("", *(f"`{target}`" for target in TARGETS))
    for name, options in PRECISIONS.items():
        yield (name, *("yes" if _is_offered(target, options) else "" for target in TARGETS))


def _is_offered(target: str, options: Mapping[str, Any]) -> bool:
    try:
        ExportOptions("a model", keep=0.25, target=target, **options)
    except OptionError:
        return False
    return True


def _presets(model_type: str) -> Iterator[Preset]:
    presets = (load_preset(name) for name in list_presets())
    return (preset for preset in presets if preset.config["model_type"] == model_type)


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    rule = "|---" * (head.count(" | ") + 1) + "|"
    return "\n".join([head, rule, *body])


if __name__ == "__main__":
    sys.stdout.write(render())
