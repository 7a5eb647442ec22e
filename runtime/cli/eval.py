"""``divprune-eval``: what pruning costs in answers, on data of your own."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.backends import BACKENDS, DEVICES
from divprune.runtime.cli.main_guard import (
    EXIT_USER,
    ToolParser,
    add_common_options,
    run_tool,
)

if TYPE_CHECKING:
    from divprune.runtime.reports.eval.dataset import Dataset
    from divprune.runtime.reports.eval.log import Record, SampleLog
    from divprune.runtime.reports.eval.plan import EngineRun, EvalOptions
    from divprune.runtime.reports.eval.report import EvalReport

__all__ = ["main"]

_DESCRIPTION = """\
Ask engine directories the questions of a JSONL file and report how many answers are right, with
95 % intervals, beside keep 1.0. Several directories (other selectors, other precisions) are
compared in one table and one picture. Every answer is logged: a run that was stopped goes on
where it was when the same command is given again."""
_METRICS = "exact-match (default), relaxed-match or yes-no-f1"
_REDRAW_S, _LINE_S = 0.1, 60.0  # between two states of the bar: on a terminal, in a file
_REASONS = 3  # shown of those for which answers failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-eval", description=_DESCRIPTION)
    add = parser.add_argument
    add("engine_dir", type=Path, nargs="+", metavar="ENGINE_DIR", help="from divprune-export")
    add("data", type=Path, metavar="DATA", help="JSONL of image, question, answer (or answers)")
    add("--compare", type=Path, nargs="+", metavar="ENGINE_DIR", default=[],
        help="more engine directories for the same table")  # fmt: skip
    add("--keep", metavar="LIST", help="fractions kept, such as 1.0,0.25,0.1, and auto:C to"
        " keep as few as leave no dropped token less similar than C to a kept one (default: as"
        " exported); 1.0 joins wherever a directory has it")  # fmt: skip
    add("--metric", default="exact-match", metavar="NAME", help=_METRICS)
    add("--limit", type=int, metavar="N", help="only the first N samples")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    add("--output", type=Path, metavar="DIR", help="folder of logs, report.json, report.md and"
        " chart.png (default: ./<DATA>-eval)")  # fmt: skip
    add("--force", action="store_true", help="throw away the logs that are there")
    add("--backend", help=f"{', '.join(BACKENDS)} (default: what the export was made for)")
    add("--device", choices=DEVICES, help="default: cuda with TensorRT, otherwise cpu")
    add("--threads", type=int, metavar="N", help="threads inside one operator")
    add("--json", action="store_true", help="print the report as JSON instead of tables")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    options = _check_options(arguments)
    dataset, runs, notes = _check_inputs(arguments, options)
    folder = arguments.output or Path(f"{arguments.data.stem}-eval")
    report, reasons = _evaluate(arguments, options, dataset, runs, notes, folder)

    from divprune.runtime.reports.eval.layout import render_text
    from divprune.runtime.reports.eval.output import write_report

    files = write_report(report, folder)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(report.to_json() if arguments.json else render_text(report), end="", flush=True)
    if not arguments.quiet:
        print(f"written: {', '.join(map(str, files))}", file=sys.stderr)
    if report.errors:
        print(
            f"error: {report.errors} answers failed; the others stand\n"
            f'  found:    {_most_common(reasons)}; all as "error" in {folder}/*.jsonl\n'
            "  fix:      mend what they name and give the command again: only these are asked",
            file=sys.stderr,
        )
        return EXIT_USER
    return 0


def _most_common(reasons: Counter[str]) -> str:
    """Why answers failed, the commonest reasons first."""
    from divprune.runtime.errors import printable

    shown = reasons.most_common(_REASONS)
    words = [f"{printable(reason)} ({count})" for reason, count in shown]
    more = len(reasons) - len(shown)
    return "; ".join([*words, *([f"{more} other reasons"] if more else [])])


def _check_options(arguments: argparse.Namespace) -> EvalOptions:
    """Check what can be checked before any file is opened."""
    from divprune.runtime.directory.keep import parse_keeps
    from divprune.runtime.reports.eval.plan import EvalOptions

    return EvalOptions(
        keeps=parse_keeps(arguments.keep) if arguments.keep is not None else None,
        metric=arguments.metric,
        max_new_tokens=arguments.max_new_tokens,
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
    )


def _check_inputs(
    arguments: argparse.Namespace, options: EvalOptions
) -> tuple[Dataset, list[EngineRun], list[str]]:
    """Open what is cheap, so that a wrong name shows before gigabytes are loaded."""
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.reports.eval.dataset import load_dataset
    from divprune.runtime.reports.eval.metrics import check_answers, get_metric
    from divprune.runtime.reports.eval.plan import plan_runs

    dataset = load_dataset(arguments.data, arguments.limit)
    check_answers(get_metric(options.metric), dataset)
    paths = [*arguments.engine_dir, *arguments.compare]
    runs, notes = plan_runs([EngineDirectory.open(path) for path in paths], options.keeps)
    return dataset, runs, notes


def _evaluate(
    arguments: argparse.Namespace,
    options: EvalOptions,
    dataset: Dataset,
    runs: Sequence[EngineRun],
    notes: Sequence[str],
    folder: Path,
) -> tuple[EvalReport, Counter[str]]:
    """Answer what the logs do not have yet; a report on all of it, and why answers failed."""
    from divprune.runtime.reports.eval.assemble import assemble_report
    from divprune.runtime.reports.eval.evaluate import open_log
    from divprune.runtime.reports.eval.output import make_folder

    make_folder(folder)
    with contextlib.ExitStack() as stack:
        # All of them first: a log of something else must not show after hours.
        logs = [
            stack.enter_context(open_log(folder, run, dataset, options, restart=arguments.force))
            for run in runs
        ]
        for run, log in zip(runs, logs, strict=True):
            _answer(run, dataset, options, log, quiet=arguments.quiet)
    records = {run.label: log.records for run, log in zip(runs, logs, strict=True)}
    errors = (each.error for of_run in records.values() for each in of_run.values())
    reasons = Counter(error.partition("\n")[0] for error in errors if error is not None)
    return assemble_report(runs, records, dataset, options, notes), reasons


def _answer(
    run: EngineRun, dataset: Dataset, options: EvalOptions, log: SampleLog, *, quiet: bool
) -> None:
    from tqdm import tqdm

    from divprune.runtime.reports.eval.evaluate import evaluate_run, to_do

    left, failed = to_do(run, dataset, log), 0
    pause = _REDRAW_S if sys.stderr.isatty() else _LINE_S

    def count(record: Record) -> None:
        nonlocal failed
        if record.error is not None:
            failed += 1
            bar.set_postfix(failed=failed, refresh=False)
        bar.update()

    with tqdm(
        total=left, desc=run.label, unit="answer", mininterval=pause, disable=quiet or not left
    ) as bar:
        evaluate_run(run, dataset, options, log, count)


if __name__ == "__main__":
    raise SystemExit(main())
