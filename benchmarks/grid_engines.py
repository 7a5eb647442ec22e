"""The engine directories of the selector grid: which there are, and how they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from divprune.export.selection import IN_LLM_SELECTORS, get_in_llm_selector, get_selector
from divprune.runtime.directory.engine_directory import EngineDirectory

KEEPS = (1.0, 0.5, 0.25, 0.15, 0.1, 0.05, 0.02)
PRUNED = KEEPS[1:]
NO_KEEP = 0.0  # what a manifest says of a selector that keeps nothing and takes no fraction


@dataclass(frozen=True)
class Engine:
    """An engine directory to make; ``keep`` or ``layer`` is None where it is not an option."""

    selector: str
    keep: float | None
    layer: int | None

    @property
    def label(self):
        layer = "" if self.layer is None else f"-layer{self.layer}"
        return f"{self.selector}{layer}" + ("" if self.keep is None else f"-keep{self.keep:g}")

    @property
    def keeps(self):
        """The fractions of the grid that it answers with, keep 1.0 aside."""
        if self.keep is None:
            return (NO_KEEP,)
        nested = find_selector(self.selector).nested
        return tuple(keep for keep in PRUNED if keep == self.keep or (nested and keep < self.keep))


def find_selector(name):
    return get_in_llm_selector(name) if name in IN_LLM_SELECTORS else get_selector(name)


def plan_engines(selectors, layers, vtw_layers) -> Iterator[Engine]:
    """One engine for all fractions where order is nested, one for each where it is not."""
    for name in selectors:
        if name == "vtw":
            yield from (Engine(name, None, layer) for layer in vtw_layers)
            continue
        keeps = (max(PRUNED),) if find_selector(name).nested else PRUNED
        for layer in layers if name in IN_LLM_SELECTORS else (None,):
            yield from (Engine(name, keep, layer) for keep in keeps)


def checkpoint_key(checkpoint):
    """Other weights never meet these engines and answers."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")) + sorted(checkpoint.glob("*.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def export_all(pool, engines, checkpoint, folder):
    """Engine directories in the order of the plan; what is there already is taken as it is."""
    futures = [pool.submit(export_engine, engine, checkpoint, folder) for engine in engines]
    return [EngineDirectory.open(future.result()) for future in futures]


def export_engine(engine, checkpoint, folder):
    output = folder / engine.label
    if output.exists():  # an export is renamed into place when it is whole
        return output
    from divprune.export.cli import main as export

    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--model", checkpoint, "--selector", engine.selector, "--output", output]
    arguments += ["--dtype", "fp32", "--no-verify", "--quiet"]
    for flag, value in (("--keep", engine.keep), ("--layer", engine.layer)):
        arguments += [] if value is None else [flag, value]
    if export([str(argument) for argument in arguments]):
        raise SystemExit(f"{engine.label} could not be exported")
    return output
