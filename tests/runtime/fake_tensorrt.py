"""A scripted TensorRT: it parses, builds and loads what the script says, and keeps a record.

An engine it builds is a small JSON file that names the ONNX graph. Loaded and run, it computes
that graph with ONNX Runtime on the memory that the context was given addresses of, so that
whatever drives it can be compared with the truth. Graphs that only TensorRT reads (a plugin in
them, Attention marked for it) give way to the portable one beside them. It checks what TensorRT
checks: shapes within the profile, every address set, a scratch that is large enough.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["FakeTensorRT", "ParserError", "Script", "Severity"]

Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
SeekPosition = enum.Enum("SeekPosition", "SET CUR END")
KernelStrategy = enum.Enum("KernelStrategy", "LAZY EAGER NONE")
SCRATCH_PER_ROW = 1000
_PORTABLE = {
    "model.plugin.onnx": "model.onnx",
    "selection.plugin.onnx": "selection.onnx",
    "model.tensorrt.onnx": "model.onnx",
}


@dataclass(frozen=True)
class ParserError:
    """What the parser complains about."""

    number: int
    name: str
    operator: str
    text: str

    def node(self) -> int:
        return self.number

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator

    def desc(self) -> str:
        return self.text


@dataclass
class Script:
    """How the library behaves.

    Attributes:
        version: Of the library.
        parser_errors: The parser fails with these; empty lets it succeed.
        inputs: Names that the parser claims to have read; None for those of the manifest.
        messages: (severity, text) that the builder logs.
        build: ``ok``, ``none`` (the builder returns None), or ``kill`` (the process is killed).
        fail_at: Part of the path of the graph files at which ``build`` and ``parser_errors`` apply;
            the others succeed.
        builder_bytes: Memory that the builder has for the workspace; None for any.
        kernel_bytes: Workspace that the kernels need.
        takes_memory: Whether engines take memory of the device, as much as their graph's weights,
            unless those stay on the host.
        loads: Whether engines can be deserialised.
        streams: Whether the builder can write to a stream.
        reads_streams: Whether engines can be read from one.
        compiles: What TensorRT-RTX adds to a cache of kernels for each context.
        calls: What was called, in order.
    """

    version: str = "10.16.1.11"
    parser_errors: Sequence[ParserError] = ()
    inputs: Sequence[str] | None = None
    messages: Sequence[tuple[str, str]] = ()
    build: str = "ok"
    fail_at: str = "model.onnx"
    builder_bytes: int | None = None
    kernel_bytes: int = 0
    takes_memory: bool = False
    loads: bool = True
    streams: bool = True
    reads_streams: bool = True
    compiles: bytes = b""
    capturable: bool = True
    streamable_bytes: int = 0
    calls: list[tuple[Any, ...]] = field(default_factory=list)


class _Base:
    def __init__(self) -> None:
        self.constructed = True


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.path = Path()
        self.names: dict[str, list[str]] = {"inputs": [], "outputs": []}

    @property
    def num_inputs(self) -> int:
        return len(self.names["inputs"])

    @property
    def num_outputs(self) -> int:
        return len(self.names["outputs"])

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name=self.names["inputs"][index])

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(name=self.names["outputs"][index])


class _Config:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.profiles: list[dict[str, Any]] = []
        self.flags: set[str] = {"TF32"}
        self.progress_monitor: Any = None
        self.limit = 0
        self._cache = b""

    def set_memory_pool_limit(self, pool: Any, limit: int) -> None:
        self._script.calls.append(("limit", pool.name, limit))
        self.limit = limit

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._script.calls.append(("timing cache", cache))
        self._cache = cache
        return not cache.startswith(b"foreign")

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self._cache + b"timed;")


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (low, best, high)


class _Builder:
    def __init__(self, script: Script, logger: Any) -> None:
        assert logger.constructed, "a subclass has to call the constructor of ILogger"
        self._script, self._logger = script, logger
        if script.streams:
            self.build_serialized_network_to_stream = self._to_stream

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config(self._script)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        script = self._script
        assert network.flags == 2, "strongly typed"
        assert "TF32" not in config.flags
        script.calls.append(("build", network.path.name))
        for severity, text in script.messages:
            self._logger.log(Severity[severity], text)
        if refusal := self._refuse_workspace(config.limit):
            self._logger.log(Severity.ERROR, refusal)
            return None
        config.progress_monitor.phase_start("Building", None, 2)
        going = config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        if script.fail_at in str(network.path):
            if script.build == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if script.build == "none":
                return None
        if not going:
            return None
        engine = {
            "graph": str(network.path),
            "version": script.version,
            "profiles": config.profiles,
            "flags": sorted(config.flags),
            "names": network.names,
        }
        return json.dumps(engine).encode()

    def _refuse_workspace(self, limit: int) -> str | None:
        if limit < self._script.kernel_bytes:
            return "Error Code 10: Could not find any implementation for node /MatMul."
        room = self._script.builder_bytes
        if room is not None and limit > room:
            return "Error Code 2: OutOfMemory (no further information)"
        return None

    def _to_stream(self, network: _Network, config: _Config, writer: Any) -> bool:
        content = self.build_serialized_network(network, config)
        return content is not None and writer.write(content) == len(content)


class _Parser:
    def __init__(self, script: Script, network: _Network, logger: Any) -> None:
        self._script, self._network, self._logger = script, network, logger
        self._errors: Sequence[ParserError] = ()

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        network, script = self._network, self._script
        network.path = Path(path)
        root = next(p for p in network.path.parents if (p / "manifest.json").exists())
        manifest = json.loads((root / "manifest.json").read_text())
        relative = network.path.relative_to(root).as_posix()
        (spec,) = (s for s in manifest["graphs"].values() if s["path"] == relative)
        for kind in ("inputs", "outputs"):
            network.names[kind] = [tensor["name"] for tensor in spec[kind]]
        if script.inputs is not None:
            network.names["inputs"] = list(script.inputs)
        self._errors = script.parser_errors if script.fail_at in path else ()
        return not self._errors


class _Context:
    """Runs the ONNX graph on the memory behind the addresses."""

    def __init__(self, engine: _Engine) -> None:
        self._engine, self.profile = engine, 0
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < max(1, len(self._engine.profiles))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.profiles[self.profile][name]
        fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self._shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._engine.shape(name, self._shapes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._engine.names["inputs"] + self._engine.names["outputs"], name
        self._addresses[name] = address
        return address % 256 == 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self._scratch = size

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        if self._scratch < engine.get_device_memory_size_for_profile_v2(self.profile):
            return False
        names = engine.names["inputs"] + engine.names["outputs"]
        if any(name not in self._addresses for name in names):
            return False
        addresses, shapes, profile = dict(self._addresses), dict(self._shapes), self.profile
        engine.script.calls.append(("execute", engine.name, profile, shapes))
        engine.library.enqueue(int(stream), lambda: engine.compute(addresses, shapes))
        return True


class _RuntimeCache:
    """Takes a content that begins as its own do."""

    def __init__(self) -> None:
        self.content = b"kernels:"

    def deserialize(self, content: bytes) -> bool:
        fits = content.startswith(b"kernels:")
        self.content = content if fits else self.content
        return fits

    def serialize(self) -> bytes:
        return self.content


class _RuntimeConfig:
    """Of TensorRT-RTX."""

    def __init__(self, script: Script) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = KernelStrategy.LAZY
        self.strategy: Any = None
        self.cache: Any = None

    @property
    def kernels(self) -> Any:
        return self.dynamic_shapes_kernel_specialization_strategy

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> _RuntimeCache:
        return _RuntimeCache()

    def set_runtime_cache(self, cache: _RuntimeCache) -> bool:
        self.cache = cache
        return True


class _Engine:
    def __init__(self, library: FakeTensorRT, content: dict[str, Any]) -> None:
        self.library, self.script = library, library.script
        self.names, self.profiles = content["names"], content["profiles"]
        self.streams_weights = "WEIGHT_STREAMING" in content.get("flags", ())
        self.path = Path(content["graph"])
        folder = self.path.parent.name
        self.name = f"{folder} selection" if "selection" in self.path.name else folder
        self.weight_streaming_budget_v2 = 0
        self._session: Any = None

    def take_memory(self) -> bool:
        """Whether the device has room for the weights; given back with the engine."""
        files = [self.path, *self.path.parent.glob("*.data")]
        size = 0 if self.streams_weights else sum(file.stat().st_size for file in files)
        status, address = self.library.cuda.cudaMalloc(size)
        if status == 0:
            weakref.finalize(self, self.library.cuda.cudaFree, address)
        return status == 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.names["inputs"] + self.names["outputs"])

    def get_tensor_name(self, index: int) -> str:
        return (self.names["inputs"] + self.names["outputs"])[index]

    @property
    def streamable_weights_size(self) -> int:
        return self.script.streamable_bytes

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.script.streamable_bytes // 2

    def create_runtime_config(self) -> _RuntimeConfig:
        return _RuntimeConfig(self.script)

    def create_execution_context(self, strategy: Any) -> _Context:
        if isinstance(strategy, _RuntimeConfig):
            self.script.calls.append(("context", self.name, strategy.kernels.name))
            strategy.cache.content += self.script.compiles
            strategy = strategy.strategy
        else:
            self.script.calls.append(("context", self.name))
        assert strategy.name == "USER_MANAGED"
        return _Context(self)

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        if not self.profiles:
            return SCRATCH_PER_ROW
        longest = self.profiles[index].get("position_ids", [[1]] * 3)[2]
        return int(SCRATCH_PER_ROW * longest[-1])

    def shape(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Of an output, for inputs of these shapes."""
        session = self._open()
        zeros = {
            node.name: np.zeros(shapes.get(node.name, node.shape), _TYPES[node.type])
            for node in session.get_inputs()
        }
        (value,) = session.run([name], zeros)
        return tuple(value.shape)

    def compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        """Run the graph; delta outputs are cut out of the caches that an in-place graph gives."""
        session = self._open()
        inputs = {
            node.name: _view(addresses[node.name], shapes.get(node.name, node.shape), node.type)
            for node in session.get_inputs()
        }
        for name, value in zip(
            [node.name for node in session.get_outputs()],
            session.run(None, {k: v.copy() for k, v in inputs.items()}),
            strict=True,
        ):
            if name in addresses:
                _write(addresses[name], value)
            delta = name.replace("present_", "new_")
            if delta in addresses and delta != name:
                start = int(inputs["write_indices"][0])
                _write(addresses[delta], value[:, :, start : start + shapes["position_ids"][-1]])

    def _open(self) -> Any:
        import onnxruntime

        if self._session is None:
            path = self.path.with_name(_PORTABLE.get(self.path.name, self.path.name))
            self._session = onnxruntime.InferenceSession(str(path))
        return self._session


