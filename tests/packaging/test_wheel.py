"""What a user gets from `pip install divprune-edge`."""

from __future__ import annotations

import ast
import configparser
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

FOLDERS = ("configs", "export", "plugins", "runtime")
SUFFIXES = {".py", ".yaml", ".html", ".typed", ".cu", ".cuh", ".ptx"}
EXPORT_ONLY = {"torch", "transformers", "optimum", "onnx", "onnx-ir", "onnxscript"}


@pytest.fixture(scope="module")
def archive(wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def metadata(archive: zipfile.ZipFile) -> Message:
    return Parser().parsestr(_dist_info(archive, "METADATA"))


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def _dist_info(archive: zipfile.ZipFile, name: str) -> str:
    (member,) = (n for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
    return archive.read(member).decode()


def _requirements(metadata: Message, extra: str = "") -> set[str]:
    """Names required with ``extra`` that are not required without it."""
    parsed = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    return {
        requirement.name
        for requirement in parsed
        if (requirement.marker is None) == (extra == "")
        and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
    }


def _expected_members(root: Path) -> set[str]:
    members = {f"divprune/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    members |= {path.relative_to(root / "src").as_posix() for path in _optimum_files(root)}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                members.add(f"divprune/{path.relative_to(root).as_posix()}")
    return members


def _optimum_files(root: Path) -> list[Path]:
    return list((root / "src" / "optimum").rglob("*.py"))


def test_wheel_holds_every_source_and_data_file_and_nothing_else(
    archive: zipfile.ZipFile, root: Path
) -> None:
    packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == _expected_members(root), "list new data files in pyproject.toml"


def test_shared_namespaces_have_no_init_file(archive: zipfile.ZipFile) -> None:
    """One `__init__.py` there would hide Optimum's own modules."""
    shared = ("optimum", "optimum/commands", "optimum/commands/register")
    assert not {f"{folder}/__init__.py" for folder in shared} & set(archive.namelist())


def test_wheel_is_pure_python_under_apache_for_python_310(
    archive: zipfile.ZipFile, metadata: Message
) -> None:
    assert "Root-Is-Purelib: true" in _dist_info(archive, "WHEEL")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Apache License" in _dist_info(archive, "licenses/LICENSE")


def test_device_requirements_hold_nothing_of_the_export_side(metadata: Message) -> None:
    expected = {"numpy", "pillow", "tokenizers", "jinja2", "safetensors", "pyyaml", "tqdm"}
    assert _requirements(metadata) == expected


def test_extras_are_those_of_the_three_machines(metadata: Message) -> None:
    extras = {extra: _requirements(metadata, extra) for extra in metadata.get_all("Provides-Extra")}
    device = {"cpu", "gpu", "tensorrt", "tensorrt-rtx"}
    others = {"heif", "video", "serve", "batch"}
    assert extras.keys() == device | others | {"export", "lmms-eval", "dev"}
    assert extras["export"] >= EXPORT_ONLY | {"onnxruntime"}
    assert extras["cpu"] == {"onnxruntime"}
    assert extras["gpu"] == {"onnxruntime-gpu"}
    assert "tensorrt" in extras["tensorrt"]
    assert "tensorrt-rtx-cu13" in extras["tensorrt-rtx"]
    for device_extra in device | others:
        assert not extras[device_extra] & EXPORT_ONLY


def test_every_console_script_names_a_function_in_the_wheel(
    archive: zipfile.ZipFile, project: dict
) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(_dist_info(archive, "entry_points.txt"))
    scripts = dict(entry_points["console_scripts"])
    assert scripts == project["scripts"]
    plugins = dict(entry_points["lmms_eval.models"])
    assert plugins == project["entry-points"]["lmms_eval.models"]
    for target in scripts.values():
        module, function = target.split(":")
        tree = ast.parse(archive.read(f"{module.replace('.', '/')}.py"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in defined, target


def test_constraints_pin_every_direct_requirement(root: Path, project: dict) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    pinned = {pin.name.lower().replace("_", "-") for pin in pins}
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["export"] + extras["cpu"] + extras["dev"]
    assert {Requirement(line).name.lower() for line in wanted} <= pinned
    assert "torch==2.13.0" in lines
