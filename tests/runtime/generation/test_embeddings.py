from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from divprune.runtime.errors import EngineDirectoryError, PromptError
from divprune.runtime.generation.embeddings import EmbeddingTable


@pytest.fixture(params=[np.float16, np.float32])
def table(request: pytest.FixtureRequest) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((50, 24)).astype(request.param)


def write(path: Path, **tensors: np.ndarray) -> Path:
    save_file(tensors, path)
    return path


def test_rows_are_those_of_the_table_in_any_order_and_repeated(table, tmp_path):
    opened = EmbeddingTable(write(tmp_path / "e.safetensors", embed_tokens=table))
    ids = [49, 0, 7, 7, 23]

    rows = opened.rows(ids)

    assert rows.dtype == table.dtype
    assert (opened.vocab_size, opened.hidden_size, opened.dtype) == (50, 24, table.dtype)
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_array_equal(opened.rows(np.array(ids)), table[ids])


def test_no_ids_give_no_rows(table, tmp_path):
    opened = EmbeddingTable(write(tmp_path / "e.safetensors", embed_tokens=table))
    assert opened.rows([]).shape == (0, 24)


@pytest.mark.parametrize("token_id", [-1, 50, 10**9])
def test_an_id_outside_the_table_is_refused(table, tmp_path, token_id):
    opened = EmbeddingTable(write(tmp_path / "e.safetensors", embed_tokens=table))
    with pytest.raises(PromptError, match=f"tokens below 50\n.*{token_id}"):
        opened.rows([3, token_id])


def test_metadata_in_the_header_is_allowed(table, tmp_path):
    path = tmp_path / "e.safetensors"
    save_file({"embed_tokens": table}, path, metadata={"format": "np"})
    np.testing.assert_array_equal(EmbeddingTable(path).rows([1]), table[1:2])


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": np.zeros((4, 4), np.float32)},
        {"embed_tokens": np.zeros((4, 4), np.float64)},
        {"embed_tokens": np.zeros(16, np.float32)},
    ],
    ids=["other name", "float64", "one dimension"],
)
def test_another_tensor_is_refused(tensors, tmp_path):
    with pytest.raises(EngineDirectoryError, match=r"expected: .*embed_tokens \[vocabulary"):
        EmbeddingTable(write(tmp_path / "e.safetensors", **tensors))


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 64, b"\x04\0\0\0\0\0\0\0{}xx"])
def test_a_file_that_is_no_safetensors_is_refused(content, tmp_path):
    path = tmp_path / "e.safetensors"
    path.write_bytes(content)
    with pytest.raises(EngineDirectoryError, match="not an embedding table"):
        EmbeddingTable(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EngineDirectoryError, match="No such file"):
        EmbeddingTable(tmp_path / "e.safetensors")


def test_a_truncated_file_is_refused_when_opened_and_when_read(table, tmp_path):
    path = write(tmp_path / "e.safetensors", embed_tokens=table)
    opened = EmbeddingTable(path)
    os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(EngineDirectoryError, match=r"ends early|the data ends"):
        opened.rows([49])
    with pytest.raises(EngineDirectoryError, match=r"ends early|the data ends"):
        EmbeddingTable(path)


def test_offsets_that_do_not_fit_the_shape_are_refused(tmp_path):
    header = json.dumps(
        {"embed_tokens": {"dtype": "F16", "shape": [4, 4], "data_offsets": [0, 8]}}
    ).encode()
    path = tmp_path / "e.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    with pytest.raises(EngineDirectoryError, match=r"8 bytes for F16 \[4, 4\]"):
        EmbeddingTable(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_table_does_not_come_into_memory(tmp_path):
    path = write(tmp_path / "e.safetensors", embed_tokens=np.ones((32_000, 1024), np.float32))
    program = f"""
from pathlib import Path
from divprune.runtime.generation.embeddings import EmbeddingTable
from divprune.runtime.memory import peak_rss
table = EmbeddingTable(Path({str(path)!r}))
before = peak_rss()
assert table.rows(range(0, 32_000, 40)).sum() == 800 * 1024
print(peak_rss() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16 * 2**20  # 800 rows take 3 MiB, the table 125