class _Runtime:
    def __init__(self, library: FakeTensorRT, logger: Any) -> None:
        self._library = library
        library.loggers.append(logger)

    def deserialize_cuda_engine(self, content: Any) -> _Engine | None:
        self._library.script.calls.append(("deserialize",))
        if not self._library.script.loads:
            self._library.loggers[-1].log(Severity.ERROR, "the plan is not for this platform")
            return None
        if isinstance(content, _Base):
            self._library.script.calls.append(("read",))
            content = _read_all(content)
        try:
            engine = _Engine(self._library, json.loads(bytes(content)))
        except ValueError:
            self._library.loggers[-1].log(Severity.ERROR, "the plan is damaged")
            return None
        if self._library.script.takes_memory and not engine.take_memory():
            text = "Error Code 1: Cuda Runtime (out of memory)"
            self._library.loggers[-1].log(Severity.ERROR, text)
            return None
        return engine


def _read_all(reader: Any) -> bytes:
    """As TensorRT reads: from the start, asking again for what did not come."""
    assert reader.constructed, "a subclass has to call the constructor"
    assert reader.seek(0, SeekPosition.SET)
    pieces = []
    while piece := reader.read(100, 0):
        pieces.append(piece)
    return b"".join(pieces)


class FakeTensorRT:
    """Stands in for the module; ``enqueue`` puts work on a stream of ``cuda``, the fake one."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.__version__ = self.script.version
        self.loggers: list[Any] = []
        self.cuda: Any = None
        self.enqueue: Callable[[int, Callable[[], None]], None] = lambda _, work: work()
        self.ILogger = self.IProgressMonitor = self.IStreamWriter = _Base
        if self.script.reads_streams:
            self.IStreamReaderV2, self.SeekPosition = _Base, SeekPosition
        self.DynamicShapesKernelSpecializationStrategy = KernelStrategy
        self.NetworkDefinitionCreationFlag = enum.IntEnum(
            "Flag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
        )
        self.BuilderFlag = enum.Enum("BuilderFlag", "TF32 WEIGHT_STREAMING REQUIRE_USER_ALLOCATION")
        self.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
        self.ExecutionContextAllocationStrategy = enum.Enum("Strategy", "STATIC USER_MANAGED")

    def Builder(self, logger: Any) -> _Builder:
        return _Builder(self.script, logger)

    def OnnxParser(self, network: _Network, logger: Any) -> _Parser:
        return _Parser(self.script, network, logger)

    def Runtime(self, logger: Any) -> _Runtime:
        return _Runtime(self, logger)


_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
}


def _view(address: int, shape: Sequence[int], kind: str) -> np.ndarray:
    dtype = _TYPES[kind]
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def _write(address: int, value: np.ndarray) -> None:
    value = np.ascontiguousarray(value)
    ctypes.memmove(address, value.ctypes.data, value.nbytes)
