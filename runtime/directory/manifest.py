"""The schema of an engine directory's ``manifest.json``.

Written by the export, read and checked before anything else is loaded. A record that exists
is valid: each checks itself when it is made, and `Manifest` checks what holds between them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from divprune.runtime.directory.cuda_support import flags_without_cuda
from divprune.runtime.directory.manifest_checks import (
    check,
    check_at_least,
    check_one_of,
    check_relative,
    check_version,
)
from divprune.runtime.directory.manifest_json import (
    RE_EXPORT,
    FieldError,
    checksum,
    dump,
    parse,
    read_dataclass,
)
from divprune.runtime.directory.manifest_records import (
    DTYPE_BYTES,
    DimRange,
    FileRecord,
    GraphSpec,
    KVCacheSpec,
    ModelInfo,
    QuantInfo,
    SelectorInfo,
    TensorSpec,
    TowerInfo,
)

__all__ = [
    "CACHE_LENGTH",
    "DTYPE_BYTES",
    "LIVE_LENGTH",
    "LIVE_SLOTS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "TARGETS",
    "DimRange",
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

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "jetpack6")
# Name of the cache's length where a graph leaves it to the runtime.
CACHE_LENGTH = "max_seq_len"
# The input with the cache slots that attention looks at, and its length.
LIVE_SLOTS, LIVE_LENGTH = "live_slots", "live"

# What a selection between decoder layers may ask for.
_SELECTION_INPUTS = frozenset(
    (
        "visual_states",
        "last_state",
        "last_query",
        "keys",
        "visual_slots",
        "num_slots",
        "kept_slots",
    )
)
_DIALECTS = ("ort", "onnx", "delta")
_WEIGHT_DTYPES = ("fp16", "fp32")
_PACKAGES = ("onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``.

    ``graphs`` has the keys ``vision``, ``selection`` and ``llm``, or, for a selector inside the
    LLM, ``vision``, ``llm_front``, ``llm_back`` and, if it chooses, ``llm_selection``. Where CUDA
    can run it and there is one ``llm``, ``llm_decode`` is that with its lengths as inputs. For
    TensorRT there are, sharing their weights, ``vision_plugin``, ``selection_plugin`` and for
    each decoder graph one whose name ends in ``_tensorrt``. ``dtype`` is the precision of the
    weights as the command line spells it (fp16, fp32), ``quant`` and ``vision_quant`` what is
    smaller than that (int8 or None for the vision tower); ``prefill_quant`` what
    ``llm_prefill`` has, a second decoder for prompts (None: there is none); ``max_weight_mib``
    the size above which weights were split. ``baseline`` says whether keep 1.0 can run,
    ``verified`` whether the export checked itself. ``requires`` maps packages to the lowest
    version of each that can run this (one of them is enough), ``tools`` to the version that
    wrote it. ``dims`` has the range of each named dimension of the graphs that see pictures.
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
    dims: dict[str, DimRange]
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
        check_one_of("target", self.target, TARGETS)
        check_one_of("dialect", self.dialect, _DIALECTS)
        check_one_of("dtype", self.dtype, _WEIGHT_DTYPES)
        for field in ("vision_quant", "prefill_quant"):
            if (value := getattr(self, field)) is not None:
                check_one_of(field, value, ("int8",))
        check_at_least("max_prefill_len", self.max_prefill_len, 1)
        check_at_least("max_seq_len", self.max_seq_len, self.max_prefill_len)
        most = self.model.max_position_embeddings
        check(self.max_seq_len <= most, "max_seq_len", f"at most {most}", self.max_seq_len)
        if self.max_weight_mib is not None:
            check_at_least("max_weight_mib", self.max_weight_mib, 1)
        for package, version in self.requires.items():
            check_one_of("requires", package, _PACKAGES)
            check_version(f"requires.{package}", version)
        for path in self.files:
            check_relative(f"files.{path}", path)
            check(path != MANIFEST_NAME, f"files.{path}", "every other file", path)
        for name, graph in self.graphs.items():
            known = graph.path in self.files
            check(known, f"graphs.{name}.path", "a path that is in files", graph.path)

        _check_counts(self)
        _check_decoders(self)
        _check_planes(self)
        if self.selector.inside_llm:
            _check_split(self)

    @property
    def has_variable_tokens(self) -> bool:
        """Whether the number of visual tokens depends on the picture."""
        return "tokens" in self.dims

    @property
    def llm_graphs(self) -> tuple[str, ...]:
        """Keys of the graphs that hold the decoder, in the order in which they run."""
        return ("llm_front", "llm_back") if self.selector.inside_llm else ("llm",)

    @property
    def flags_without_cuda(self) -> list[str]:
        """What was chosen at export that ONNX Runtime has no CUDA kernels for."""
        return flags_without_cuda(
            dialect=self.dialect,
            dtype=self.dtype,
            bits=None if self.quant is None else self.quant.bits,
            vision_quant=self.vision_quant,
            prefill_quant=self.prefill_quant,
        )

    @property
    def runs_on_cuda(self) -> bool:
        """Whether ONNX Runtime has CUDA kernels for all of it."""
        return not self.flags_without_cuda

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

        Only the baseline needs room for every token there; but where N varies, a long text with
        a small picture loses next to nothing.
        """
        if self.baseline or self.has_variable_tokens:
            return 0
        return self.selector.num_image_tokens - self.selector.num_kept

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
        """The text of ``manifest.json``: the same manifest always gives the same text.

        It ends with a checksum of all fields, since everything else is checked against them.
        """
        fields = parse(dump(self))
        signed = {**fields, "checksum": checksum(fields)}
        return json.dumps(signed, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            EngineDirectoryError: for another schema version (looked at before everything
                else), invalid JSON, any field that is missing, unknown, or has a type or
                value that it cannot have (the message names the field), and fields that were
                changed since.
        """
        value = parse(text)
        _check_schema_version(value.get("schema_version"))
        stored = value.pop("checksum", None)
        manifest = read_dataclass(cls, value)
        if stored != checksum(value):
            raise FieldError(
                "checksum",
                "is not that of the fields: the file was changed since the export",
                expected=checksum(value),
                found="none" if stored is None else stored,
            )
        return manifest


def _with_cache_length(tensors: tuple[TensorSpec, ...], slots: int) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(tensor, shape=tuple(slots if dim == CACHE_LENGTH else dim for dim in tensor.shape))
        for tensor in tensors
    )


def _check_counts(manifest: Manifest) -> None:
    """The selector's counts are those of the graph that selects, where its shape says so."""
    if "vision" not in manifest.graphs:
        return
    shapes = {tensor.name: tensor.shape for tensor in manifest.graphs["vision"].outputs}
    for field, name in (("num_image_tokens", "image_features"), ("num_kept", "selection_order")):
        size = (shapes.get(name) or ("any",))[0]
        found = getattr(manifest.selector, field)
        check(isinstance(size, str) or size == found, f"selector.{field}", size, found)


def _check_decoders(manifest: Manifest) -> None:
    """Positions and caches of the decoder's graphs are those that the runtime will make."""
    kv, axes, count = manifest.kv_cache, manifest.model.position_axes, 0
    for name in manifest.llm_graphs:
        if name not in manifest.graphs:
            return
        for tensor in manifest.graphs[name].inputs:
            if tensor.name == "position_ids":
                rank = 2 if axes == 1 else 3
                found = len(tensor.shape)
                check(found == rank, "model.position_axes", f"that of {found} dimensions", axes)
            if tensor.name.startswith("past_key_"):
                count += 1
                found_sizes = (tensor.shape[1], tensor.shape[3], tensor.dtype)
                sizes = (kv.num_kv_heads, kv.head_dim, kv.dtype)
                check(found_sizes == sizes, "kv_cache", found_sizes, sizes)
    # Both halves together have no more caches than there are layers.
    check(count <= kv.num_layers, "kv_cache.num_layers", f"at least {count}", kv.num_layers)


def _check_planes(manifest: Manifest) -> None:
    """What later decoder layers add comes from every graph that encodes pictures."""
    decoders = [manifest.graphs[name] for name in manifest.llm_graphs if name in manifest.graphs]
    taken = {
        tensor.name
        for graph in decoders
        for tensor in graph.inputs
        if tensor.name.startswith("deepstack_")
    }
    for name in ("vision", "vision_plugin", "vision_features"):
        if (graph := manifest.graphs.get(name)) is not None:
            given = {tensor.name for tensor in graph.outputs}
            missing = ", ".join(sorted(taken - given))
            check(not missing, f"graphs.{name}.outputs", "all that the decoder adds", missing)


def _check_split(manifest: Manifest) -> None:
    """Check what a selector inside the LLM needs of the whole."""
    layer, layers = manifest.selector.parameters.get("layer"), manifest.kv_cache.num_layers
    check(
        type(layer) is int and 0 < layer < layers,
        "selector.parameters.layer",
        f"1 to {layers - 1}: the model has {layers} layers",
        layer,
    )
    for name in manifest.llm_graphs:
        check(name in manifest.graphs, f"graphs.{name}", "a half of the decoder", "nothing")
    if (selection := manifest.graphs.get("llm_selection")) is not None:
        names = {tensor.name for tensor in selection.inputs}
        check(
            names <= _SELECTION_INPUTS,
            "graphs.llm_selection.inputs",
            ", ".join(sorted(_SELECTION_INPUTS)),
            ", ".join(sorted(names)),
        )


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
        fix="install the divprune-edge that wrote it, or a newer one" if newer else RE_EXPORT,
    )
