"""Documents of six kinds, damaged, and put through the tools in process.

    python -m tests.fuzz.documents --seconds 120 --seed 1

Kinds: the manifest; the configurations (of the model, of generation, of pictures); tokenizer and
chat template; headers of safetensors files; data, messages and reports; a checkpoint of LLaVA's
original code with its tower and its pickled weights. A tool may refuse them or take them, but not
end with a traceback, take longer than ``SLOWEST`` or more than ``MOST_BYTES``.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from divprune.export.cli import main as export
from divprune.runtime.cli.compare import main as compare
from divprune.runtime.cli.eval import main as evaluate
from divprune.runtime.cli.plan import main as plan
from divprune.runtime.cli.run import main as run
from divprune.runtime.directory.manifest_json import checksum
from divprune.runtime.memory import peak_rss, rss
from tests.fuzz.mutations import damage_header, damage_json, damage_template, damage_text

__all__ = ["KINDS", "Finding", "Workplace", "fuzz"]

SLOWEST = 20  # seconds of computing; four times that by the clock
MOST_BYTES = 500 * 10**6
_CPU = ("--backend", "onnxruntime", "--threads", "1", "--max-new-tokens", "2", "-q")


@dataclass(frozen=True)
class Finding:
    """A document that a tool did not survive.

    Attributes:
        kind: Which kind it is of.
        number: Which damage: ``Random(f"{seed}/{kind}/{number}")`` makes it again.
        what: Traceback, time or memory.
    """

    kind: str
    number: int
    what: str


class _TooSlow(BaseException):
    """Not an Exception: nothing on the way may take it for an error of the document."""


@dataclass(frozen=True)
class Workplace:
    """Whole documents to damage, and a folder to do it in."""

    engine: Path
    checkpoint: Path
    original: Path
    report: Path
    picture: Path
    folder: Path

    def copy(self, source: Path, changed: Mapping[str, bytes]) -> Path:
        """A directory of links to the files of ``source``, of which some are other ones."""
        target = self.folder / source.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=os.link)
        for name, data in changed.items():
            (target / name).unlink(missing_ok=True)
            (target / name).write_bytes(data)
        return target

    def original_with(self, name: str, data: bytes) -> Path:
        """A copy of the original checkpoint and its tower in which one file is another one."""
        folder, _, name = name.rpartition("/")
        for source in (self.original, self.original.with_name("original-tower")):
            self.copy(source, {name: data} if source.name == folder else {})
        config = self.folder / "original" / "config.json"
        tower = json.dumps(str(self.folder / "original-tower")).encode()
        moved = json.dumps(str(self.original.with_name("original-tower"))).encode()
        content = config.read_bytes().replace(moved, tower)
        config.unlink()
        config.write_bytes(content)
        return config.parent

    def engine_with(self, name: str, data: bytes) -> Path:
        """A copy of the engine directory whose manifest knows the changed file."""
        target = self.copy(self.engine, {name: data})
        manifest = json.loads((target / "manifest.json").read_text())
        record = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        manifest["files"][name] = record
        _write_manifest(target, manifest)
        return target


def _write_manifest(target: Path, manifest: dict[str, Any]) -> None:
    manifest.pop("checksum", None)
    (target / "manifest.json").unlink()
    (target / "manifest.json").write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))


def _manifest(place: Workplace, random: Random) -> Iterator[int]:
    whole = json.loads((place.engine / "manifest.json").read_text())
    damaged = damage_json(whole, random)
    target = place.copy(place.engine, {"manifest.json": damaged})
    with contextlib.suppress(ValueError, RecursionError):  # a checksum, where there can be one
        content = json.loads(damaged)
        if isinstance(content, dict):
            _write_manifest(target, content)
    yield run([str(target), str(place.picture), *_CPU])
    yield plan([str(target)])


def _configuration(place: Workplace, random: Random) -> Iterator[int]:
    name = random.choice(("config.json", "generation_config.json", "preprocessor_config.json"))
    if name != "config.json" and random.random() < 0.5:
        whole = json.loads((place.engine / name).read_text())
        target = place.engine_with(name, damage_json(whole, random))
        yield run([str(target), str(place.picture), *_CPU])
        return
    whole = json.loads((place.checkpoint / name).read_text())
    target = place.copy(place.checkpoint, {name: damage_json(whole, random)})
    yield plan([str(target)])
    yield _export(place, target)


def _text(place: Workplace, random: Random) -> Iterator[int]:
    name = random.choice(("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
    source = place.engine if random.random() < 0.7 else place.checkpoint
    text = (source / name).read_text()
    if name.endswith("jinja"):
        damaged = damage_template(text, random)
    else:
        damaged = damage_json(json.loads(text), random)
    if source == place.engine:
        target = place.engine_with(name, damaged)
        yield run([str(target), str(place.picture), *_CPU, "--prompt", "What is it? " + "a" * 40])
    else:
        yield _export(place, place.copy(source, {name: damaged}))


def _weights(place: Workplace, random: Random) -> Iterator[int]:
    if random.random() < 0.6:
        data = (place.engine / "embed_tokens.safetensors").read_bytes()
        target = place.engine_with("embed_tokens.safetensors", damage_header(data, random))
        yield run([str(target), str(place.picture), *_CPU])
    else:
        data = (place.checkpoint / "model.safetensors").read_bytes()
        damaged = {"model.safetensors": damage_header(data, random)}
        yield _export(place, place.copy(place.checkpoint, damaged))


def _data(place: Workplace, random: Random) -> Iterator[int]:
    kind, file = random.randrange(3), place.folder / "document.json"
    if kind == 0:
        other = damage_json(json.loads(place.report.read_text()), random)
        file.write_bytes(other)
        yield compare([str(place.report), str(file)])
        return
    picture = {"type": "image", "image": str(place.picture)}
    if kind == 1:
        content = [picture, {"type": "text", "text": "What is it?"}]
        file.write_bytes(damage_json([{"role": "user", "content": content}], random))
        yield run([str(place.engine), "--messages", str(file), *_CPU])
        return
    row = {"id": "1", "image": str(place.picture), "question": "What?", "answer": ["red", "3"]}
    rows = [json.dumps(row).encode(), damage_json(row, random)]
    random.shuffle(rows)
    file = file.with_suffix(".jsonl")
    data = b"\n".join(rows)
    file.write_bytes(damage_text(data, random) if random.random() < 0.2 else data)
    output = ["--output", str(place.folder / "answers"), "--force"]
    yield evaluate([str(place.engine), str(file), "-q", "--max-new-tokens", "2", *output])


def _original(place: Workplace, random: Random) -> Iterator[int]:
    if random.random() < 0.4:
        name = "original/pytorch_model-00001-of-00002.bin"
        damaged = _damage_pickle((place.original.parent / name).read_bytes(), random)
    else:
        tower = [f"original-tower/{each}.json" for each in ("config", "preprocessor_config")]
        names = ("original/config.json", "original/config.json", *tower)
        name = random.choice((*names, "original/pytorch_model.bin.index.json"))
        damaged = damage_json(json.loads((place.original.parent / name).read_text()), random)
    target = place.original_with(name, damaged)
    yield plan([str(target)])
    yield _export(place, target)


def _damage_pickle(data: bytes, random: Random) -> bytes:
    """A file of ``torch.save`` with changes in its pickle, or anywhere."""
    if random.random() < 0.3:
        return damage_text(data, random)
    start = data.index(b"data.pkl")
    end = data.index(b"PK", start)
    return data[:start] + damage_text(data[start:end], random) + data[end:]


def _export(place: Workplace, checkpoint: Path) -> int:
    output = ["--output", str(place.folder / "exported"), "--force", "--no-verify", "-q"]
    return export(["--model", str(checkpoint), "--keep", "0.5", "--dtype", "fp32", *output])


KINDS: dict[str, Callable[[Workplace, Random], Iterator[int]]] = {
    "manifest": _manifest,
    "configuration": _configuration,
    "text": _text,
    "weights": _weights,
    "data": _data,
    "original": _original,
}


def fuzz(
    place: Workplace, seed: int, *, seconds: float, kinds: tuple[str, ...] = tuple(KINDS)
) -> tuple[Counter[str], list[Finding]]:
    """Damage documents of every kind in turn until the time is over.

    Returns:
        How many documents of each kind, and what was found.
    """
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind in kinds:
            number = counts[kind]
            counts[kind] += 1
            what = try_one(place, kind, f"{seed}/{kind}/{number}")
            if what is not None:
                findings.append(Finding(kind, number, what))
            if time.monotonic() >= end:
                break
    return counts, findings


def try_one(place: Workplace, kind: str, seed: str) -> str | None:
    """What a tool did with one document that it should not have done."""
    said, before = io.StringIO(), _reset_peak()
    previous = signal.signal(signal.SIGALRM, _too_slow)
    profiler = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, SLOWEST)  # of this process, however busy the machine is
    signal.alarm(4 * SLOWEST)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            codes = list(KINDS[kind](place, Random(seed)))
    except _TooSlow:
        return f"it takes longer than {SLOWEST} s of computing, or {4 * SLOWEST} s"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, profiler)
        signal.signal(signal.SIGALRM, previous)
    if any(code not in (0, 2) for code in codes) or "Traceback" in said.getvalue():
        return f"exit codes {codes}\n{said.getvalue()[-3000:]}"
    if (rise := (peak_rss() or 0) - before) > MOST_BYTES:
        return f"it takes {rise / 1e6:.0f} MB"
    return None


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise _TooSlow


def _reset_peak() -> int:
    """Resident bytes now, from which the peak is counted where the system can reset it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return rss() or 0
    return peak_rss() or 0


