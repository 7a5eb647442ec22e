"""Everything that is decided before the first engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.backends.cuda.cuda_device import CudaDevice, find_cuda_device
from divprune.runtime.backends.tensorrt.build.build_engine import (
    DECODER_PARTS,
    SMALLEST_WORKSPACE_MIB,
    EngineTask,
)
from divprune.runtime.backends.tensorrt.engine_record import (
    ENGINES,
    PICTURE_GRAPHS,
    BuildOptions,
    EngineRecord,
    Problem,
    find_problem,
    read_record,
)
from divprune.runtime.backends.tensorrt.library import TensorRT, require_tensorrt
from divprune.runtime.backends.tensorrt.build.memory_limit import workspace_limit
from divprune.runtime.backends.tensorrt.profiles import (
    llm_profiles,
    picture_profiles,
    profile_shapes,
)
from divprune.runtime.backends.tensorrt.build.selection_choice import (
    LOOP,
    SelectionChoice,
    choose_selection,
)
from divprune.runtime.backends.tensorrt.surroundings import (
    Surroundings,
    surroundings,
    target_capabilities,
)
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from divprune.runtime.backends.tensorrt.profiles import Ranges
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["BuildPlan", "BuildRequest", "LanePlan", "make_build_plan"]

_GRAPHS = {*PICTURE_GRAPHS, *DECODER_PARTS, *(f"{part}_tensorrt" for part in DECODER_PARTS)}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Options of ``divprune-build``.

    Attributes:
        target_cc: Compute capabilities; empty for the GPU of this machine.
        workspace_mib: None lets `workspace_limit` decide.
        plugin: Whether the selection may be the plugin.
        weight_streaming: Whether weights may stay in host memory at run time.
        force: Build even what is valid.
    """

    target_cc: tuple[str, ...] = ()
    workspace_mib: int | None = None
    plugin: bool = True
    weight_streaming: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < SMALLEST_WORKSPACE_MIB:
            raise OptionError(
                "--workspace is too small",
                expected=f"at least {SMALLEST_WORKSPACE_MIB} (MiB)",
                found=self.workspace_mib,
            )


