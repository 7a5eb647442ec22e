"""One graph to one engine file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.backends.tensorrt.engine_file import EngineFile, make_stream_writer
from divprune.runtime.backends.tensorrt.engine_record import BuildOptions, BuiltEngine, graph_hashes
from divprune.runtime.backends.tensorrt.build.parse import parse_graph
from divprune.runtime.backends.tensorrt.install_hint import install_command
from divprune.runtime.backends.tensorrt.logger_bridge import lacks_memory
from divprune.runtime.backends.tensorrt.profiles import Ranges, profile_shapes
from divprune.runtime.backends.tensorrt.build.progress import OnStep, make_monitor
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.library import TensorRT
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["DECODER_PARTS", "SMALLEST_WORKSPACE_MIB", "EngineTask", "build_engine"]

log = logging.getLogger(__name__)

TIMING_CACHE = "timing.cache"
SMALLEST_WORKSPACE_MIB = 16
DECODER_PARTS = ("llm", "llm_front", "llm_back")
_NO_KERNEL = "could not find any implementation for node"


@dataclass(frozen=True, slots=True)
class EngineTask:
    """One engine to build.

    Attributes:
        name: A key of ``EngineRecord.engines``; its file is ``<name>.engine``.
        graph: Key of ``manifest.graphs``.
        profiles: Of its shapes; empty where they are static.
        compute_capability: What it is for.
        options: Memory and flags.
    """

    name: str
    graph: str
    profiles: tuple[Ranges, ...]
    compute_capability: str
    options: BuildOptions

    @property
    def is_decoder(self) -> bool:
        """Whether it is a part of the decoder: its weights may stay in host memory, its steps are
        recorded."""
        return self.name in DECODER_PARTS


def build_engine(
    library: TensorRT,
    logger: Any,
    directory: EngineDirectory,
    task: EngineTask,
    folder: Path,
    on_step: OnStep,
) -> BuiltEngine:
    """Build an engine into ``folder``; a timing cache there is used and brought up to date.

    Args:
        library: TensorRT or TensorRT-RTX.
        logger: From ``make_logger``.
        directory: The engine directory.
        task: What to build.
        folder: Where the engine goes.
        on_step: Is told the progress.

    Raises:
        BackendError: if the parser or the builder refuses the graph.
        KeyboardInterrupt: after Ctrl-C.
        OSError: if it cannot be written.
    """
    spec = directory.manifest.graphs[task.graph]
    builder = library.module.Builder(logger)
    if builder is None:
        raise _build_error(library, directory.manifest, task, logger.errors())
    network, parser = parse_graph(
        library,
        builder,
        logger,
        directory.file(spec.path),
        spec,
        fix=_other_graph(library, directory.manifest, task.graph),
    )
    config = _configure(library, builder, task)
    _add_profiles(builder, config, directory, task)
    timing_cache = None if library.is_rtx else _load_timing_cache(config, folder)
    monitor = make_monitor(library, on_step)
    config.progress_monitor = monitor
    with EngineFile(folder / f"{task.name}.engine") as file:
        built = _build_to_file(library, builder, network, config, file)
    del parser
    monitor.reraise()
    if not built:
        raise _build_error(library, directory.manifest, task, logger.errors())
    if timing_cache is not None:
        blob = config.get_timing_cache().serialize()
        (folder / TIMING_CACHE).write_bytes(bytes(memoryview(blob)))
    return BuiltEngine(
        path=f"{task.name}.engine",
        sha256=file.sha256,
        size=file.size,
        graph=task.graph,
        graph_files=graph_hashes(directory, task.graph),
        profiles=tuple(profile.record for profile in task.profiles),
    )


def _configure(library: TensorRT, builder: Any, task: EngineTask) -> Any:
    trt, config = library.module, builder.create_builder_config()
    pool = trt.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, task.options.workspace_bytes)
    # The selection compares float32 similarities; TF32 would round them to 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    streams = task.options.weight_streaming and task.is_decoder
    if streams:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if library.is_rtx:
        if task.is_decoder and not streams:  # the library refuses both together
            # Otherwise a run may allocate, which a recording of decode steps cannot hold.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        name = "SM" + task.compute_capability.replace(".", "")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    return config


def _add_profiles(builder: Any, config: Any, directory: EngineDirectory, task: EngineTask) -> None:
    spec = directory.manifest.graphs[task.graph]
    for profile in task.profiles:
        added = builder.create_optimization_profile()
        for name, shapes in profile_shapes(spec, profile).items():
            added.set_shape(name, *shapes)
        config.add_optimization_profile(added)


def _load_timing_cache(config: Any, folder: Path) -> Any:
    path = folder / TIMING_CACHE
    content = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(content)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        log.info("%s is of another GPU or version; kernels are timed anew", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _build_to_file(
    library: TensorRT, builder: Any, network: Any, config: Any, file: EngineFile
) -> bool:
    """Build; False where the builder gave nothing. Streams where the library can."""
    if not hasattr(builder, "build_serialized_network_to_stream"):
        blob = builder.build_serialized_network(network, config)
        return blob is not None and file.write(blob) > 0
    writer = make_stream_writer(library, file)
    done = builder.build_serialized_network_to_stream(network, config, writer)
    writer.reraise()
    return bool(done) and file.size > 0


def _build_error(
    library: TensorRT, manifest: Manifest, task: EngineTask, errors: list[str]
) -> BackendError:
    path, limit = manifest.graphs[task.graph].path, task.options.workspace_bytes >> 20
    found = "\n            ".join(errors or ["nothing, and no reason given"])
    if lacks_memory(errors):
        smaller = f"--workspace {limit // 2}, or " if limit // 2 >= SMALLEST_WORKSPACE_MIB else ""
        return BackendError(
            f"{library.title} ran out of memory while it built {path}",
            expected=f"room for the weights of the graph and {limit} MiB of workspace",
            found=found,
            fix=f"{smaller}close other programs (on a Jetson the desktop: sudo systemctl isolate"
            " multi-user.target), add swap, or export with a smaller --max-seq-len",
        )
    if any(_NO_KERNEL in error.lower() for error in errors):
        return BackendError(
            f"{library.title} has no kernel for a part of {path} that makes do with the workspace",
            expected=f"one that needs at most {limit} MiB",
            found=found,
            fix=f"--workspace {max(256, 2 * limit)}, or if that does not help: "
            + _other_graph(library, manifest, task.graph),
        )
    return BackendError(
        f"{library.title} cannot build {path} for compute capability {task.compute_capability}",
        expected="an engine",
        found=found,
        fix=_other_graph(library, manifest, task.graph),
    )


def _other_graph(library: TensorRT, manifest: Manifest, graph: str) -> str:
    """The advice for a graph that the library does not take."""
    if graph.endswith("_plugin"):
        return "--no-plugin, which selects with an ONNX Loop"
    return f"{export_command(manifest)}, and build that; or {install_command(library.name)}"
