"""Pictures/s of ``divprune-batch`` with more and more workers, held against a model of it.

    python benchmarks/batch_throughput.py ENGINE_DIR --output FILE.json --write docs/scaling.md
    python benchmarks/batch_throughput.py --table FILE.json --write docs/scaling.md

The same pictures go through a bare loop over the pipeline (in one process, then in as many at once
as there are workers), through ``divprune-batch`` in its own process, and on a Ray cluster of this
machine. Every answer must be that of ``divprune-run``. Starting and loading are timed apart.

The model knows only the bare loops and the driver's CPU time: n workers on a machine of C cores
answer min(n / s, C / (s + d), 1 / d) pictures/s, where s is the time of a picture in a bare loop
beside n - 1 others, and d the driver's CPU time for a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.batch_kills import SETTINGS, RayHead

QUESTION = "How many objects are there?"
TOKENS = 8
WARM = 8  # a chunk of rows
LIMIT_MS = 100.0
MARKS = ("<!-- begin: benchmarks/batch_throughput.py -->", "<!-- end -->")
# Of the fleet on paper: assumptions, which its text states.
MACHINES, PICTURES, PICTURE_BYTES, WEIGHT_BYTES = 100, 10**6, 200_000, 4 * 10**9
LINK_BYTES_S = 1.25e9  # 10 Gbit/s
SECONDS_A_PICTURE = (0.1, 1.0, 4.0)
BARE = """
import sys, time
from pathlib import Path
from divprune.runtime.pipeline import Pipeline
folder, warm, part, parts = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
pipeline = Pipeline.from_dir(sys.argv[1], threads=1)
pictures = sorted(folder.glob("*.png"))
ask = lambda path: pipeline.generate(path, sys.argv[6], max_new_tokens=int(sys.argv[7])).result
for path in pictures[:warm]:
    ask(path)
print("loaded", flush=True)
sys.stdin.readline()
start = time.perf_counter()
mine = pictures[part::parts]
for path in mine:
    ask(path)
print(1000 * (time.perf_counter() - start) / len(mine))
"""


def draw_pictures(folder: Path, count: int) -> None:
    from PIL import Image

    from models.small_scenes.exam import make_exam

    folder.mkdir()
    for number in range(count):  # one at a time: they take memory; far from those of the exam
        (item,) = make_exam("test", 1, first=200_000 + number)
        Image.fromarray(item.pixels).save(folder / f"{number:06}.png")


def answers_of_run(engine_dir: Path, folder: Path) -> dict[str, str]:
    words = [sys.executable, "-m", "divprune.runtime.cli.run", engine_dir.resolve()]
    words += [path.name for path in sorted(folder.iterdir())]
    words += ["--each", "--jsonl", "--prompt", QUESTION, "--max-new-tokens", TOKENS]
    words += ["--threads", 1]
    done = subprocess.run([*map(str, words)], cwd=folder, stdout=subprocess.PIPE, check=True)
    lines = map(json.loads, done.stdout.splitlines())
    return {line["image"]: line["text"] for line in lines}


def bare_loops(engine_dir: Path, folder: Path, count: int) -> float:
    """ms a picture in each of so many loops at once."""
    words = [sys.executable, "-c", BARE, engine_dir, folder, WARM]
    loops = [
        subprocess.Popen(
            [*map(str, [*words, part, count, QUESTION, TOKENS])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(count)
    ]
    for loop in loops:
        assert loop.stdout is not None
        assert loop.stdout.readline() == "loaded\n"
    for loop in loops:
        assert loop.stdin is not None
        loop.stdin.write("\n")
        loop.stdin.flush()
    return median(float(loop.communicate()[0]) for loop in loops)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def batch(
    engine_dir: Path, folder: Path, output: Path, expected: dict[str, str], *more: object
) -> dict[str, float]:
    """One run: its rate after the first answers, what was before them, the driver's CPU time."""
    words = [sys.executable, "-m", "divprune.runtime.cli.batch", engine_dir, folder, output]
    words += ["--prompt", QUESTION, "--max-new-tokens", TOKENS, "--threads", 1, "--quiet", *more]
    log = output / "answers.jsonl"
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, words)], env=os.environ | SETTINGS)
    marks: list[tuple[float, int, float]] = []
    read = place = 0
    while process.poll() is None and read < len(expected):
        time.sleep(0.02)
        if not log.exists():
            continue
        with log.open("rb") as file:
            file.seek(place)
            new = file.read()
        place += len(new)
        read += new.count(b"\n")
        if new and read >= WARM:
            marks[1:] = [(time.perf_counter(), read, cpu_seconds(process.pid))]
    if process.wait():
        raise SystemExit(f"divprune-batch ended with {process.returncode}")
    wall = time.perf_counter() - start
    found = {line["id"]: line["answer"] for line in map(json.loads, log.open())}
    if found != expected:
        wrong = sum(found.get(key) != text for key, text in expected.items())
        raise SystemExit(f"{wrong} answers are not those of divprune-run")
    (first, rows, spent), (last, _, all_spent) = marks[0], marks[-1]
    answered = len(expected) - rows
    return {
        "pictures_per_s": answered / (last - first),
        "start_s": first - start,
        "wall_s": wall,
        "driver_cpu_ms": 1000 * (all_spent - spent) / answered,
    }