def _workplace(folder: Path) -> Workplace:
    from divprune.runtime.cli.bench import main as bench
    from tests.checkpoints import write_tiny_checkpoint
    from tests.original_checkpoints import write_original

    checkpoint = write_tiny_checkpoint(folder / "checkpoint", "clip-llama-v4-gqa2-full")
    write_original(folder / "original", checkpoint, pickled=True)
    picture = folder / "picture.png"
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(picture)
    place = Workplace(
        folder / "engine",
        checkpoint,
        folder / "original",
        folder / "report.json",
        picture,
        folder / "work",
    )
    place.folder.mkdir()
    options = ("--keep", "0.5", "--dtype", "fp32", "--no-verify", "-q")
    assert export(["--model", str(checkpoint), *options, "--output", str(place.engine)]) == 0
    report = ("--output", str(place.report), "--iters", "1", "--warmup", "0", "--no-probe", "-q")
    assert bench([str(place.engine), *report, "--max-new-tokens", "2"]) == 0
    return place


def main() -> int:
    """Fuzz by hand; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one")
    parser.add_argument("--one", metavar="SEED/KIND/NUMBER", help="one document again")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    faulthandler.dump_traceback_later(arguments.seconds + 300, exit=True)
    with tempfile.TemporaryDirectory(prefix="divprune-fuzz-") as folder:
        os.environ["DIVPRUNE_CACHE_DIR"] = f"{folder}/cache"
        place = _workplace(Path(folder))
        if arguments.one:
            found = try_one(place, arguments.one.split("/")[1], arguments.one)
            print(found or "nothing found")
            return int(found is not None)
        kinds = tuple(arguments.kind or KINDS)
        counts, findings = fuzz(place, arguments.seed, seconds=arguments.seconds, kinds=kinds)
    for finding in findings:
        print(f"== {arguments.seed}/{finding.kind}/{finding.number}: {finding.what}\n")
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()), "documents")
    print(f"{len(findings)} findings")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
