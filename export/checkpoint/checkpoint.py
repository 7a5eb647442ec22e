"""Read a checkpoint: its config, and its tensors one at a time.

Several key layouts are in the wild. Everything here goes by one *canonical* name a tensor, which
the family knows; those of the decoder are the same in all families: ``language_model.layers.0…``,
``language_model.embed_tokens.weight``, ``language_model.norm.weight``, ``lm_head.weight``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.export.checkpoint.adapter import Adapter
from divprune.export.checkpoint.files import read_json_object, weight_files
from divprune.export.checkpoint.packed_layers import (
    PACKED_SUFFIXES,
    PackedLayer,
    find_packed_layers,
)
from divprune.export.checkpoint.quantization.packed_format import PackedFormat, read_packed_format
from divprune.export.checkpoint.tensor_file import (
    DTYPES,
    StoredTensor,
    read_tensor,
    rows_apart,
    stored_tensors,
)
from divprune.export.families import Family, class_of, family_class
from divprune.runtime.directory.config_ranges import check_config, values_of
from divprune.runtime.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = [
    "EMBEDDINGS",
    "LM_HEAD",
    "Checkpoint",
    "expected_tensors",
    "load_config",
]

EMBEDDINGS = "language_model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

# Buffers that older transformers saved; every version since computes them.
_COMPUTED = re.compile(r"\.(embeddings\.position_ids|rotary_emb\.inv_freq)$")
# What torch.compile, DataParallel, Lightning, FSDP and activation checkpointing call the module
# that they wrap, at any depth.
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    }
)
_SHOWN = 5


def expected_tensors(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of the model that transformers builds from ``config``.

    A tied ``lm_head.weight`` is left out: it is the embedding table.

    Raises:
        CheckpointError: if transformers cannot build one.
    """
    import torch
    import transformers

    auto_model: Any = transformers.AutoModelForImageTextToText
    try:
        with torch.device("meta"):
            model = auto_model.from_config(config)
    except Exception as error:  # such as a KeyError for an activation that there is not
        raise CheckpointError(
            f"transformers cannot build the {config.model_type} that config.json describes",
            expected="settings that transformers knows",
            found=f"{type(error).__name__}: {error}",
        ) from error
    canonical_name = class_of(config.model_type).canonical_name
    shapes = {canonical_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes[LM_HEAD]
    return shapes


class Checkpoint:
    """A checkpoint directory. Open it with :meth:`open`."""

    def __init__(
        self,
        path: Path,
        family: type[Family],
        config: PreTrainedConfig,
        tensors: Mapping[str, StoredTensor],
        packed_format: PackedFormat | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.path = path
        self.family = family
        self.config = config
        self._tensors = dict(tensors)
        self._packed = _packed_layers(self._tensors, packed_format)
        self._adapter = adapter

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the config and the headers of all shards; no weights yet.

        Raises:
            UnsupportedError: for another architecture, or a quantisation or adapter that is not
                known.
            CheckpointError: for a config or a weight file that is missing or damaged, for two
                keys that mean the same tensor, and for packed weights that do not fit.
        """
        content = read_json_object(path / "config.json")
        with values_of("config.json"):
            family = family_class(content)
        check_config(content)
        config = load_config(path)
        with values_of("config.json"):
            packed_format = read_packed_format(content)
        tensors: dict[str, StoredTensor] = {}
        for file in weight_files(path):
            for tensor in _readable_tensors(file, family):
                name = family.canonical_name(_unwrapped(tensor.key))
                if not name or _COMPUTED.search(name):
                    continue
                if name in tensors:
                    raise _twice(name, tensors[name], tensor)
                tensors[name] = tensor
        adapter = Adapter.open(path, family)
        if adapter is not None:
            tensors = {**adapter.brought(), **tensors}
        checkpoint = cls(path, family, config, tensors, packed_format, adapter)
        if config.tie_word_embeddings:
            checkpoint._resolve_tied_head()
        if adapter is not None:
            shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
            adapter.check(shapes, frozenset(checkpoint._packed))
        return checkpoint

    def names(self) -> frozenset[str]:
        """Canonical names of all tensors; without ``lm_head.weight`` where it is tied.

        A packed layer counts as its weight.
        """
        stored = (n for n in self._tensors if not self._is_part_of_packed(n))
        return frozenset(stored) | frozenset(self._packed)

    def packed(self, name: str) -> PackedLayer | None:
        """The packed layer whose weight this is; None for weights in float."""
        return self._packed.get(name)

    def packed_layers(self) -> tuple[PackedLayer, ...]:
        """All packed layers; none for checkpoints that are not quantised."""
        return tuple(self._packed.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header; of a packed weight, that of the layer."""
        layer = self._packed.get(name)
        return self._tensor(name).shape if layer is None else layer.shape

    def dtype(self, name: str) -> str:
        """Stored type of a tensor as safetensors spells it: ``F16``, ``BF16`` or ``F32``."""
        return self._tensor(name).dtype

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor from disk into memory of its own (CPU, stored type).

        Plain reads instead of a mapping: the resident size is that of the tensors held. A packed
        weight comes as the float32 that it stands for, and so does one that an adapter changes.

        Raises:
            CheckpointError: for an unknown name, or when the file has become shorter.
        """
        import torch

        layer = self._packed.get(name)
        if layer is not None:
            numbers = layer.numbers(self.read, np.dtype(np.float32))
            return torch.from_numpy(numbers.dequantize())
        tensor = read_tensor(self._tensor(name))
        return tensor if self._adapter is None else self._adapter.apply(name, tensor)

    def validate(self) -> None:
        """Compare all names and shapes with the model that transformers builds from the config.

        Raises:
            CheckpointError: listing what is missing, unknown or of another shape.
        """
        expected = expected_tensors(self.config)
        names = self.names()
        missing = sorted(expected.keys() - names)
        unknown = sorted(n for n in names - expected.keys() if not self._is_empty_bias(n))
        shared = sorted(expected.keys() & names)
        reshaped = [name for name in shared if self.shape(name) != expected[name]]
        problems = [f"missing: {name} {list(expected[name])}" for name in missing]
        problems += [f"unknown: {name} {list(self.shape(name))}" for name in unknown]
        problems += [
            f"{name}: expected {list(expected[name])}, found {list(self.shape(name))}"
            for name in reshaped
        ]
        if not problems:
            return
        counts = f"{len(missing)} missing, {len(unknown)} unknown, {len(reshaped)} of another shape"
        raise CheckpointError(
            f"the tensors in {self.path} are not those that its config.json describes",
            expected=f"the {len(expected)} tensors of the {self.config.model_type} in transformers",
            found="\n    ".join([counts, *_first(problems)]),
            fix="download the checkpoint again, or correct config.json",
        )

    def _is_empty_bias(self, name: str) -> bool:
        """Whether it is the bias of zeros that AutoGPTQ writes for packed layers without one."""
        layer, _, part = name.rpartition(".")
        packed = part == "bias" and f"{layer}.weight" in self._packed
        return packed and not self.read(name).any()

    def _is_part_of_packed(self, name: str) -> bool:
        layer, _, part = name.rpartition(".")
        return f".{part}" in PACKED_SUFFIXES and f"{layer}.weight" in self._packed

    def _tensor(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(
                f"the checkpoint has no tensor {name}", found=f"{len(self._tensors)} others"
            ) from None

    def _resolve_tied_head(self) -> None:
        """One tensor for the tied table, whichever of its two names it was stored under."""
        head = self._tensors.pop(LM_HEAD, None)
        if head is None:
            return
        table = self._tensors.setdefault(EMBEDDINGS, head)
        if table is not head and not self._same_values(table, head):
            raise CheckpointError(
                f"{LM_HEAD} differs from the embedding table that it is tied to",
                expected="equal tensors, as tie_word_embeddings says",
                found=f"different values in {head.file}",
                fix="set tie_word_embeddings to false in the checkpoint's config.json, "
                "in text_config as well",
            )

    def _same_values(self, first: StoredTensor, second: StoredTensor) -> bool:
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        left = math.prod(first.shape) * DTYPES[first.dtype][1]
        with first.file.open("rb") as one, second.file.open("rb") as other:
            one.seek(first.offset)
            other.seek(second.offset)
            while left > 0:
                chunk = min(left, 1 << 22)
                if one.read(chunk) != other.read(chunk):
                    return False
                left -= chunk
        return True


def load_config(path: Path) -> PreTrainedConfig:
    """Read config.json through transformers.

    Raises:
        CheckpointError: if it is missing or cannot be read.
    """
    from transformers import AutoConfig

    file = path / "config.json"
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers lets errors of many libraries through
        raise CheckpointError(
            f"transformers cannot read {file}",
            expected="the config of a checkpoint as transformers saves it",
            found=f"{type(error).__name__}: {error}",
        ) from error
    return config


def _packed_layers(
    tensors: dict[str, StoredTensor], packed_format: PackedFormat | None
) -> dict[str, PackedLayer]:
    if packed_format is not None:
        stored = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        return find_packed_layers(stored, packed_format, lambda name: read_tensor(tensors[name]))
    packed = next((name for name in tensors if name.endswith(PACKED_SUFFIXES)), None)
    if packed is None:
        return {}
    raise CheckpointError(
        "the weights are packed, but config.json does not say how",
        expected="quantization_config, with quant_method awq or gptq",
        found=packed,
        fix="copy quantize_config.json or quant_config.json into quantization_config there",
    )


def _readable_tensors(file: Path, family: type[Family]) -> Iterator[StoredTensor]:
    """The tensors of a file, less the buffers that every version computes; joined ones apart."""
    for tensor in stored_tensors(file):
        packed = tensor.key.endswith(PACKED_SUFFIXES)
        if tensor.dtype in DTYPES and (tensor.dtype != "I32" or packed):
            yield from rows_apart(tensor, family.joined_rows)
        elif not _COMPUTED.search(tensor.key):
            raise UnsupportedError(
                f"{tensor.key} is stored as {tensor.dtype}",
                expected="F16, BF16 or F32",
                found=tensor.dtype,
            )


def _unwrapped(key: str) -> str:
    """The key without what peft, torch.compile or a parallel trainer put around its modules."""
    parts = (part for part in key.split(".") if part not in _WRAPPERS)
    return ".".join(parts).removeprefix("base_model.model.")


def _twice(name: str, first: StoredTensor, second: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"two keys mean the tensor {name}",
        expected="one key layout in all shards",
        found=f"{first.key} in {first.file.name}, {second.key} in {second.file.name}",
        fix="download the checkpoint again into an empty directory",
    )


def _first(problems: list[str]) -> Iterable[str]:
    yield from problems[:_SHOWN]
    if len(problems) > _SHOWN:
        yield f"and {len(problems) - _SHOWN} more"
