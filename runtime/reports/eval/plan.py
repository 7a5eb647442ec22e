"""Which engine directory answers with which fractions kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.directory.limits import validate_max_new_tokens
from divprune.runtime.errors import DivPruneError, OptionError, UnsupportedError
from divprune.runtime.generation.kept_tokens import resolve_keep
from divprune.runtime.reports.bench.layout import format_keep
from divprune.runtime.reports.bench.workload import choose_keeps
from divprune.runtime.reports.eval.metrics import get_metric

if TYPE_CHECKING:
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["EngineRun", "EvalOptions", "plan_runs"]


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Options of ``divprune-eval``; None takes the directory's own."""

    keeps: tuple[Keep, ...] | None = None
    metric: str = "exact-match"
    max_new_tokens: int = 64
    backend: str | None = None
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        from divprune.runtime.backends import check_choice

        get_metric(self.metric)
        validate_max_new_tokens(self.max_new_tokens)
        check_choice(self.backend, self.device, self.threads)


@dataclass(frozen=True, slots=True)
class EngineRun:
    """An engine directory and what it is to answer with.

    Attributes:
        label: The directory's name.
        directory: The directory.
        keeps: Similarities to reach, then fractions, each ascending.
        baseline: Label of the run whose keep 1.0 this one is compared with; None where no
            directory has it.
    """

    label: str
    directory: EngineDirectory
    keeps: tuple[Keep, ...]
    baseline: str | None


def plan_runs(
    directories: Sequence[EngineDirectory], asked: Sequence[Keep] | None
) -> tuple[list[EngineRun], list[str]]:
    """What each directory is asked to keep, and notes on what it cannot serve.

    Keep 1.0 joins wherever a directory has it, but is asked of one directory only where several
    hold the same model: with every token kept, the selector does not matter. Of several
    directories, each answers with the fractions that it can serve; one whose selector takes no
    fraction, because it keeps nothing, answers as it was exported.

    Raises:
        OptionError: if a directory can serve none of the fractions, if no directory can serve
            one of them, or if two directories have the same name.
    """
    labels = [directory.path.name for directory in directories]
    if twice := [label for label, times in Counter(labels).items() if times > 1]:
        raise OptionError(
            "two engine directories have the same name, which the report knows them by",
            expected="different names",
            found=", ".join(twice),
            fix="rename one of them",
        )
    runs, notes = [], []
    served: set[Keep] = set()
    baselines: dict[object, str] = {}
    for label, directory in zip(labels, directories, strict=True):
        manifest = directory.manifest
        can = _servable(manifest, asked, alone=len(directories) == 1)
        served.update(can or ())
        keeps, remarks = choose_keeps(manifest, can)
        notes += [f"{label}: {remark}" for remark in remarks]
        if asked and can is None:
            notes.append(f"{label} takes no keep: it answers as it was exported")
        elif missing := [format_keep(keep) for keep in asked or () if keep not in (can or ())]:
            notes.append(f"{label} cannot serve keep {', '.join(missing)}")
        model = _same_model(manifest)
        if keeps[-1] == 1.0 and baselines.setdefault(model, label) != label:
            keeps = keeps[:-1]
            notes.append(f"{label}: keep 1.0 is that of {baselines[model]}")
        runs.append(EngineRun(label, directory, keeps, baselines.get(model)))
    if unserved := [format_keep(keep) for keep in asked or () if keep not in served]:
        raise OptionError(
            "no engine directory can serve one of the fractions",
            expected="fractions that one of the directories was exported with, or less",
            found=f"--keep {', '.join(unserved)}",
            fix="export one with this --keep, or leave it out",
        )
    return runs, notes


def _servable(
    manifest: Manifest, asked: Sequence[Keep] | None, *, alone: bool
) -> tuple[Keep, ...] | None:
    if asked is None or (manifest.selector.num_kept == 0 and not alone):
        return None
    can: list[Keep] = []
    why: DivPruneError | None = None
    for keep in asked:
        try:
            resolve_keep(manifest, keep)
            can.append(keep)
        except (OptionError, UnsupportedError) as error:
            why = error
    if why is not None and (alone or not can):
        raise why
    return tuple(can)


def _same_model(manifest: Manifest) -> object:
    """Equal for directories that answer alike when every token is kept."""
    return (
        manifest.model.id,
        manifest.model.revision,
        manifest.target,
        manifest.dtype,
        manifest.quant,
        manifest.max_seq_len,
        manifest.selector.num_image_tokens,
        manifest.files["embed_tokens.safetensors"].sha256,
    )
