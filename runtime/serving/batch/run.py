"""One run: what is left of the input, through the workers, into the output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.serving.batch.answers import AnswerStore
from divprune.runtime.serving.batch.cluster import ClusterOptions, answer_on_cluster
from divprune.runtime.serving.batch.worker import Answerer, WorkerOptions

if TYPE_CHECKING:
    from divprune.runtime.serving.batch.progress import Progress
    from divprune.runtime.serving.batch.table import Table

__all__ = ["run_batch"]


def run_batch(
    table: Table,
    output: Path,
    form: str,
    options: WorkerOptions,
    cluster: ClusterOptions | None,
    make_progress: Callable[[int, int, int], Progress],
) -> Progress:
    """Answer every row of a table that has no answer yet.

    Args:
        table: The input.
        output: The folder of answers.
        form: ``jsonl`` or ``parquet``.
        options: How rows are answered.
        cluster: Workers in processes of their own; None: one, in this process.
        make_progress: From the rows in all, the rows done and the failures among them.

    Returns:
        How far it is: everything.

    Raises:
        DatasetError: if the input cannot be read.
        OptionError: if the output is that of another run.
        BackendError: if workers cannot start or the cluster is lost.
    """
    keys = table.checked_keys()
    store = AnswerStore(output, form, _settings(table, options))
    complete = False
    try:
        progress = make_progress(len(keys), len(store.done.intersection(keys)), store.failed)

        def write(answers: Sequence[dict[str, Any]]) -> None:
            store.append(answers)
            failed = sum(answer["error"] is not None for answer in answers)
            progress.add(len(answers), failed)

        try:
            if len(store.done.intersection(keys)) < len(keys):
                _answer(table, store, options, cluster, write)
            complete = True
        finally:
            progress.close()
    finally:
        store.close(complete=complete)
    return progress


def _answer(
    table: Table,
    store: AnswerStore,
    options: WorkerOptions,
    cluster: ClusterOptions | None,
    write: Callable[[Sequence[dict[str, Any]]], None],
) -> None:
    rows = table.rows(skip=frozenset(store.done))
    if cluster is not None:
        answer_on_cluster(rows, options, cluster, write)
        return
    worker = Answerer(options)
    for row in rows:
        write([worker.answer(row)])


def _settings(table: Table, options: WorkerOptions) -> dict[str, Any]:
    """What the answers depend on, without what only decides how fast they come."""
    settings = asdict(options)
    for name in ("engine_dir", "backend", "device", "threads"):
        del settings[name]
    manifest = (Path(options.engine_dir) / "manifest.json").read_bytes()
    settings["engine"] = hashlib.sha256(manifest).hexdigest()[:16]
    settings["prompt"] = table.prompt
    settings["columns"] = asdict(table.columns)
    settings["rows"] = "by key" if table.has_keys else _listing(table)
    return settings


def _listing(table: Table) -> str:
    """Rows known by their places only are those of these files alone."""
    digest = hashlib.sha256()
    for file in table.files:
        name = file.name if file == table.path else file.relative_to(table.path).as_posix()
        digest.update(f"{name} {file.stat().st_size}\n".encode())
    return f"by place in files {digest.hexdigest()[:16]}"
