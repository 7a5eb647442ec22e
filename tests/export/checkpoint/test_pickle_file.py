"""Weights in ``pytorch_model.bin``: read where they lie, and nothing in the file is run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from divprune.export.checkpoint import pickle_file
from divprune.export.checkpoint.files import weight_files
from divprune.export.checkpoint.tensor_file import read_tensor, stored_tensors
from divprune.runtime.errors import CheckpointError


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4, 5), (0, 4)])
def test_tensors_are_those_that_torch_loads(tmp_path: Path, dtype: str, shape: tuple[int, ...]):
    first = torch.randn(shape).to(getattr(torch, dtype))
    content = {"a": first, "b": torch.nn.Parameter(first * 2), "padding": torch.ones(3)}
    stored = {t.key: t for t in stored_tensors(saved(tmp_path / "pytorch_model.bin", content))}
    assert list(stored) == ["a", "b", "padding"]
    assert stored["a"].shape == shape
    for key, tensor in content.items():
        assert torch.equal(read_tensor(stored[key]), tensor.detach())


def test_views_of_one_storage_are_read_where_they_begin(tmp_path: Path):
    whole = torch.arange(24.0).reshape(6, 4)
    content = {"whole": whole, "rows": whole[2:5], "tied": whole}
    stored = {t.key: t for t in stored_tensors(saved(tmp_path / "pytorch_model.bin", content))}
    assert torch.equal(read_tensor(stored["rows"]), whole[2:5])
    assert stored["tied"].offset == stored["whole"].offset


def test_a_type_that_is_not_read_goes_by_its_name(tmp_path: Path):
    content = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.int64)}
    stored = stored_tensors(saved(tmp_path / "pytorch_model.bin", content))
    assert [tensor.dtype for tensor in stored] == ["float64", "I64"]


@pytest.mark.parametrize(
    "content",
    [{"a": torch.zeros(2)}, {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2)}],
    ids=["before torch 1.6", "a transposed view"],
)
def test_the_command_of_the_error_rewrites_what_is_not_in_one_piece(
    tmp_path: Path, content: dict[str, torch.Tensor]
):
    is_old = len(content) == 1
    file = saved(tmp_path / "pytorch_model.bin", content, _use_new_zipfile_serialization=not is_old)
    with pytest.raises(CheckpointError) as caught:
        stored_tensors(file)
    command = shlex.split(str(caught.value.fix))
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]
    for tensor in stored_tensors(file):
        assert torch.equal(read_tensor(tensor), content[tensor.key])


class Runs:
    """Would run a command while it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def cut(size: int) -> Callable[[Path], object]:
    return lambda file: os.truncate(file, size)


def compress(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def without_storage(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            if "/data/" not in name:
                archive.writestr(name, data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": cut(0),
    "cut off": cut(700),
    "text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"),
    "compressed": compress,
    "without its storages": without_storage,
    "a list": lambda file: saved(file, [torch.zeros(2)]),
    "a number among tensors": lambda file: saved(file, {"a": torch.zeros(2), "epoch": 3}),
    "a sparse tensor": lambda file: saved(file, {"a": torch.zeros(2, 2).to_sparse()}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_whole_file_of_weights_is_refused_by_its_name(tmp_path: Path, name: str):
    file = saved(tmp_path / "pytorch_model.bin", {"a": torch.zeros(200)})
    DAMAGES[name](file)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        stored_tensors(file)


def test_nothing_in_a_pickle_is_run(tmp_path: Path):
    file = saved(tmp_path / "pytorch_model.bin", {"a": Runs(tmp_path / "made")})
    with pytest.raises(CheckpointError, match="something else than tensors"):
        stored_tensors(file)
    assert not (tmp_path / "made").exists()


def test_a_pickle_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pickle_file, "_MAX_PICKLE_BYTES", 100)
    file = saved(tmp_path / "pytorch_model.bin", {str(i): torch.zeros(1) for i in range(9)})
    with pytest.raises(CheckpointError, match=r"data\.pkl has \d+ bytes"):
        stored_tensors(file)


def test_safetensors_win_over_pickles_and_a_file_over_an_index(tmp_path: Path):
    names = (
        *("pytorch_model-1.bin", "pytorch_model.bin", "model-1.safetensors", "model.safetensors"),
    )
    index = '{{"weight_map": {{"a": "{}"}}}}'
    for name in names:
        (tmp_path / name).write_bytes(b"")
        if "-1" in name:
            stem = name.replace("-1", "")
            (tmp_path / f"{stem}.index.json").write_text(index.format(name))
        assert weight_files(tmp_path) == (tmp_path / name,)
