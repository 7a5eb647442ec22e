"""A built engine, loaded: one execution context a profile, all on one activation scratch.

Built, not run: no TensorRT engine of this project has been executed on a GPU yet. The order of
calls, shapes and addresses are tested with stand-ins that compute the same graphs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.backends.cuda.buffers import DeviceBuffer, align
from divprune.runtime.backends.cuda.cuda import out_of_memory
from divprune.runtime.backends.tensorrt.engine_file import deserialize
from divprune.runtime.backends.tensorrt.logger_bridge import lacks_memory
from divprune.runtime.backends.tensorrt.runtime_kernels import RuntimeKernels
from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.cuda import Cuda
    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["Engine", "Residency", "Scratch", "Session"]

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


class Scratch:
    """Memory for activations; engines run one after the other, so the largest need is enough."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._buffer: DeviceBuffer | None = None

    def reserve(self, num_bytes: int, stream: Any) -> DeviceBuffer:
        """A buffer of at least ``num_bytes``; it moves when it has to grow."""
        if self._buffer is None or self._buffer.num_bytes < num_bytes:
            self._cuda.synchronize(stream)
            if self._buffer is not None:
                self._buffer.free()
            self._buffer = None
            self._buffer = DeviceBuffer(self._cuda, align(num_bytes))
        return self._buffer


@dataclass(frozen=True, slots=True)
class Session:
    """Objects that all engines of a directory share.

    Attributes:
        library: TensorRT or TensorRT-RTX.
        logger: From ``make_logger``.
        cuda: The GPU.
        stream: On which everything runs.
        scratch: Memory for activations.
        build_command: What mends an engine that does not load.
    """

    library: TensorRT
    logger: Any
    cuda: Cuda
    stream: Any
    scratch: Scratch
    build_command: str


