"""``divprune-batch``: ask about many pictures, on one machine or a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.backends import BACKENDS, DEVICES
from divprune.runtime.cli.main_guard import ToolParser, add_common_options, run_tool

if TYPE_CHECKING:
    from divprune.runtime.serving.batch.cluster import ClusterOptions
    from divprune.runtime.serving.batch.worker import WorkerOptions

__all__ = ["main"]

_DESCRIPTION = """\
Ask an engine directory about every row of INPUT: a .jsonl or .parquet file, a folder of .parquet
files, or a folder of pictures. OUTPUT is a folder of answers; a run that was ended in any way goes
on where it was when it is started again. A bad picture is a row with an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-batch", description=_DESCRIPTION)
    add = parser.add_argument
    add("engine_dir", type=Path, metavar="ENGINE_DIR", help="directory from divprune-export")
    add("input", type=Path, metavar="INPUT", help="rows, or pictures")
    add("output", type=Path, metavar="OUTPUT", help="folder of answers, new or of the same run")
    add(
        "--prompt", default="Describe the image.", help="of rows without one (default: %(default)s)"
    )
    add("--keep", help="fraction of visual tokens kept, or auto:C (default: as exported)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-p", type=float, default=1.0, help="nucleus of the draw (default: all tokens)")
    add("--seed", type=int, help="make draws repeatable")
    add("--format", choices=("jsonl", "parquet"),
        help="default: parquet if OUTPUT ends so, otherwise jsonl")  # fmt: skip
    add("--key-column", default="id", metavar="NAME", help="tells rows apart (%(default)s)")
    add("--image-column", default="image", metavar="NAME", help="default: %(default)s")
    add("--prompt-column", default="prompt", metavar="NAME", help="default: %(default)s")
    _add_workers(parser)
    add_common_options(parser)
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("workers").add_argument
    add("--workers", type=int, default=1, metavar="N",
        help="processes, each with the model; more than one needs Ray (%(default)s)")  # fmt: skip
    add("--address", help="of a Ray cluster, or auto (default: one on this machine)")
    add(
        "--cpus-per-worker", type=float, default=1.0, metavar="N", help="asked of Ray (%(default)s)"
    )
    add(
        "--gpus-per-worker", type=float, default=0.0, metavar="N", help="asked of Ray (%(default)s)"
    )
    add("--threads", type=int, metavar="N", help="threads inside one operator")
    add("--backend", help=f"{', '.join(BACKENDS)} (default: what the export was made for)")
    add("--device", choices=DEVICES, help="default: cuda with TensorRT, otherwise cpu")


def _run(arguments: argparse.Namespace) -> int:
    from divprune.runtime.serving.batch.progress import Progress
    from divprune.runtime.serving.batch.run import run_batch
    from divprune.runtime.serving.batch.table import Columns, import_pyarrow, open_table

    options, cluster = _worker_options(arguments), _cluster_options(arguments)
    form = arguments.format or ("parquet" if arguments.output.suffix == ".parquet" else "jsonl")
    if form == "parquet":
        import_pyarrow()
    columns = Columns(arguments.key_column, arguments.image_column, arguments.prompt_column)
    table = open_table(arguments.input, columns, arguments.prompt)
    if form == "parquet":
        _check_apart(arguments.input, arguments.output)
    stream = None if arguments.quiet else sys.stderr
    progress = run_batch(
        table,
        arguments.output,
        form,
        options,
        cluster,
        lambda total, done, failed: Progress(total, done, failed, stream),
    )
    return 0 if progress.done else 2


def _check_apart(source: Path, output: Path) -> None:
    """Answers below INPUT would be taken for rows when the run goes on."""
    from divprune.runtime.errors import OptionError

    if source.resolve() in output.resolve().parents:
        raise OptionError(
            f"OUTPUT {output} is a folder of INPUT",
            expected=f"a folder that is not below {source}, or --format jsonl",
        )


def _worker_options(arguments: argparse.Namespace) -> WorkerOptions:
    """Check everything that can be checked before a worker is started."""
    from divprune.runtime.backends import check_choice
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.keep import AutoKeep, parse_keep
    from divprune.runtime.directory.limits import validate_max_new_tokens
    from divprune.runtime.generation.kept_tokens import KeepRule
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.serving.batch.worker import WorkerOptions

    keep = None if arguments.keep is None else parse_keep(arguments.keep)
    check_choice(arguments.backend, arguments.device, arguments.threads)
    sampling = SamplingOptions(arguments.temperature, arguments.top_p, arguments.seed)
    KeepRule.of(EngineDirectory.open(arguments.engine_dir).manifest, keep)
    return WorkerOptions(
        engine_dir=str(arguments.engine_dir.resolve()),
        keep=str(keep) if isinstance(keep, AutoKeep) else keep,
        max_new_tokens=validate_max_new_tokens(arguments.max_new_tokens),
        sampling=sampling,
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
    )


def _cluster_options(arguments: argparse.Namespace) -> ClusterOptions | None:
    from divprune.runtime.serving.batch.cluster import ClusterOptions, import_ray

    cluster = ClusterOptions(
        arguments.workers, arguments.address, arguments.cpus_per_worker, arguments.gpus_per_worker
    )
    if cluster.workers == 1 and cluster.address is None:
        return None
    import_ray()
    return cluster


if __name__ == "__main__":
    raise SystemExit(main())
