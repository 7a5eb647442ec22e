"""LoRA adapters beside or on top of a checkpoint, merged tensor by tensor while it is read.

W + s·B·A, a block of rows at a time: the product is never in memory as a whole.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.export.checkpoint.tensor_file import (
    DTYPES,
    StoredTensor,
    read_tensor,
    rows_apart,
    stored_tensors,
)
from divprune.runtime.directory.bounded_json import read_json_object
from divprune.runtime.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    import torch

    from divprune.export.families import Family

__all__ = ["ADAPTER_CONFIG", "Adapter", "check_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What LLaVA's own trainer saves beside an adapter: weights that were trained as a whole.
_NOT_LORA = "non_lora_trainables.bin"

logger = logging.getLogger(__name__)

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_MAX_ALPHA = 1 << 24
_ROWS = 1024
_MERGE = (
    'python -c "from peft import PeftModel as P; '
    "from transformers import AutoModelForImageTextToText as M; "
    "P.from_pretrained(M.from_pretrained({base!r}, dtype='auto'), {path!r}).merge_and_unload()"
    ".save_pretrained('merged')\", then copy the tokenizer's and processor's files there"
)
# What makes more of an adapter than W + s·B·A; each with the values that mean it is off.
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "use_dora": (),
    "lora_bias": (),
    "fan_in_fan_out": (),
    "layer_replication": (),
    "trainable_token_indices": (),
    "alora_invocation_tokens": (),
    "use_qalora": (),
    "target_parameters": (),
    "bias": ("none",),
}
# These change the base weights before training; peft can save them as a plain adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class _Delta:
    """A pair of factors: A [r, in] and B [out, r], of an embedding as it lies: [in, out]."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that it changes."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (inputs, outputs) if self.embedding else (outputs, inputs)


class Adapter:
    """A LoRA adapter by the canonical names of the weights that it changes.

    Args:
        deltas: What is added to a weight.
        replaced: Weights that were trained as a whole.
    """

    def __init__(self, deltas: Mapping[str, _Delta], replaced: Mapping[str, StoredTensor]) -> None:
        self._deltas, self._replaced = dict(deltas), dict(replaced)

    def brought(self) -> dict[str, StoredTensor]:
        """Weights that its model may lack: LLaVA's trainer makes a projector for a decoder."""
        whole = self._replaced.items()
        return {name: tensor for name, tensor in whole if tensor.file.name == _NOT_LORA}

    @classmethod
    def open(cls, directory: Path, family: type[Family]) -> Adapter | None:
        """The adapter in a checkpoint's directory; None where there is none.

        Raises:
            UnsupportedError: naming what is more than LoRA.
            CheckpointError: if its files do not fit each other.
        """
        read = _read_factors(directory)
        if read is None:
            return None
        config, factors, replaced = read
        return cls(
            {
                family.canonical_name(delta.b.key): delta
                for module, pair in factors.items()
                for delta in _deltas(module, pair, config, family)
            },
            {
                family.canonical_name(part.key): part
                for key, tensor in replaced.items()
                for part in rows_apart(replace(tensor, key=key), family.joined_rows)
            },
        )

    def names(self) -> frozenset[str]:
        """Canonical names of the weights that it changes."""
        return frozenset(self._deltas) | frozenset(self._replaced)

    def check(self, shapes: Mapping[str, tuple[int, ...]], packed: frozenset[str]) -> None:
        """Compare it with the checkpoint's tensors.

        Raises:
            CheckpointError: for a weight that the checkpoint lacks or that has another shape.
            UnsupportedError: for a weight that is packed in 4 bits.
        """
        for name in sorted(self.names()):
            if name in packed:
                raise UnsupportedError(
                    f"the LoRA adapter changes {name}, which is packed in 4 bits",
                    expected="an adapter on weights in float",
                    fix="put the adapter on the model that was not quantised",
                )
            changes = [each[name] for each in (self._deltas, self._replaced) if name in each]
            shape = next((c.shape for c in changes if c.shape != shapes.get(name)), None)
            if shape is not None:
                there = list(shapes[name]) if name in shapes else "no such tensor"
                raise CheckpointError(
                    f"the LoRA adapter does not fit the checkpoint: {name}",
                    expected=f"a weight {list(shape)}",
                    found=there,
                    fix="put the adapter on the model that it was trained on",
                )

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The weight as the adapter has it, in float32 if it is changed."""
        if name in self._replaced:
            tensor = read_tensor(self._replaced[name])
        delta = self._deltas.get(name)
        return tensor if delta is None else _merged(tensor, delta)


def check_adapter(directory: Path) -> None:
    """Refuse what ``Adapter.open`` would, before the files are joined with those of a model.

    Its advice names the adapter's directory, and that of the joined files is gone afterwards.

    Raises:
        UnsupportedError: naming what is more than LoRA.
        CheckpointError: if there are no weights that can be read.
    """
    _read_factors(directory)


def _read_factors(
    directory: Path,
) -> tuple[dict[str, Any], dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]] | None:
    """The adapter's config, its pairs of factors and its whole tensors; None without an adapter."""
    config_file = directory / ADAPTER_CONFIG
    weights = next((f for name in _WEIGHTS if (f := directory / name).is_file()), None)
    if weights is None:
        if config_file.is_file():
            raise _no_weights(directory)
        return None
    config = read_json_object(config_file, error=CheckpointError)
    _refuse_unsupported(config, directory)
    base = config.get("base_model_name_or_path")
    factors: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    whole = directory / _NOT_LORA
    for file in (weights, whole) if whole.is_file() else (weights,):
        for tensor in stored_tensors(file):
            _add(tensor, factors, replaced, base, directory)
    return config, factors, replaced