class Engine:
    """One engine file, deserialised.

    Args:
        session: What it shares with the others.
        path: The file; its record was checked before.
        names: Inputs and outputs of the graph it was built from.
        streamed_budget: Bytes of weights that may be on the device at once; None where the
            engine was not built for weight streaming.

    Raises:
        BackendError: if it does not load, or is of another graph.
    """

    def __init__(
        self,
        session: Session,
        path: Path,
        names: frozenset[str],
        streamed_budget: Callable[[int], int] | None = None,
    ) -> None:
        self._session, self._path = session, path
        self._engine = self._deserialize()
        found = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if found != names:
            raise BackendError(
                f"{path} has other inputs and outputs than its graph",
                expected=", ".join(sorted(names)),
                found=", ".join(sorted(found)),
                fix=f"{session.build_command} --force",
            )
        self.streams_weights = False
        if streamed_budget is not None:
            weights = int(self._engine.streamable_weights_size)
            budget = streamed_budget(weights)
            self._engine.weight_streaming_budget_v2 = budget
            self.streams_weights = budget < weights
        self._kernels = RuntimeKernels(session.library, self._engine, path)
        self._contexts: dict[tuple[int, int], _Context] = {}

    def run(self, profile: int, shapes: Shapes, addresses: Addresses, number: int = 0) -> None:
        """Enqueue one run.

        Args:
            profile: Index of the optimisation profile.
            shapes: Of the inputs that vary.
            addresses: Of every input and output, on the device.
            number: Which of several contexts of that profile, each with shapes of its own.

        Raises:
            BackendError: if TensorRT refuses.
        """
        session, context = self._session, self._context(profile, number)
        need = int(self._engine.get_device_memory_size_for_profile_v2(profile))
        context.set_scratch(session.scratch.reserve(need, session.stream))
        accepted = all(context.set_shape(name, shape) for name, shape in shapes.items()) and all(
            context.set_address(name, address) for name, address in addresses.items()
        )
        if not (accepted and context.execute(int(session.stream))):
            expected = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or None
            raise self._refusal(f"cannot run {self._path.name}", expected)

    def output_shape(self, profile: int, shapes: Shapes, name: str) -> tuple[int, ...]:
        """The shape that an output is going to have for these shapes of inputs.

        Raises:
            BackendError: if TensorRT refuses them, or cannot tell before it runs.
        """
        context = self._context(profile, 0)
        accepted = all(context.set_shape(each, shape) for each, shape in shapes.items())
        shape = context.shape(name) if accepted else ()
        if not shape or min(shape) < 0:
            what = f"does not tell the shape of {name} in {self._path.name}"
            expected = ", ".join(f"{each} {shape}" for each, shape in shapes.items())
            raise self._refusal(what, expected, str(shape))
        return shape

    def _context(self, profile: int, number: int) -> _Context:
        if (profile, number) not in self._contexts:
            self._contexts[profile, number] = self._make_context(profile)
        return self._contexts[profile, number]

    def is_capturable(self, profile: int, number: int = 0) -> bool:
        """Whether what ``run`` enqueues may be recorded as a CUDA graph."""
        context = self._contexts.get((profile, number))
        return (
            context is not None
            and not self.streams_weights
            and context.is_capturable(int(self._session.stream))
        )

    def _deserialize(self) -> Any:
        session = self._session
        runtime = session.library.module.Runtime(session.logger)
        engine = deserialize(session.library, runtime, self._path)
        if engine is None:
            raise self._refusal(f"cannot load {self._path}", "the engine that was built here")
        self._runtime = runtime  # it has to live as long as its engines
        return engine

    def _refusal(
        self, what: str, expected: str | None, found: str = "no reason given"
    ) -> BackendError:
        """What TensorRT refused; another build of the engine does not help against no memory."""
        session = self._session
        errors = session.logger.errors()
        if lacks_memory(errors):
            return out_of_memory("; ".join(errors))
        return BackendError(
            f"{session.library.title} {what}",
            expected=expected,
            found="; ".join(errors) or found,
            fix=f"{session.build_command} --force",
        )

    def _make_context(self, profile: int) -> _Context:
        session = self._session
        context = self._kernels.make_context(profile)
        stream = int(session.stream)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            what = f"cannot prepare {self._path.name}"
            raise self._refusal(what, f"a context for profile {profile}")
        session.cuda.synchronize(session.stream)
        return _Context(context)


class _Context:
    """An execution context that is told only what is new."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch: DeviceBuffer | None = None

    def set_scratch(self, scratch: DeviceBuffer) -> None:
        if self._scratch is not scratch:
            self._context.set_device_memory(scratch.address, scratch.num_bytes)
            self._scratch = scratch

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._shapes.get(name) == shape:
            return True
        self._shapes.pop(name, None)
        if not self._context.set_input_shape(name, shape):
            return False
        self._shapes[name] = shape
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def set_address(self, name: str, address: int) -> bool:
        if self._addresses.get(name) == address:
            return True
        self._addresses.pop(name, None)
        if not self._context.set_tensor_address(name, address):
            return False
        self._addresses[name] = address
        return True

    def execute(self, stream: int) -> bool:
        return bool(self._context.execute_async_v3(stream))

    def is_capturable(self, stream: int) -> bool:
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX only
        return ask is None or bool(ask(stream))


class Residency:
    """The engines of a directory: all on the device, or in turns where memory is short.

    Args:
        loaders: Load an engine, by name.
        groups: Names of engines that are needed by turns and so stay together.
        together: Whether all fit at once.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], Engine]],
        groups: Sequence[Sequence[str]],
        *,
        together: bool,
    ) -> None:
        self._loaders, self.together = loaders, together
        self._groups = {name: tuple(group) for group in groups for name in group}
        self._loaded: dict[str, Engine] = {}

    def get(self, name: str) -> Engine:
        """The engine, loaded now with its group if it is not; others may have to go."""
        if name not in self._loaded:
            if not self.together:
                self._loaded.clear()
            for each in self._groups[name]:
                self._loaded[each] = self._loaders[each]()
        return self._loaded[name]
