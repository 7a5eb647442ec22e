"""What an engine directory is: the schema of its ``manifest.json``.

Written by the export, read and checked before anything else is loaded. A record that exists
is valid: each checks itself when it is made, and `Manifest` checks what holds between them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from divprune.runtime.manifest_json import RE_EXPORT, FieldError, dump, parse, read_dataclass

__all__ = [
    "CACHE_LENGTH",
    "DTYPE_BYTES",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "TARGETS",
    "FileRecord",
    "GraphSpec",
    "KVCacheSpec",
    "Manifest",
    "ModelInfo",
    "QuantInfo",
    "SelectorInfo",
    "TensorSpec",
    "TowerInfo",
]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "jetpack6")
# Name of the cache's length where a graph leaves it to the runtime.
CACHE_LENGTH = "max_seq_len"
DTYPE_BYTES = {"float32": 4, "float16": 2, "int64": 8}

_DIALECTS = ("ort", "onnx", "delta")
_WEIGHT_DTYPES = ("fp16", "fp32")
_QUANT_METHODS = ("rtn", "mse", "awq", "gptq")
_POSITIONS = ("contiguous", "original")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph; dimensions that vary have a name instead of a size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        _check_one_of("dtype", self.dtype, tuple(DTYPE_BYTES))
        for index, dim in enumerate(self.shape):
            if isinstance(dim, str):
                _check_text(f"shape[{index}]", dim)
            else:
                _check_at_least(f"shape[{index}]", dim, 0)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """An ONNX graph of the directory: ``path`` is relative to it, with forward slashes."""

    path: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        _check_relative("path", self.path)
        _check_at_least("opset", self.opset, 1)
        for field, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [tensor.name for tensor in tensors]
            unique = len(set(names)) == len(names)
            _check(names and unique, field, "one or more tensors of different names", names)


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
            _check_at_least(field, getattr(self, field), 1)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The checkpoint that was exported; ``revision`` is None for a local directory.

    ``hidden_size``, ``num_heads`` (of the queries) and ``intermediate_size`` are those of the
    text model's layers; ``tower`` is the vision tower.
    """

    id: str
    revision: str | None
    family: str
    vision_model: str
    text_model: str
    hidden_size: int
    vocab_size: int
    image_token_id: int
    max_position_embeddings: int
    num_heads: int
    intermediate_size: int
    tower: TowerInfo

    def __post_init__(self) -> None:
        for field in ("id", "family", "vision_model", "text_model"):
            _check_text(field, getattr(self, field))
        if self.revision is not None:
            _check_text("revision", self.revision)
        for field in (
            "hidden_size",
            "vocab_size",
            "max_position_embeddings",
            "num_heads",
            "intermediate_size",
        ):
            _check_at_least(field, getattr(self, field), 1)
        _check_at_least("image_token_id", self.image_token_id, 0)


