"""Advice of the server and of batches: it is done, and the same asked again."""

from __future__ import annotations

import json
import secrets
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image

from divprune.runtime.serving import server
from divprune.runtime.serving.options import ServerOptions
from divprune.runtime.serving.ray_app import RayOptions
from divprune.runtime.serving.server import bind
from tests.advice.covered import SERVING
from tests.advice.tools import assert_gave, attempt, refused
from tests.runtime.serving.serving_process import ServingProcess

BATCH = "divprune-batch {engine} {rows} {out} --max-new-tokens 1 --threads 1 -q"
BENCH = "divprune-bench --serve {url} --clients 1 --iters 1 --warmup 0 --max-new-tokens 2 -q"
ROWS = {
    # Names of columns and keys as people have them.
    "plain": [{"id": "a", "image": "0.png"}, {"id": "b", "image": "1.png"}],
    "other": [{"id": "a", "file": "0.png"}, {"id": "b", "file": "1.png"}],
    "twice": [{"id": "a", "image": "0.png", "n": 0}, {"id": "a", "image": "1.png", "n": 1}],
    "null": [{"id": "a", "image": "0.png", "n": 0}, {"id": None, "image": "1.png", "n": 1}],
}
CASES = {
    # Name: (rows, what is refused, what the advice makes of it).
    "a column of another name": ("other", "", " --image-column file"),
    "two rows of one key": ("twice", "", " --key-column n"),
    "a row without a key": ("null", "", " --key-column n"),
}


@pytest.fixture
def places(engine_dir: Path, tmp_path: Path) -> dict[str, Path]:
    for number in range(2):
        Image.linear_gradient("L").convert("RGB").save(tmp_path / f"{number}.png")
    files = {name: tmp_path / f"{name}.jsonl" for name in ROWS}
    for name, rows in ROWS.items():
        files[name].write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"engine": engine_dir, **files}


def batch(places: dict[str, Path], rows: str, out: Path, more: str = "") -> list[str]:
    words = BATCH.format(engine=places["engine"], rows=places[rows], out=out)
    return [*words.split(), *more.split()]


@pytest.mark.parametrize("name", CASES)
def test_the_column_that_is_named_is_read(places, tmp_path, name):
    rows, before, after = CASES[name]
    assert_gave(attempt(batch(places, rows, tmp_path / "out", before)), SERVING[name])
    assert attempt(batch(places, rows, tmp_path / "out", after)).code == 0


def test_another_output_or_the_same_settings_go_on(places, tmp_path):
    assert attempt(batch(places, "plain", tmp_path / "out")).code == 0
    refusal = attempt(batch(places, "plain", tmp_path / "out", "--keep 0.05"))
    assert_gave(refusal, SERVING["an output of another run"])
    assert attempt(batch(places, "plain", tmp_path / "other", "--keep 0.05")).code == 0
    assert attempt(batch(places, "plain", tmp_path / "out")).code == 0


def test_a_damaged_part_is_removed_and_written_again(places, tmp_path):
    pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    words = batch(places, "plain", tmp_path / "out.parquet")
    assert attempt(words).code == 0
    (part,) = (tmp_path / "out.parquet").glob("part-*")
    part.write_bytes(b"PAR1")
    assert_gave(attempt(words), SERVING["a damaged part"])
    part.unlink()
    assert attempt(words).code == 0
    assert len(list((tmp_path / "out.parquet").glob("part-*"))) == 1


def test_several_workers_are_left_out(places, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refusal = attempt(batch(places, "plain", tmp_path / "out", "--workers 2"))
    assert refusal.fix.endswith("or leave --workers and --address out")
    assert attempt(batch(places, "plain", tmp_path / "out")).code == 0


def test_another_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refusal = refused(lambda: bind("127.0.0.1", taken.getsockname()[1]))
    assert_gave(refusal, SERVING["a port that is taken"])
    bind("127.0.0.1", 0).close()


def test_a_key_of_48_digits_is_taken():
    refusal = refused(lambda: ServerOptions(model_name="m", api_keys=("short",)))
    assert_gave(refusal, SERVING["a short key"])
    assert "openssl rand -hex 24" in refusal.fix
    ServerOptions(model_name="m", api_keys=(secrets.token_hex(24),))


def test_ray_is_told_the_directory():
    assert_gave(refused(lambda: RayOptions.read({})), SERVING["ray without a directory"])
    assert RayOptions.read(dict([["engine_dir", "/path"]])).engine_dir == "/path"


def test_a_network_is_served_with_a_key(engine_dir, monkeypatch):
    monkeypatch.setattr(server, "run", lambda *_: None)
    monkeypatch.delenv("DIVPRUNE_API_KEY", raising=False)
    words = ["divprune-serve", str(engine_dir), "--host", "0.0.0.0", "--port", "0"]
    assert_gave(attempt(words), SERVING["a network without a key"])
    monkeypatch.setenv("DIVPRUNE_API_KEY", secrets.token_hex(24))
    assert attempt(words).code == 0


def test_encoding_ahead_is_left_out(engine_dir, monkeypatch):
    monkeypatch.setattr(server, "run", lambda *_: None)
    words = ["divprune-serve", str(engine_dir), "--port", "0", "--residency", "sequential"]
    assert_gave(attempt([*words, "--encode-ahead"]), SERVING["encoding ahead"])
    assert attempt(words).code == 0


def test_a_server_is_measured_once_it_was_started_and_the_report_goes_where_it_is_sent(
    engine_dir, tmp_path
):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refusal = attempt(BENCH.format(url=f"http://127.0.0.1:{port}/v1").split())
    assert_gave(refusal, SERVING["no server"])
    assert refusal.fix == "divprune-serve ENGINE_DIR"
    with ServingProcess(engine_dir, "--threads", 1) as running:
        asked = BENCH.format(url=f"{running.url}/v1").split()
        refusal = attempt([*asked, "--output", str(tmp_path / "report.json")])
        assert_gave(refusal, SERVING["a report of a server"])
        assert refusal.fix.split()[0] == "--json"
        assert attempt([*asked, "--json"]).code == 0
