"""Kill a batch run at random moments, then count its answers.

    python benchmarks/batch_kills.py ENGINE_DIR [--moments 20] [--output FILE.json]

``divprune-batch`` with two workers on a Ray cluster of this machine is killed again and again: its
own process, one worker, or the whole cluster, with SIGKILL, after a random number of answers; what
was killed is started again. At the end every row must have one answer, that of a run without kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

KINDS = ("driver", "worker", "cluster")
SECONDS = 180
PICTURES = Path(__file__).resolve().parents[1] / "models" / "small_scenes" / "scenes"
_AGAIN = "run the same command again: it goes on where it was"
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class RayHead:
    """A Ray cluster of one machine, in a session and a folder of its own, at a free port."""

    def __init__(self, cpus: int = 2, port: int | None = None) -> None:
        port = port or free_port()
        self.address = f"127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        words += [f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={self.folder}"]
        words += ["--include-dashboard=false", "--disable-usage-stats"]
        log = self.folder / "start.log"
        with log.open("w") as file:
            self.process = subprocess.Popen(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | SETTINGS,
            )
        end = time.monotonic() + SECONDS
        while "Ray runtime started" not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError("the Ray cluster did not start")
            time.sleep(0.1)

    def members(self) -> dict[int, bytes]:
        """Processes of the cluster and what they call themselves."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.process.pid:
                        found[int(entry.name)] = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
        return found

    def workers(self) -> list[int]:
        return [pid for pid, title in self.members().items() if b"ray::Answerer" in title]

    def kill(self) -> None:
        """All of it at once."""
        for pid in self.members():
            kill(pid)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class KilledRun:
    """A run that is killed, and what it leaves."""

    def __init__(self, engine_dir: Path, table: Path, output: Path) -> None:
        self.paths = (engine_dir, table, output)
        self.log = output / "answers.jsonl"
        self.moments: list[dict[str, Any]] = []
        self.cluster = RayHead()
        self.run = self.start()

    def start(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "divprune.runtime.cli.batch", *self.paths, "--quiet"]
        words += ["--workers", 2, "--threads", 1, "--max-new-tokens", 6]
        words += ["--address", self.cluster.address]
        return subprocess.Popen(
            [*map(str, words)], stderr=subprocess.PIPE, text=True, env=os.environ | SETTINGS
        )

    def count(self) -> int:
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def wait_for(self, more: int, seconds: float) -> None:
        """Until so many more rows are answered and some time has passed, or the run has ended."""
        wanted, end = self.count() + more, time.monotonic() + SECONDS
        while self.count() < wanted and self.run.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(seconds)

    def strike(self, kind: str) -> bool:
        """Kill something and start again what is gone; False if the run was over before."""
        if self.run.poll() is not None:
            return False
        before = self.count()
        killed = getattr(self, f"kill_{kind}")()
        self.moments.append({"killed": kind, "processes": killed, "answers": before})
        return True

    def kill_driver(self) -> int:
        kill(self.run.pid)
        self.run.communicate()
        self.run = self.start()
        return 1

    def kill_worker(self) -> int:
        end = time.monotonic() + SECONDS
        while not (workers := self.cluster.workers()) and time.monotonic() < end:
            time.sleep(0.005)
        for pid in workers[:1]:
            kill(pid)
        return len(workers[:1])

    def kill_cluster(self) -> int:
        members = len(self.cluster.members())
        self.cluster.kill()
        _, told = self.run.communicate(timeout=SECONDS)
        if self.run.returncode != 2 or _AGAIN not in told:
            raise SystemExit(f"a lost cluster ended the run with {self.run.returncode}: {told}")
        self.cluster = RayHead()
        self.run = self.start()
        return members

    def finish(self) -> None:
        try:
            _, told = self.run.communicate(timeout=SECONDS)
            if self.run.returncode:
                raise SystemExit(f"the last run ended with {self.run.returncode}: {told}")
        finally:
            self.close()

    def close(self) -> None:
        kill(self.run.pid)
        self.cluster.kill()


def kill_at_random_moments(
    engine_dir: Path, table: Path, output: Path, kinds: list[str], dice: random.Random, most: int
) -> list[dict[str, Any]]:
    """Strike once for each kind, each time after at most ``most`` more answers; then finish."""
    killed = KilledRun(engine_dir, table, output)
    try:
        for kind in kinds:
            killed.wait_for(dice.randrange(most), dice.random() * 0.2)
            if not killed.strike(kind):
                break
    except BaseException:
        killed.close()
        raise
    killed.finish()
    return killed.moments


def read_answers(log: Path) -> tuple[dict[str, str], int]:
    """Answers by key, and how many lines there are beyond one a key."""
    lines = [json.loads(line) for line in log.open()]
    counts = Counter(line["id"] for line in lines)
    return {line["id"]: line["answer"] for line in lines}, len(lines) - len(counts)


def write_table(folder: Path, rows: int) -> Path:
    pictures = sorted(PICTURES.glob("*.png"))
    table = folder / "rows.jsonl"
    with table.open("w") as file:
        for number in range(rows):
            question = f"How many objects are there, and what is number {number // len(pictures)}?"
            image = str(pictures[number % len(pictures)])
            file.write(json.dumps({"id": number, "image": image, "prompt": question}) + "\n")
    return table


def main(argv: list[str] | None = None) -> int:
    from divprune.runtime.cli.batch import main as batch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(argv)
    dice = random.Random(options.seed)
    kinds = [dice.choice(KINDS) for _ in range(options.moments)]
    most = max(2, options.rows // options.moments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(folder, options.rows)
        words = [options.engine_dir, table, folder / "whole", "--max-new-tokens", 6, "--threads", 1]
        if batch([*map(str, words), "--quiet"]):
            raise SystemExit("the run without kills failed")
        moments = kill_at_random_moments(
            options.engine_dir, table, folder / "killed", kinds, dice, most
        )
        expected, _ = read_answers(folder / "whole" / "answers.jsonl")
        found, twice = read_answers(folder / "killed" / "answers.jsonl")
    report = {
        "rows": options.rows,
        "seed": options.seed,
        "killed": dict(Counter(moment["killed"] for moment in moments)),
        "moments": moments,
        "missing": len(expected.keys() - found.keys()),
        "twice": twice,
        "different": sum(found.get(key) != answer for key, answer in expected.items()),
    }
    text = json.dumps(report, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text, end="")
    wrong = report["missing"] + twice + report["different"]
    return 1 if wrong or len(moments) < options.moments else 0


if __name__ == "__main__":
    raise SystemExit(main())