def bytes_a_row() -> float:
    """What the driver remembers of a row: its key in a list, among those done and in a set."""
    import tracemalloc

    tracemalloc.start()
    listed = [f"{number:08}.png" for number in range(100_000)]
    done = {f"{number:08}.png" for number in range(100_000)}
    union = done.intersection(listed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / len(union)


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(run[name] for run in runs), 3) for name in runs[0]}


def measure(
    engine_dir: Path, pictures: int, workers: list[int], rounds: int, folder: Path
) -> dict[str, Any]:
    from divprune.runtime.reports.bench.device import cpu_name

    load = round(os.getloadavg()[0], 1)
    draw_pictures(folder / "pictures", pictures)
    shown = folder / "pictures"
    expected = answers_of_run(engine_dir, shown)
    bare: dict[int, list[float]] = {count: [] for count in sorted({1, *workers})}
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for count, times in bare.items():
            times.append(bare_loops(engine_dir, shown, count))
        output = folder / f"own-{number}"
        runs.setdefault("own", []).append(batch(engine_dir, shown, output, expected))
        for count in workers:
            head = RayHead(count)
            try:
                more = ("--workers", count, "--address", head.address)
                output = folder / f"ray-{count}-{number}"
                one = batch(engine_dir, shown, output, expected, *more)
            finally:
                head.kill()
            runs.setdefault(str(count), []).append(one)
    return {
        "engine_dir": engine_dir.name,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": load,
        "pictures": pictures,
        "rounds": rounds,
        "answers_of_divprune_run": len(expected),
        "bare_ms": {str(count): round(median(times), 3) for count, times in bare.items()},
        "batch": {name: middle(each) for name, each in runs.items()},
        "driver_bytes_a_row": round(bytes_a_row()),
    }


def predict(report: dict[str, Any], count: int, driver_ms: float) -> float:
    """Pictures/s of so many workers on one machine, from what was measured without them."""
    loop = report["bare_ms"][str(count)]
    return 1000 * min(count / loop, report["cores"] / (loop + driver_ms), 1 / driver_ms)