@dataclass(frozen=True, slots=True)
class LanePlan:
    """The engines of one library for one compute capability.

    ``problem`` is why they have to be built; None where valid ones are there.
    """

    folder: Path
    surroundings: Surroundings
    tasks: tuple[EngineTask, ...]
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """The plan of a ``divprune-build`` run."""

    directory: EngineDirectory
    library: TensorRT
    device: CudaDevice | None
    selection: SelectionChoice
    options: BuildOptions
    lanes: tuple[LanePlan, ...]

    def graph_bytes(self) -> int:
        """Size of all graphs, about that of the engines of one lane."""
        manifest = self.directory.manifest
        names = {n for n in manifest.files if n.endswith((".onnx", ".data"))}
        return sum(manifest.files[name].size for name in names)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--dry-run --json`` prints."""
        return {
            "engine_dir": str(self.directory.path),
            "library": self.library.name,
            "library_version": self.library.version,
            "selection": self.selection.realisation,
            "selection_reason": self.selection.reason,
            "workspace_bytes": self.options.workspace_bytes,
            "weight_streaming": self.options.weight_streaming,
            "lanes": [
                {
                    "folder": f"{ENGINES}/{lane.surroundings.lane}",
                    "compute_capability": lane.surroundings.compute_capability,
                    "device_name": lane.surroundings.device_name,
                    "build": lane.problem is not None,
                    "reason": lane.problem and lane.problem.what,
                    "engines": {
                        task.name: {
                            "graph": self.directory.manifest.graphs[task.graph].path,
                            "profiles": [str(profile) for profile in task.profiles],
                        }
                        for task in lane.tasks
                    },
                }
                for lane in self.lanes
            ],
        }


def make_build_plan(directory: EngineDirectory, request: BuildRequest) -> BuildPlan:
    """Find the library and the GPU, and decide what is to be built.

    Raises:
        BackendError: if the library or a GPU is missing, or the library is too old.
        OptionError: for a compute capability that cannot be built for.
        UnsupportedError: for a directory whose graphs these engines cannot chain.
    """
    manifest = directory.manifest
    library = require_tensorrt(manifest)
    _require_known_graphs(manifest)
    device = find_cuda_device()
    capabilities = target_capabilities(library, device, request.target_cc)
    here = device if device and device.compute_capability in capabilities else None
    options = BuildOptions(
        workspace_bytes=request.workspace_mib << 20
        if request.workspace_mib is not None
        else workspace_limit(manifest, here),
        plugin=request.plugin,
        weight_streaming=request.weight_streaming,
    )
    selection = choose_selection(library, manifest, plugin=request.plugin)
    lanes = tuple(
        _plan_lane(directory, surroundings(library, each, device), selection, options, request)
        for each in capabilities
    )
    return BuildPlan(directory, library, device, selection, options, lanes)


def _plan_lane(
    directory: EngineDirectory,
    target: Surroundings,
    selection: SelectionChoice,
    options: BuildOptions,
    request: BuildRequest,
) -> LanePlan:
    capability = target.compute_capability
    tasks = tuple(
        EngineTask(name, graph, profiles, capability, options)
        for name, graph, profiles in _engines(directory.manifest, selection)
    )
    folder = directory.path / ENGINES / target.lane
    problem = _why_build(directory, folder, target, tasks, selection, request)
    return LanePlan(folder, target, tasks, problem)


def _engines(
    manifest: Manifest, selection: SelectionChoice
) -> Iterator[tuple[str, str, tuple[Ranges, ...]]]:
    """Name, graph and profiles of every engine."""
    yield "vision", selection.graph, picture_profiles(manifest, selection.graph)
    if "full" in manifest.graphs:
        yield "full", "full", picture_profiles(manifest, "full")
    for part in manifest.llm_graphs:
        # The same graph and weights, with a mark on Attention that only TensorRT reads.
        marked = f"{part}_tensorrt"
        graph = marked if marked in manifest.graphs else part
        profiles = llm_profiles(manifest, part)
        for profile in profiles:
            profile_shapes(manifest.graphs[graph], profile)
        yield part, graph, profiles
    if "llm_selection" in manifest.graphs:
        yield "llm_selection", "llm_selection", picture_profiles(manifest, "llm_selection")
    # The selection alone is there to be timed, so it has to do what the vision engine does.
    alone = "selection" if selection.realisation == LOOP else "selection_plugin"
    if alone in manifest.graphs:
        yield "selection", alone, picture_profiles(manifest, alone)


def _why_build(
    directory: EngineDirectory,
    folder: Path,
    target: Surroundings,
    tasks: tuple[EngineTask, ...],
    selection: SelectionChoice,
    request: BuildRequest,
) -> Problem | None:
    """Why engines are to be built; None where those that are there are what is asked for."""
    if request.force:
        return Problem("--force was given", "new engines", "--force")
    record = read_record(folder)
    if isinstance(record, Problem):
        return record
    return find_problem(directory, record, target) or _other_options(
        record, tasks, selection, request
    )


def _other_options(
    record: EngineRecord,
    tasks: tuple[EngineTask, ...],
    selection: SelectionChoice,
    request: BuildRequest,
) -> Problem | None:
    options = tasks[0].options
    pairs: list[tuple[str, object, object]] = [
        ("engines", ", ".join(sorted(t.name for t in tasks)), ", ".join(sorted(record.engines))),
        ("selection", selection.realisation, record.selection),
        ("weight streaming", options.weight_streaming, record.options.weight_streaming),
    ]
    if request.workspace_mib is not None:  # a reckoned limit moves with the free memory
        pairs.append(("workspace", options.workspace_bytes, record.options.workspace_bytes))
    for what, expected, found in pairs:
        if expected != found:
            return Problem(f"the engines have another {what}", str(expected), str(found))
    return None


def _require_known_graphs(manifest: Manifest) -> None:
    if unknown := set(manifest.graphs) - _GRAPHS:
        raise UnsupportedError(
            f"engines for selector {manifest.selector.name} cannot be built: the TensorRT backend"
            " does not know what to do with some of its graphs",
            expected=", ".join(sorted(_GRAPHS)),
            found=", ".join(sorted(unknown)),
            fix="export with another --selector, or "
            + export_command(manifest, target="onnxruntime"),
        )