@dataclass(frozen=True, slots=True)
class SelectorInfo:
    """How the visual tokens of one image are chosen: K = ``num_kept`` of N.

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
        _check_text("name", self.name)
        _check_at_least("version", self.version, 1)
        none = self.inside_llm and self.num_kept == 0
        _check(self.keep == 0 if none else 0 < self.keep <= 1, "keep", "0 < keep <= 1", self.keep)
        _check_at_least("num_image_tokens", self.num_image_tokens, 1)
        _check(
            none or 1 <= self.num_kept <= self.num_image_tokens,
            "num_kept",
            f"1 to {self.num_image_tokens} (num_image_tokens)",
            self.num_kept,
        )
        _check_one_of("positions", self.positions, _POSITIONS)
        _check_plain("parameters", self.parameters)


@dataclass(frozen=True, slots=True)
class QuantInfo:
    """How the weights of the language model are quantised.

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
        _check_text("scheme", self.scheme)
        _check_one_of("method", self.method, _QUANT_METHODS)
        _check(self.bits in (4, 8), "bits", "4 or 8", self.bits)
        if self.block is not None:
            _check_at_least("block", self.block, 1)


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Shape of the key/value cache without its length."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        for field in ("num_layers", "num_kv_heads", "head_dim"):
            _check_at_least(field, getattr(self, field), 1)
        _check_one_of("dtype", self.dtype, ("float16", "float32"))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in the cache: a key and a value in every layer."""
        numbers = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return numbers * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file holds: SHA-256 (64 lowercase hexadecimal digits) and size in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        valid = _SHA256.fullmatch(self.sha256)
        _check(valid, "sha256", "64 lowercase hexadecimal digits", self.sha256)
        _check_at_least("size", self.size, 0)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``.

    ``graphs`` has the keys ``vision``, ``selection`` and ``llm``, or, for a selector inside the
    LLM, ``vision``, ``llm_front``, ``llm_back`` and, if it chooses, ``llm_selection``. For
    TensorRT there are, sharing their weights, ``vision_plugin``, ``selection_plugin`` and for
    each decoder graph one whose name ends in ``_tensorrt``. ``dtype`` is the precision of the
    weights as the command line spells it (fp16, fp32), ``quant`` and ``vision_quant`` what is
    smaller than that (int8 or None for the vision tower); ``prefill_quant`` what
    ``llm_prefill`` has, a second decoder for prompts (None: there is none); ``max_weight_mib``
    the size above which weights were split. ``baseline`` says whether keep 1.0 can run,
    ``verified`` whether the export checked itself. ``requires`` maps packages to the lowest
    version of each that can run this (one of them is enough), ``tools`` to the version that
    wrote it.
    ``files`` has every file of the export but the manifest, by relative path with forward
    slashes.
    """

    schema_version: int
    model: ModelInfo
    selector: SelectorInfo
    target: str
    dialect: str
    dtype: str
    quant: QuantInfo | None
    vision_quant: str | None
    prefill_quant: str | None
    graphs: dict[str, GraphSpec]
    kv_cache: KVCacheSpec
    max_prefill_len: int
    max_seq_len: int
    max_weight_mib: int | None
    baseline: bool
    verified: bool
    requires: dict[str, str]
    tools: dict[str, str]
    files: dict[str, FileRecord]

    def __post_init__(self) -> None:
        _check_schema_version(self.schema_version)
        _check_one_of("target", self.target, TARGETS)
        _check_one_of("dialect", self.dialect, _DIALECTS)
        _check_one_of("dtype", self.dtype, _WEIGHT_DTYPES)
        for field in ("vision_quant", "prefill_quant"):
            if (value := getattr(self, field)) is not None:
                _check_one_of(field, value, ("int8",))
        _check_at_least("max_prefill_len", self.max_prefill_len, 1)
        _check_at_least("max_seq_len", self.max_seq_len, self.max_prefill_len)
        if self.max_weight_mib is not None:
            _check_at_least("max_weight_mib", self.max_weight_mib, 1)
        for package, version in self.requires.items():
            _check_version(f"requires.{package}", version)
        for path in self.files:
            _check_relative(f"files.{path}", path)
            _check(path != MANIFEST_NAME, f"files.{path}", "every other file", path)
        for name, graph in self.graphs.items():
            known = graph.path in self.files
            _check(known, f"graphs.{name}.path", "a path that is in files", graph.path)

        if self.selector.inside_llm:
            _check_split(self)

    @property
    def llm_graphs(self) -> tuple[str, ...]:
        """Keys of the graphs that hold the decoder, in the order in which they run."""
        return ("llm_front", "llm_back") if self.selector.inside_llm else ("llm",)

    @property
    def has_open_cache_length(self) -> bool:
        """Whether the runtime may allocate a shorter cache than was exported."""
        graphs = [self.graphs[name] for name in self.llm_graphs if name in self.graphs]
        inputs = [tensor for graph in graphs for tensor in graph.inputs]
        caches = [tensor.shape for tensor in inputs if tensor.name.startswith("past_")]
        return bool(caches) and all(CACHE_LENGTH in shape for shape in caches)

    def decoder_graph(self, name: str) -> GraphSpec:
        """A graph with a cache, the length of the cache in numbers."""
        graph = self.graphs[name]
        slots = self.max_seq_len - (self._num_never_cached if name == "llm_back" else 0)
        return replace(
            graph,
            inputs=_with_cache_length(graph.inputs, slots),
            outputs=_with_cache_length(graph.outputs, slots),
        )

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of all cache buffers, filled or not."""
        return self.live_kv_bytes(self.max_seq_len, self._num_never_cached)

    @property
    def _num_never_cached(self) -> int:
        """Tokens of a picture that the cache behind a selection inside the LLM never holds.

        Only the baseline needs room for every token there.
        """
        return 0 if self.baseline else self.selector.num_image_tokens - self.selector.num_kept

    def live_kv_bytes(self, slots: int, num_removed: int) -> int:
        """Bytes of the cache that a sequence fills.

        Args:
            slots: What it fills in the first layer.
            num_removed: Visual tokens of it that do not pass a selection inside the LLM.
        """
        num_bytes = slots * self.kv_cache.bytes_per_token
        if self.selector.inside_llm:
            layers = self.kv_cache.num_layers
            behind = layers - self.selector.parameters["layer"]
            num_bytes -= num_removed * behind * (self.kv_cache.bytes_per_token // layers)
        return num_bytes

    def to_json(self) -> str:
        """The text of ``manifest.json``: the same manifest always gives the same text."""
        return dump(self)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            EngineDirectoryError: for another schema version (looked at before everything
                else), invalid JSON, and any field that is missing, unknown, or has a type
                or value that it cannot have; the message names the field.
        """
        value = parse(text)
        _check_schema_version(value.get("schema_version"))
        try:
            return read_dataclass(cls, value)
        except RecursionError:
            raise FieldError(
                "", "is nested too deeply", expected="a manifest", found="a deeper one"
            ) from None