def line(report: dict[str, Any], name: str, run: dict[str, float]) -> str:
    count = 1 if name == "own" else int(name)
    rate, loop = run["pictures_per_s"], report["bare_ms"][str(count)]
    cells = ["in its own process", f"{rate:.1f}", "", "", ""]
    if name != "own":
        cells[0] = f"Ray, {count} worker{'s'[: count > 1]}"
        guess = predict(report, count, max(run["driver_cpu_ms"], 1e-3))
        cells[2:4] = [f"{guess:.1f}", f"{100 * (guess / rate - 1):+.1f} %"]
        if alone := report["batch"].get("1"):
            cells[4] = f"{100 * rate / count / alone['pictures_per_s']:.0f} %"
    over = 1000 * count / rate - loop
    cells += [f"{over:.2f} ms", f"{100 * over / LIMIT_MS:.1f} %", f"{run['start_s']:.1f} s"]
    return row(cells)


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(report: dict[str, Any]) -> str:
    heads = ["", "pictures/s", "model", "model off by", "efficiency", "overhead", "of 100 ms"]
    text = (
        f"{report['pictures']:,} pictures of the small model, one thread a worker,"
        f" {report['cpu']}, {report['cores']} cores, median of {report['rounds']} rounds; every"
        " answer is that of `divprune-run`. Overhead is the time of a picture beyond that in a bare"
        " loop (with two workers: in two loops at once), also as a part of a picture that takes"
        f" 100 ms. Load was {report['load_average']} at the start."
    )
    lines = [
        text,
        "",
        row([*heads, "before the first answers"]),
        "|---" + "|--:" * 7 + "|",
        row(["bare loop", f"{1000 / report['bare_ms']['1']:.1f}", *[""] * 6]),
        *(line(report, name, run) for name, run in report["batch"].items()),
    ]
    return "\n".join([*lines, *fleet(report)])


def fleet(report: dict[str, Any]) -> list[str]:
    """A hundred machines on paper, from the driver's time and memory measured here."""
    on_ray = [run["driver_cpu_ms"] for name, run in report["batch"].items() if name != "own"]
    if not on_ray:
        return []
    driver, kept = max(on_ray), report["driver_bytes_a_row"]
    text = (
        f"On paper: {MACHINES} machines with a worker each, {PICTURES:,} pictures of"
        f" {PICTURE_BYTES // 1000} kB, {WEIGHT_BYTES / 1e9:.0f} GB of weights, one storage behind"
        f" 10 Gbit/s; the driver takes {driver:.2f} ms of one core and {kept} bytes of memory for a"
        " row, as measured above:"
    )
    heads = ["a picture takes", "pictures/s", "the run", "of the link", "of the driver's core"]
    lines = ["", text, "", row([*heads, "machines that fill the core", "that fill the link"])]
    lines.append("|--:" * 7 + "|")
    for seconds in SECONDS_A_PICTURE:
        rate = MACHINES / seconds
        core, link = rate * driver / 1000, rate * PICTURE_BYTES / LINK_BYTES_S
        cells = [f"{seconds:g} s", f"{rate:,.0f}", f"{PICTURES / rate / 60:,.0f} min"]
        cells += [f"{100 * link:.1f} %", f"{100 * core:.1f} %"]
        lines.append(row([*cells, f"{MACHINES / core:,.0f}", f"{MACHINES / link:,.0f}"]))
    load = MACHINES * WEIGHT_BYTES / LINK_BYTES_S
    last = (
        f"All {MACHINES} reading their weights from that storage at once take {load:.0f} s; the"
        f" keys of {PICTURES:,} rows take {kept * PICTURES / 1e6:,.0f} MB in the driver."
    )
    return [*lines, "", last]


def write_into(document: Path, text: str) -> None:
    """Replace what stands between the marks."""
    whole = document.read_text()
    before, _, rest = whole.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f"{document} has no place for it: {MARKS[0]} ... {MARKS[1]}")
    document.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine_dir", type=Path, nargs="?")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="on Ray")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="of the JSON")
    parser.add_argument("--table", type=Path, metavar="JSON", help="show an earlier result")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="the table into its place")
    options = parser.parse_args(argv)
    if options.table:
        report = json.loads(options.table.read_text())
    elif options.engine_dir is None:
        parser.error("ENGINE_DIR or --table is needed")
    elif options.pictures <= 2 * WARM:
        parser.error(f"--pictures must be more than {2 * WARM}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(
                options.engine_dir, options.pictures, options.workers, options.rounds, Path(folder)
            )
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    if options.write:
        write_into(options.write, table(report))
    print(table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
