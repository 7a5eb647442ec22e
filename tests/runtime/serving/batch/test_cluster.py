"""``divprune-batch`` on Ray: a cluster of this machine, or one that it starts itself."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.batch_kills import RayHead, kill_at_random_moments, read_answers, write_table
from divprune.runtime.cli.batch import main
from divprune.runtime.errors import BackendError
from divprune.runtime.generation.sampling import SamplingOptions
from divprune.runtime.serving.batch import cluster as cluster_module
from divprune.runtime.serving.batch.cluster import ClusterOptions, answer_on_cluster
from divprune.runtime.serving.batch.table import Row
from divprune.runtime.serving.batch.worker import WorkerOptions, failed_answer

pytest.importorskip("onnxruntime")
pytest.importorskip("ray", reason="the extra batch is not installed")

OPTIONS = WorkerOptions("none", None, 6, SamplingOptions())
ROWS = [Row(f"r{number}", (), "") for number in range(20)]


@pytest.fixture(scope="module")
def ray_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def head(ray_settings: None) -> Iterator[RayHead]:
    running = RayHead()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("rows"), 200)


def run(engine_dir: Path, table: Path, output: Path, *arguments: object) -> int:
    words = [engine_dir, table, output, "--max-new-tokens", 6, "--threads", 1, *arguments]
    return main([*map(str, words), "--quiet"])


@pytest.fixture(scope="module")
def expected(engine_dir: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The answers of one worker in this process."""
    output = tmp_path_factory.mktemp("alone") / "out"
    assert run(engine_dir, table, output) == 0
    return read_answers(output / "answers.jsonl")


def test_two_workers_of_a_cluster_give_the_same_answers(
    head: RayHead, engine_dir: Path, table: Path, tmp_path: Path, expected: Any
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    code = run(engine_dir, table, tmp_path / "out", "--workers", 2, "--address", head.address)
    assert code == 0
    assert read_answers(tmp_path / "out" / "answers.jsonl") == expected
    assert signal.getsignal(signal.SIGTERM) is before, "Ray keeps it"


@pytest.mark.usefixtures("ray_settings")
def test_local_cluster_is_started_where_none_is_named(
    engine_dir: Path, table: Path, tmp_path: Path, expected: Any
) -> None:
    assert run(engine_dir, table, tmp_path / "out", "--workers", 2) == 0
    assert read_answers(tmp_path / "out" / "answers.jsonl") == expected


def test_driver_worker_and_cluster_killed_at_random_moments_lose_and_double_nothing(
    engine_dir: Path, table: Path, tmp_path: Path, expected: Any
) -> None:
    kinds = ["driver", "worker", "cluster"]
    moments = kill_at_random_moments(
        engine_dir, table, tmp_path / "out", kinds, random.Random(2), 40
    )
    assert [(moment["killed"], moment["processes"] > 0) for moment in moments] == [
        (kind, True) for kind in kinds
    ]
    assert read_answers(tmp_path / "out" / "answers.jsonl") == expected


def answer_with(
    monkeypatch: pytest.MonkeyPatch, answerer: type, head: RayHead, workers: int = 2
) -> dict[str, str | None]:
    """What a worker of another make says to `ROWS`: the errors by key."""
    monkeypatch.setattr(cluster_module, "Answerer", answerer)
    found: list[dict[str, Any]] = []
    options = ClusterOptions(workers, head.address)
    answer_on_cluster(iter(ROWS), OPTIONS, options, found.extend)
    assert sorted(answer["id"] for answer in found) == sorted(row.key for row in ROWS)
    return {answer["id"]: answer["error"] for answer in found}


def make_answerer(deadly: set[str], starts: bool = True) -> type:
    """A class that Ray copies as it is: it dies over some rows, or while it starts."""

    class Deadly:
        def __init__(self, _: WorkerOptions) -> None:
            if not starts:
                raise RuntimeError("the engine directory is not on this machine")

        def pid(self) -> int:
            return os.getpid()

        def answer_all(self, rows: list[Row]) -> list[dict[str, Any]]:
            for row in rows:
                if row.key in deadly:
                    os._exit(1)
            return [failed_answer(row.key, "fine") for row in rows]

    return Deadly


def test_row_that_kills_its_worker_every_time_is_an_error_and_the_others_are_answered(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = answer_with(monkeypatch, make_answerer({"r9"}), head)
    assert errors.pop("r9") == "its worker died every time"
    assert set(errors.values()) == {"fine"}


def test_workers_that_die_over_every_row_end_the_run(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divprune.runtime.serving.batch.handout._TRIES", 2)
    with pytest.raises(BackendError, match="die whatever they are asked"):
        answer_with(monkeypatch, make_answerer({row.key for row in ROWS}), head)


def test_workers_that_cannot_load_end_the_run_with_the_reason(
    head: RayHead, engine_dir: Path, table: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["--workers", 2, "--address", head.address, "--backend", "tensorrt"]
    assert run(engine_dir, table, tmp_path / "out", *arguments) == 2
    told = capsys.readouterr().err
    assert "workers die before they answer anything" in told
    assert "tensorrt" in told.lower()
    assert not (tmp_path / "out").exists()


def test_more_workers_than_the_cluster_holds_are_said_and_do_not_keep_rows(
    head: RayHead, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="divprune")
    assert set(answer_with(monkeypatch, make_answerer(set()), head, 4).values()) == {"fine"}
    assert "room for 2 of 4 workers" in caplog.text


def test_auto_finds_a_cluster_and_refuses_one_that_is_gone(
    head: RayHead, engine_dir: Path, table: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    written = tmp_path / "ray" / "ray_current_cluster"
    written.parent.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        written.write_text(f"127.0.0.1:{free.getsockname()[1]}")
        assert run(engine_dir, table, tmp_path / "out", "--address", "auto") == 2
    assert "no Ray cluster can be reached" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    assert run(engine_dir, table, tmp_path / "out", "--address", "auto") == 0


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--gpus-per-worker", 1], "no machine of the Ray cluster has room"),
        (["--cpus-per-worker", 3], "no machine of the Ray cluster has room"),
        (["--address", "somewhere"], "is no address"),
        (["--address", "127.0.0.1:FREE"], "no Ray cluster can be reached"),
    ],
)
def test_cluster_that_cannot_be_used_is_refused_at_once(
    head: RayHead, engine_dir: Path, table: Path, tmp_path: Path,
    arguments: list[object], message: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = [str(word).replace("FREE", str(free.getsockname()[1])) for word in arguments]
        where = [] if "--address" in words else ["--address", head.address]
        assert run(engine_dir, table, tmp_path / "out", *words, *where) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