def _with_cache_length(tensors: tuple[TensorSpec, ...], slots: int) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(tensor, shape=tuple(slots if dim == CACHE_LENGTH else dim for dim in tensor.shape))
        for tensor in tensors
    )


def _check_split(manifest: Manifest) -> None:
    """Check what a selector inside the LLM needs of the whole."""
    layer, layers = manifest.selector.parameters.get("layer"), manifest.kv_cache.num_layers
    _check(
        type(layer) is int and 0 < layer < layers,
        "selector.parameters.layer",
        f"1 to {layers - 1}: the model has {layers} layers",
        layer,
    )
    for name in manifest.llm_graphs:
        _check(name in manifest.graphs, f"graphs.{name}", "a half of the decoder", "nothing")


def _check_schema_version(version: object) -> None:
    expected = f"schema version {SCHEMA_VERSION}, the one this divprune-edge reads"
    if type(version) is not int:
        found = "no such field" if version is None else repr(version)
        raise FieldError("schema_version", "is not an integer", expected=expected, found=found)
    if version == SCHEMA_VERSION:
        return
    newer = version > SCHEMA_VERSION
    raise FieldError(
        "schema_version",
        "is newer than this divprune-edge" if newer else "is one this divprune-edge cannot read",
        expected=expected,
        found=version,
        fix="upgrade it: pip install --upgrade divprune-edge" if newer else RE_EXPORT,
    )


def _check(holds: object, field: str, expected: object, found: object) -> None:
    if not holds:
        raise FieldError(field, "has a value it cannot have", expected=expected, found=found)


def _check_text(field: str, value: str) -> None:
    # Names end up in messages on a terminal: no escape sequences.
    _check(value and value.isprintable(), field, "printable text, not empty", repr(value))


def _check_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, field, f"one of {', '.join(allowed)}", value)


def _check_at_least(field: str, value: int, lowest: int) -> None:
    _check(value >= lowest, field, f"at least {lowest}", value)


def _check_version(field: str, value: str) -> None:
    _check(_VERSION.fullmatch(value), field, "a version such as 1.22", value)


def _check_relative(field: str, path: str) -> None:
    """Refuse what is not a plain path below the directory, on any operating system."""
    plain = (
        path.isprintable()
        and "\\" not in path
        and not PureWindowsPath(path).drive
        and not PureWindowsPath(path).root
        and ".." not in path.split("/")
        and PurePosixPath(path).as_posix() == path != "."
    )
    _check(plain, field, "a relative path below the engine directory", repr(path))


def _check_plain(field: str, value: object) -> None:
    """Refuse what would not come back from JSON as it was."""
    if type(value) is dict:
        for key, item in value.items():
            _check(type(key) is str, field, "keys that are strings", repr(key))
            _check_plain(f"{field}.{key}", item)
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_plain(f"{field}[{index}]", item)
    elif type(value) is float:
        _check(math.isfinite(value), field, "a finite number", value)
    else:
        plain = value is None or type(value) in (str, int, bool)
        _check(plain, field, "text, a number, true, false, null, a list or a dict", repr(value))
