"""Imports point one way: from command lines down to the directory and its errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "export", "plugins", "runtime")

# From the ground up. A module imports from its own layer and from those below it.
LAYERS = (
    ("divprune.runtime.errors", "divprune.runtime.memory"),
    ("divprune.runtime.directory", "divprune.plugins"),
    ("divprune.runtime.backends.cuda",),
    ("divprune.runtime.inputs",),
    ("divprune.runtime.families",),
    ("divprune.configs",),
    ("divprune.runtime.backends",),
    ("divprune.runtime.generation",),
    ("divprune.runtime.pipeline",),
    ("divprune.runtime.reports", "divprune.runtime.serving"),
    ("divprune.runtime.cli", "divprune.export"),
)
# Export computes with what both sides share; it neither runs a model nor reports.
NOT_FOR_EXPORT = ("backends", "pipeline", "reports", "serving", "cli")
# Command lines outside runtime/cli: they share its options and its handling of errors.
COMMAND_LINES = (
    "divprune.export.cli",
    "divprune.export.checkpoint.random.__main__",
    "divprune.plugins.compile_ptx",
)
FRONT = "divprune.runtime"  # holds the version, and loads everything else when it is asked for
GUARD = "divprune.runtime.cli.main_guard"

LARGEST_FOLDER = 12
# Of the exporter: a folder imports from those named before it.
EXPORT_FOLDERS = [
    *("graphs", "selection", "families", "checkpoint", "decoder"),
    *("planning", "vision", "verify", "output"),
]


def modules() -> dict[str, Path]:
    found = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = ("divprune", *file.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imports(tree: ast.AST, *, types: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules of ours that a tree imports, and whether only type checkers see it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, types) for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield (inner if inner in MODULES else node.module), types
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                yield from imports(ast.Module([statement], []), types=True)
        else:
            yield from imports(node, types=types)


def arrows() -> dict[str, dict[str, bool]]:
    """For each module what it imports; True where every import is for type checkers only."""
    graph: dict[str, dict[str, bool]] = {}
    for module, file in MODULES.items():
        found = graph.setdefault(module, {})
        for name, types in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if name != module:
                found[name] = types and found.get(name, True)
    return graph


ARROWS = arrows()


def layer(module: str) -> int:
    """The layer of the longest prefix that is named."""
    prefixes = [
        (len(prefix), place)
        for place, names in enumerate(LAYERS)
        for prefix in names
        if f"{module}.".startswith(f"{prefix}.")
    ]
    return max(prefixes)[1] if prefixes else len(LAYERS)


def place_in_export(module: str) -> int:
    """The place of a module's folder in EXPORT_FOLDERS; those of the runtime come before all."""
    if module in COMMAND_LINES:
        return len(EXPORT_FOLDERS)
    parts = module.split(".")[1:3]
    if parts[0] != "export":
        return -1
    return EXPORT_FOLDERS.index(parts[1]) if parts[-1] in EXPORT_FOLDERS else len(EXPORT_FOLDERS)


def circle(graph: dict[str, list[str]]) -> list[str] | None:
    """Modules that import one another in a ring; None without any."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        done.add(module)
        rings = (walk(other, [*path, module]) for other in graph.get(module, ()))
        return next((ring for ring in rings if ring), None)

    return next((ring for module in graph if (ring := walk(module, []))), None)


def test_a_circle_is_found() -> None:
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions count; those for type checkers load nothing."""
    graph = {
        module: [other for other, types in found.items() if not types]
        for module, found in ARROWS.items()
    }
    assert circle(graph) is None


@pytest.mark.parametrize("module", [name for name in MODULES if name != FRONT])
def test_imports_point_down(module) -> None:
    """Types may point up: the backends' protocol is written in terms of what comes above."""
    allowed = {FRONT} | ({GUARD} if module in COMMAND_LINES else set())
    wrong = [
        other
        for other, types in ARROWS[module].items()
        if not types and other not in allowed and layer(other) > layer(module)
    ]
    assert not wrong, f"{module} imports from above"


@pytest.mark.parametrize("module", [name for name in MODULES if ".runtime" not in name])
def test_export_configs_and_plugins_do_not_run_models(module) -> None:
    allowed = {GUARD} if module in COMMAND_LINES else set()
    below = tuple(f"divprune.runtime.{part}" for part in NOT_FOR_EXPORT)
    wrong = [other for other in ARROWS[module] if other.startswith(below) and other not in allowed]
    assert not wrong, f"{module} imports what runs a model"


def test_folders_of_export_import_from_those_before_them() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, found in ARROWS.items()
        for other, types in found.items()
        if not types and place_in_export(module) < place_in_export(other)
    ]
    assert not wrong


def test_runtime_knows_nothing_of_export() -> None:
    wrong = [
        (module, other)
        for module, found in ARROWS.items()
        for other in found
        if not module.startswith("divprune.export") and other.startswith("divprune.export")
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["export", "runtime"])
def test_the_top_can_be_taken_in_at_a_glance(folder) -> None:
    entries = [
        path.name
        for path in (ROOT / folder).iterdir()
        if not path.name.startswith((".", "__pycache__"))
    ]
    assert len(entries) <= LARGEST_FOLDER, sorted(entries)


def test_pyright_looks_behind_every_link() -> None:
    """It does not follow links by itself, and would pass for having looked at nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    links = {f"src/divprune/{folder}" for folder in FOLDERS}
    assert links | {"src"} == set(project["tool"]["pyright"]["include"])
    assert {path.name for path in (ROOT / "src" / "divprune").iterdir() if path.is_symlink()} == {
        *FOLDERS
    }
