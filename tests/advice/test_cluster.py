"""Advice about a Ray cluster of this machine: it is done, and ``divprune-batch`` asked again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.batch_kills import PICTURES, SETTINGS, RayHead, free_port, write_table
from divprune.runtime.generation.sampling import SamplingOptions
from divprune.runtime.serving.batch import handout
from divprune.runtime.serving.batch.cluster import ClusterOptions, answer_on_cluster
from divprune.runtime.serving.batch.table import Row
from divprune.runtime.serving.batch.worker import WorkerOptions
from tests.advice.covered import CLUSTER
from tests.advice.tools import assert_gave, attempt, refused

pytest.importorskip("ray", reason="the extra batch is not installed")


class Place:
    """An address where no cluster runs until it is started."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.head: RayHead | None = None

    def start(self) -> None:
        """Run ``ray start --head --port=... --num-cpus=2``, once."""
        self.head = self.head or RayHead(2, self.port)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        found = Place()
        yield found
        if found.head is not None:
            found.head.kill()


@pytest.fixture
def words(engine_dir: Path, tmp_path: Path, place: Place) -> list[str]:
    table = write_table(tmp_path, 2)
    batch = f"divprune-batch {engine_dir} {table} {tmp_path / 'out'} -q --threads 1"
    return f"{batch} --max-new-tokens 2 --address {place.address}".split()


def test_a_cluster_is_reached_once_it_was_started(place, words):
    assert place.head is None
    refusal = attempt(words)
    assert_gave(refusal, CLUSTER["nobody at the address"])
    assert refusal.fix == f"ray start --head --port={place.port} on 127.0.0.1"
    place.start()
    assert attempt(words).code == 0


@pytest.mark.parametrize(
    ("option", "too_many", "less"),
    [("--cpus-per-worker", "3", "2"), ("--gpus-per-worker", "1", "0")],
)
def test_a_worker_that_asks_for_less_has_room(place, words, option, too_many, less):
    place.start()
    refusal = attempt([*words, option, too_many])
    assert_gave(refusal, CLUSTER["no room for a worker"])
    assert re.match(r"ask for less \(.*" + option, refusal.fix)
    assert attempt([*words, option, less]).code == 0


def test_workers_start_where_the_engine_directory_has_its_path(
    place, engine_dir, tmp_path, monkeypatch
):
    place.start()
    monkeypatch.setattr(handout, "_FAILED_STARTS", 1)
    options = WorkerOptions(str(tmp_path / "engine"), None, 2, SamplingOptions(), threads=1)
    found: list[dict[str, Any]] = []

    def answer() -> None:
        row = Row("a", (str(min(PICTURES.glob("*.png"))),), "What?")
        cluster = ClusterOptions(1, place.address)
        answer_on_cluster(iter([row]), options, cluster, found.extend)

    refusal = refused(answer)
    assert_gave(refusal, CLUSTER["workers that all die"])
    assert refusal.fix.startswith("see that the engine directory has the same path")
    shutil.copytree(engine_dir, tmp_path / "engine")
    answer()
    assert [row["error"] for row in found] == [None]


@pytest.mark.parametrize(
    ("address", "environment", "command"),
    [
        ("ray://127.0.0.1:{}", "", "ray start --head --ray-client-server-port={} on 127.0.0.1"),
        ("[::1]:{}", "", "ray start --head --port={} on [::1]"),
        ("auto", "", "ray start --head on this machine"),
        ("auto", "127.0.0.1:{}", "ray start --head --port={} on 127.0.0.1"),
    ],
)
def test_the_command_that_starts_a_cluster_fits_the_address(
    words, tmp_path, monkeypatch, address, environment, command
):
    port = free_port()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", environment.format(port))
    refusal = attempt([*words[:-1], address.format(port)])
    assert_gave(refusal, CLUSTER["nobody at the address"])
    assert refusal.fix == command.format(port)


@pytest.mark.parametrize("kind", ["a long path", "a file", "no folder"])
def test_ray_is_left_out_where_it_cannot_write(place, words, tmp_path, monkeypatch, kind):
    (tmp_path / "a file").touch()
    (tmp_path / "a long path" / ("long" * 30)).mkdir(parents=True)
    unfit = tmp_path / "a long path" / ("long" * 30) if kind == "a long path" else tmp_path / kind
    monkeypatch.setenv("RAY_TMPDIR", str(unfit))
    alone = words[: words.index("--address")]
    refusal = attempt([*alone, "--workers", "2"])
    assert_gave(refusal, CLUSTER["a folder that Ray cannot use"])
    assert refusal.fix.startswith("leave --workers out")
    assert attempt(alone).code == 0
