"""The parts of ``manifest.json``: each checks itself when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from divprune.runtime.directory.manifest_checks import (
    check,
    check_at_least,
    check_one_of,
    check_plain,
    check_relative,
    check_text,
)

__all__ = [
    "DTYPE_BYTES",
    "DimRange",
    "FileRecord",
    "GraphSpec",
    "KVCacheSpec",
    "ModelInfo",
    "QuantInfo",
    "SelectorInfo",
    "TensorSpec",
    "TowerInfo",
]

DTYPE_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "bool": 1}

_QUANT_METHODS = ("rtn", "mse", "awq", "gptq")
_POSITIONS = ("contiguous", "original")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph; dimensions that vary have a name instead of a size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        check_text("name", self.name)
        check_one_of("dtype", self.dtype, tuple(DTYPE_BYTES))
        for index, dim in enumerate(self.shape):
            if isinstance(dim, str):
                check_text(f"shape[{index}]", dim)
            else:
                check_at_least(f"shape[{index}]", dim, 0)


@dataclass(frozen=True, slots=True)
class DimRange:
    """What a named dimension of a graph may be; ``optimum`` is that of a typical picture."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        check_at_least("minimum", self.minimum, 1)
        check_at_least("optimum", self.optimum, self.minimum)
        check_at_least("maximum", self.maximum, self.optimum)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """An ONNX graph of the directory: ``path`` is relative to it, with forward slashes."""

    path: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        check_relative("path", self.path)
        check_at_least("opset", self.opset, 1)
        for field, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [tensor.name for tensor in tensors]
            unique = len(set(names)) == len(names)
            check(names and unique, field, "one or more tensors of different names", names)


@dataclass(frozen=True, slots=True)
class TowerInfo:
    """The vision tower, as far as it runs.

    Attributes:
        hidden_size: Width of its rows.
        intermediate_size: Width inside its feed-forward layers.
        num_layers: Layers up to the last one whose features are used.
        num_heads: Attention heads.
        num_positions: Rows: one for each patch, and the class token if there is one.
        patch_size: Edge of a patch in pixels.
        num_channels: Of a picture.
        feature_size: Width of what the projector takes: several layers stand side by side.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_positions: int
    patch_size: int
    num_channels: int
    feature_size: int

    def __post_init__(self) -> None:
        for field in self.__slots__:
            check_at_least(field, getattr(self, field), 1)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The checkpoint that was exported.

    Attributes:
        id: Preset, hub id or path.
        revision: Commit of the hub; None for a local directory.
        family: Module of ``runtime/families`` that prepares its pictures.
        vision_model: Kind of the vision tower, as transformers calls it.
        text_model: Kind of the decoder.
        hidden_size: Width of the decoder's rows.
        vocab_size: Rows of the output layer.
        image_token_id: The token that stands for a visual token of a picture.
        video_token_id: The same for a video; None where the family takes none.
        position_axes: 1, or 3 where positions have time, height and width.
        max_position_embeddings: Of the decoder.
        num_heads: Query heads of a decoder layer.
        intermediate_size: Width inside a decoder layer's feed-forward part.
        tower: The vision tower.
        facts: What the family's runtime module reads.
    """

    id: str
    revision: str | None
    family: str
    vision_model: str
    text_model: str
    hidden_size: int
    vocab_size: int
    image_token_id: int
    video_token_id: int | None
    position_axes: int
    max_position_embeddings: int
    num_heads: int
    intermediate_size: int
    tower: TowerInfo
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        for field in ("id", "family", "vision_model", "text_model"):
            check_text(field, getattr(self, field))
        if self.revision is not None:
            check_text("revision", self.revision)
        for field in (
            "hidden_size",
            "vocab_size",
            "max_position_embeddings",
            "num_heads",
            "intermediate_size",
        ):
            check_at_least(field, getattr(self, field), 1)
        check_at_least("image_token_id", self.image_token_id, 0)
        if self.video_token_id is not None:
            check_at_least("video_token_id", self.video_token_id, 0)
        check(self.position_axes in (1, 3), "position_axes", "1 or 3", self.position_axes)
        check_plain("facts", self.facts)

    @property
    def visual_token_ids(self) -> tuple[int, ...]:
        """Every token that stands for a visual token in a prompt."""
        ids = (self.image_token_id, self.video_token_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))


@dataclass(frozen=True, slots=True)
class SelectorInfo:
    """How the visual tokens of one picture are chosen: K = ``num_kept`` of N.

    Where N varies (the manifest has a dimension ``tokens``) N and K are those of the largest
    picture; for another one K follows from ``keep``.
    ``nested`` says that a prefix of the selection order is itself a selection, ``merges``
    that tokens are combined, ``inside_llm`` that the choice is made between decoder layers:
    before ``parameters["layer"]``. There ``keep`` and ``num_kept`` may be 0.
    """

    name: str
    version: int
    keep: float
    num_image_tokens: int
    num_kept: int
    positions: str
    nested: bool
    merges: bool
    inside_llm: bool
    parameters: dict[str, Any]

    def __post_init__(self) -> None:
        plain = re.fullmatch(r"\w[\w.-]*", self.name)
        check(plain, "name", "letters, digits, '_', '.' and '-'", repr(self.name))
        check_at_least("version", self.version, 1)
        none = self.inside_llm and self.num_kept == 0
        check(self.keep == 0 if none else 0 < self.keep <= 1, "keep", "0 < keep <= 1", self.keep)
        check_at_least("num_image_tokens", self.num_image_tokens, 1)
        check(
            none or 1 <= self.num_kept <= self.num_image_tokens,
            "num_kept",
            f"1 to {self.num_image_tokens} (num_image_tokens)",
            self.num_kept,
        )
        check_one_of("positions", self.positions, _POSITIONS)
        check_plain("parameters", self.parameters)


@dataclass(frozen=True, slots=True)
class QuantInfo:
    """Quantisation of the language model's weights.

    ``scheme`` is the spelling of ``--quant``; ``method`` what made the numbers (rtn, mse, or
    awq, gptq where the checkpoint had them). ``block`` inputs share a scale (None: a whole
    row); ``symmetric`` says that they share the zero point too.
    """

    scheme: str
    method: str
    bits: int
    block: int | None
    symmetric: bool

    def __post_init__(self) -> None:
        check_text("scheme", self.scheme)
        check_one_of("method", self.method, _QUANT_METHODS)
        check(self.bits in (4, 8), "bits", "4 or 8", self.bits)
        if self.block is not None:
            check_at_least("block", self.block, 1)


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Shape of the key/value cache without its length."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        for field in ("num_layers", "num_kv_heads", "head_dim"):
            check_at_least(field, getattr(self, field), 1)
        check_one_of("dtype", self.dtype, ("float16", "float32"))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in the cache: a key and a value in every layer."""
        numbers = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return numbers * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file's SHA-256 (64 lowercase hexadecimal digits) and size in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        valid = _SHA256.fullmatch(self.sha256)
        check(valid, "sha256", "64 lowercase hexadecimal digits", self.sha256)
        check_at_least("size", self.size, 0)