def _merged(tensor: torch.Tensor, delta: _Delta) -> torch.Tensor:
    left, right = read_tensor(delta.b).float() * delta.scale, read_tensor(delta.a).float()
    if delta.embedding:
        left, right = right.T, left.T
    merged = tensor.float() if tensor.dtype != left.dtype else tensor
    for start in range(0, len(merged), _ROWS):
        merged[start : start + _ROWS].addmm_(left[start : start + _ROWS], right)
    return merged


def _add(
    tensor: StoredTensor,
    factors: dict[str, dict[str, StoredTensor]],
    replaced: dict[str, StoredTensor],
    base: object,
    directory: Path,
) -> None:
    key = tensor.key.removeprefix(_PREFIX)
    if tensor.dtype not in DTYPES or tensor.dtype == "I32":
        raise UnsupportedError(
            f"the LoRA adapter stores {tensor.key} as {tensor.dtype}",
            expected="F16, BF16 or F32",
            found=tensor.dtype,
        )
    if match := _FACTOR.fullmatch(key):
        module, embedding, letter = match.groups()
        pair = factors.setdefault(module, {})
        pair[letter] = tensor
        if embedding:
            pair["embedding"] = tensor
    elif "lora_" in key:
        raise _unsupported(f"the tensor {tensor.key}", base, directory)
    else:
        whole = key.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
        replaced[whole.replace(".base_layer.", ".")] = tensor


def _deltas(
    module: str, pair: Mapping[str, StoredTensor], config: Mapping[str, Any], family: type[Family]
) -> Iterator[_Delta]:
    """What is added to the layers that a module holds, most often one; B has the weight's key."""
    whole = _delta(module, pair, config)
    weight = replace(whole.b, key=f"{module}.weight")
    for part in rows_apart(weight, family.joined_rows):
        yield replace(whole, b=part)


def _delta(module: str, pair: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> _Delta:
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"the LoRA adapter's factors of {module} do not fit each other",
            expected="A [r, inputs] and B [outputs, r]",
            found=f"A {list(a.shape) if a else 'missing'}, B {list(b.shape) if b else 'missing'}",
            fix="save the adapter again, or download it again",
        )
    return _Delta(a, b, _scale(module, a.shape[0], config), "embedding" in pair)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """``lora_alpha`` over the rank, or over its root; patterns name modules with their own."""
    alpha: object = config.get("lora_alpha", 8)
    for pattern, value in _alpha_patterns(config):
        if pattern.fullmatch(module):
            alpha = value
            break
    if type(alpha) not in (int, float) or not abs(alpha) < _MAX_ALPHA:  # type: ignore[arg-type]
        raise CheckpointError(
            f"lora_alpha of {ADAPTER_CONFIG} cannot be used",
            expected=f"a number between -{_MAX_ALPHA} and {_MAX_ALPHA}",
            found=alpha,
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # type: ignore[arg-type]


def _alpha_patterns(config: Mapping[str, Any]) -> list[tuple[re.Pattern[str], Any]]:
    """Expressions for the ends of modules' names, each with the alpha of what it matches."""
    patterns = config.get("alpha_pattern") or {}
    try:
        if not isinstance(patterns, dict) or any(map(_takes_long, patterns)):
            raise ValueError("an expression that may take for ever, or none")
        return [(re.compile(rf"(.*\.)?({each})"), alpha) for each, alpha in patterns.items()]
    except (ValueError, re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"alpha_pattern of {ADAPTER_CONFIG} cannot be used",
            expected="names of modules, or expressions of at most 3 repetitions without groups",
            found=f"{patterns}: {error}",
        ) from error


def _takes_long(pattern: str) -> bool:
    return len(re.findall(r"[*+?{]", pattern)) > 3 or "(" in pattern


def _refuse_unsupported(config: Mapping[str, Any], directory: Path) -> None:
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    if kind != "LORA":
        raise _unsupported(f"peft_type {kind}", base, directory)
    for key, off in _REFUSED.items():
        value = config.get(key)
        if value not in (None, False, [], {}, "", *off):
            raise _unsupported(f"{key}={value}", base, directory)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        what = f"init_lora_weights={start}, which changes the base weights"
        raise _unsupported(what, base, directory)


def _unsupported(what: str, base: object, directory: Path) -> UnsupportedError:
    return UnsupportedError(
        "the adapter beside the checkpoint is more than LoRA",
        expected="W + s·B·A: peft_type LORA without further parts",
        found=what,
        fix=_MERGE.format(base=base or "MODEL", path=str(directory)),
    )


def _no_weights(directory: Path) -> CheckpointError:
    return CheckpointError(
        f"the adapter in {directory} has no weights",
        expected=f"{ADAPTER_CONFIG} and {' or '.join(_WEIGHTS)}",
        found=f"{ADAPTER_CONFIG} alone",
        fix="download the adapter again, or remove adapter_config.json to export without it",
    )
