"""The record beside built engines: what they were made of and for, read before they are.

``engines/<lane>/record.json``. An engine whose record does not fit is never given to TensorRT:
a wrong one can take minutes to load, fail without a reason, or end the process.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from divprune.runtime.backends.tensorrt.profiles import picture_profiles
from divprune.runtime.backends.tensorrt.surroundings import Surroundings, difference
from divprune.runtime.directory.file_hash import HashCache
from divprune.runtime.directory.manifest_json import dump, parse, read_dataclass
from divprune.runtime.errors import BackendError, EngineDirectoryError

if TYPE_CHECKING:
    from divprune.runtime.directory.engine_directory import EngineDirectory

__all__ = [
    "ENGINES",
    "PICTURE_GRAPHS",
    "RECORD_NAME",
    "BuildOptions",
    "BuiltEngine",
    "EngineRecord",
    "Problem",
    "build_command",
    "find_problem",
    "graph_hashes",
    "read_record",
    "require_any_engines",
    "require_record",
]

ENGINES = "engines"
RECORD_NAME = "record.json"
PICTURE_GRAPHS = (
    "vision",
    "vision_plugin",
    "selection",
    "selection_plugin",
    "full",
    "llm_selection",
)
RECORD_VERSION = 2


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Build options that change the engines.

    Attributes:
        workspace_bytes: Memory that a kernel may use while it is chosen and run.
        plugin: Whether the selection may be the plugin.
        weight_streaming: Whether weights may stay in host memory at run time.
    """

    workspace_bytes: int
    plugin: bool
    weight_streaming: bool


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One engine file.

    Attributes:
        path: In the folder of its lane.
        sha256: Of its bytes.
        size: Bytes.
        graph: Key of ``manifest.graphs``.
        graph_files: SHA-256 of each graph file that it was built from.
        profiles: Names of its optimisation profiles; of one for pictures the ranges too, which
            the graph does not tell.
    """

    path: str
    sha256: str
    size: int
    graph: str
    graph_files: dict[str, str]
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The content of ``record.json``.

    ``selection`` is how the greedy loop is realised: ``loop`` (ONNX), ``aot`` (plugin inside
    the engine) or ``ipluginv3`` (plugin that the process registers). ``engines`` has the keys
    ``vision``, ``llm`` and, realised alike, ``selection``; for a selector inside the LLM
    ``vision``, ``llm_front``, ``llm_back`` and, if it chooses, ``llm_selection``. ``full`` is the
    vision graph of the full picture, where ``vision`` makes a smaller one of it.
    """

    record_version: int
    tool_version: str
    surroundings: Surroundings
    options: BuildOptions
    selection: str
    engines: dict[str, BuiltEngine]

    def to_json(self) -> str:
        """The text of ``record.json``."""
        return dump(self)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why engines cannot be used: what happened, what was expected, what was found."""

    what: str
    expected: str
    found: str

    def error(
        self, directory: EngineDirectory, options: BuildOptions | None = None
    ) -> BackendError:
        """The error for it, with the command that mends it; ``options`` are of the last build."""
        fix = build_command(directory.path, options)
        return BackendError(self.what, expected=self.expected, found=self.found, fix=fix)


def build_command(path: Path, options: BuildOptions | None = None) -> str:
    """The command that builds the engines of a directory, as they were built before."""
    words = ["divprune-build", str(path)]
    if options is not None:
        words += ["--weight-streaming"] if options.weight_streaming else []
        words += [] if options.plugin else ["--no-plugin"]
    return shlex.join(words)


def graph_hashes(directory: EngineDirectory, graph: str) -> dict[str, str]:
    """SHA-256 of the files of a graph: the ONNX file and the external data beside it."""
    files, path = directory.manifest.files, directory.manifest.graphs[graph].path
    folder = PurePosixPath(path).parent
    data = [n for n in files if n.endswith(".data") and PurePosixPath(n).parent == folder]
    return {name: files[name].sha256 for name in sorted([path, *data])}


def read_record(lane: Path) -> EngineRecord | Problem:
    """The record of a lane, or why there is none that can be read."""
    path = lane / RECORD_NAME
    try:
        content = parse(path.read_text(encoding="utf-8"))
        version = content.get("record_version")
        if version != RECORD_VERSION:
            return Problem(
                f"{path} is of another version of divprune-edge",
                f"record version {RECORD_VERSION}",
                str(version),
            )
        return read_dataclass(EngineRecord, content)
    except FileNotFoundError:
        return Problem(f"{lane} has no engines", RECORD_NAME, "no such file")
    except (OSError, UnicodeDecodeError, EngineDirectoryError) as error:
        found = str(error.found) if isinstance(error, EngineDirectoryError) else str(error)
        return Problem(f"{path} cannot be read", "the record of a build", found)


def find_problem(
    directory: EngineDirectory, record: EngineRecord, here: Surroundings
) -> Problem | None:
    """Whether recorded engines belong to these graphs and this machine, and are whole.

    Args:
        directory: The engine directory, verified.
        record: What ``read_record`` gave.
        here: Library and GPU that are to run them.
    """
    lane = directory.path / ENGINES / here.lane
    if differing := difference(record.surroundings, here):
        what, built, found = differing
        return Problem(f"the engines in {lane} were built for another {what}", built, found)
    for engine in record.engines.values():
        problem = _other_graph(directory, lane, engine) or _other_ranges(directory, lane, engine)
        if problem := problem or _damaged(lane, engine):
            return problem
    return None


def require_any_engines(directory: EngineDirectory) -> None:
    """Refuse a directory that was never built, whatever is installed on this machine.

    Raises:
        BackendError: if it has no engines at all.
    """
    if not _lanes(directory):
        where = f"engines in {directory.path / ENGINES}"
        raise Problem(f"{directory.path} has not been built yet", where, "none").error(directory)


def require_record(directory: EngineDirectory, here: Surroundings) -> EngineRecord:
    """The record of the engines for this machine, checked: they may be loaded.

    Raises:
        BackendError: if there are none, they were built for or with something else, from other
            graphs, or are damaged; the message has what was expected and what was found.
    """
    require_any_engines(directory)
    lane, others = directory.path / ENGINES / here.lane, _lanes(directory)
    if here.lane not in others:
        raise Problem(
            f"{directory.path} has no engines for this machine",
            f"{ENGINES}/{here.lane} ({here.device_name})",
            ", ".join(others),
        ).error(directory)
    record = read_record(lane)
    if isinstance(record, Problem):
        raise record.error(directory)
    if problem := find_problem(directory, record, here):
        raise problem.error(directory, record.options)
    return record


def _lanes(directory: EngineDirectory) -> list[str]:
    """Folders with finished engines; what a killed build left begins with a dot."""
    records = (directory.path / ENGINES).glob(f"[!.]*/{RECORD_NAME}")
    return sorted(path.parent.name for path in records)


def _other_graph(directory: EngineDirectory, lane: Path, engine: BuiltEngine) -> Problem | None:
    if engine.graph not in directory.manifest.graphs:
        return Problem(
            f"{lane / engine.path} was built from a graph that this directory does not have",
            ", ".join(sorted(directory.manifest.graphs)),
            engine.graph,
        )
    expected = graph_hashes(directory, engine.graph)
    for name in sorted(expected.keys() | engine.graph_files.keys()):
        ours, built = expected.get(name), engine.graph_files.get(name)
        if ours != built:
            return Problem(
                f"{lane / engine.path} was built from another {name}: exported again since",
                f"SHA-256 {ours}",
                f"SHA-256 {built}",
            )
    return None


def _other_ranges(directory: EngineDirectory, lane: Path, engine: BuiltEngine) -> Problem | None:
    """An export for larger pictures may have the very same graph."""
    if engine.graph not in PICTURE_GRAPHS:
        return None
    profiles = picture_profiles(directory.manifest, engine.graph)
    expected = tuple(profile.record for profile in profiles)
    if expected == engine.profiles:
        return None
    return Problem(
        f"{lane / engine.path} was built for pictures of other sizes: exported again since",
        "; ".join(expected) or "pictures of one size",
        "; ".join(engine.profiles) or "pictures of one size",
    )


def _damaged(lane: Path, engine: BuiltEngine) -> Problem | None:
    path = lane / engine.path
    what = f"{path} is not the engine that was built"
    try:
        size = path.stat().st_size
        if size != engine.size:
            return Problem(what, f"{engine.size} bytes", f"{size} bytes")
        cache = HashCache()
        digest = cache.sha256(path)
        cache.save()
    except OSError as error:
        return Problem(what, f"{engine.size} bytes", str(error))
    if digest != engine.sha256:
        return Problem(what, f"SHA-256 {engine.sha256}", f"SHA-256 {digest}")
    return None
