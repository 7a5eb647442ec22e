"""``divprune-bench``: measure what pruning buys on this machine."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.backends import BACKENDS, DEVICES
from divprune.runtime.cli.main_guard import (
    EXIT_INTERRUPTED,
    ToolParser,
    add_common_options,
    add_memory_options,
    run_tool,
)

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.reports.bench.report import Report
    from divprune.runtime.reports.bench.workload import BenchOptions

__all__ = ["main"]

_DESCRIPTION = """\
Measure an exported engine directory with several fractions of visual tokens kept. They take
turns within one process, so that a machine that warms up or gets busy favours none of them.
The report goes to stdout; Ctrl-C ends the measurement and reports what there is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-bench", description=_DESCRIPTION)
    add = parser.add_argument
    add("engine_dir", type=Path, metavar="ENGINE_DIR", nargs="?",
        help="directory from divprune-export; none with --serve")  # fmt: skip
    add("--keep", metavar="LIST", help="fractions kept, such as 1.0,0.25,0.1, and auto:C"
        " (default: as exported); 1.0 joins wherever the directory has it")  # fmt: skip
    add("--image", help="path, http(s) URL, or - for standard input (default: built-in)")
    add("--prompt", default="Describe the image.", help="the question (default: %(default)s)")
    add("--prompt-tokens", type=int, metavar="N", help="pad the prompt to about N text tokens")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    add("--ignore-eos", action="store_true", help="go on to --max-new-tokens in any case")
    add("--warmup", type=int, default=3, metavar="N", help="rounds not counted (%(default)s)")
    add("--iters", type=int, default=10, metavar="N", help="rounds that count (%(default)s)")
    add("--backend", help=f"{', '.join(BACKENDS)} (default: what the export was made for)")
    add("--device", choices=DEVICES, help="default: cuda with TensorRT, otherwise cpu")
    add("--threads", type=int, metavar="N", help="threads inside one operator")
    add_memory_options(parser)
    add("--no-probe", action="store_true", help="skip the 2-second probe of the CPU and with it"
        " the roofline times")  # fmt: skip
    add("--serve", metavar="URL", help="measure a server of OpenAI's API instead, with --image,"
        " --prompt, --max-new-tokens, --warmup and --iters for each client; its key stands in"
        " OPENAI_API_KEY")  # fmt: skip
    add("--clients", default="1,4,16", metavar="LIST", help="of --serve at once (%(default)s)")
    add("--output", type=Path, metavar="FILE", help="also write it: .json, .csv, .md or .html")
    add("--json", action="store_true", help="print the report as JSON instead of tables")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.serve is not None:
        return _measure_server(arguments)
    _require_directory(arguments)
    options = _check_options(arguments)
    image, directory = _check_inputs(arguments, options)
    report = _measure(arguments, options, image, directory)

    from divprune.runtime.reports.bench.layout import render_text
    from divprune.runtime.reports.bench.output import write_report
    from divprune.runtime.reports.bench.picture import draw_kept_patches

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    text = report.to_json() if arguments.json else render_text(report)
    try:
        print(text, end="", flush=True)
    finally:  # a reader that went away must not cost the file
        if path := arguments.output:
            write_report(report, path, lambda: draw_kept_patches(report, directory, image))
            if not arguments.quiet:
                print(f"written: {path}", file=sys.stderr)
    if report.interrupted:
        print("interrupted: the report has what was measured until then", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _require_directory(arguments: argparse.Namespace) -> None:
    from divprune.runtime.errors import OptionError

    if arguments.engine_dir is None:
        raise OptionError(
            "nothing to measure was named", expected="ENGINE_DIR, or --serve URL", found="neither"
        )


def _measure_server(arguments: argparse.Namespace) -> int:
    import json
    import os

    from divprune.runtime.errors import OptionError
    from divprune.runtime.inputs.image_loading import load_image
    from divprune.runtime.reports.bench.picture import built_in_picture
    from divprune.runtime.reports.bench.server_load import (
        LoadOptions,
        measure_server,
        parse_clients,
        render_load,
    )

    if arguments.engine_dir is not None or arguments.output is not None:
        raise OptionError("--serve goes without ENGINE_DIR and --output", fix="--json > FILE")
    options = LoadOptions(
        url=arguments.serve,
        clients=parse_clients(arguments.clients),
        prompt=arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        warmup=arguments.warmup,
        iters=arguments.iters,
        api_key=os.environ.get("OPENAI_API_KEY"),
    )
    image = load_image(arguments.image) if arguments.image else built_in_picture()

    def progress(words: str) -> None:
        if not arguments.quiet:
            print(words, file=sys.stderr, flush=True)

    rows = measure_server(options, image, progress)
    if arguments.json:
        print(json.dumps({"server": options.url, "rows": [row.to_dict() for row in rows]}))
    else:
        print(render_load(rows), end="")
    return 0


def _check_options(arguments: argparse.Namespace) -> BenchOptions:
    """Check what can be checked before any file is opened."""
    from divprune.runtime.directory.keep import parse_keeps
    from divprune.runtime.reports.bench.output import check_output
    from divprune.runtime.reports.bench.workload import BenchOptions

    options = BenchOptions(
        keeps=parse_keeps(arguments.keep) if arguments.keep is not None else None,
        prompt=arguments.prompt,
        prompt_tokens=arguments.prompt_tokens,
        max_new_tokens=arguments.max_new_tokens,
        ignore_eos=arguments.ignore_eos,
        warmup=arguments.warmup,
        iters=arguments.iters,
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
        residency=arguments.residency,
        probe=not arguments.no_probe,
    )
    if arguments.output:
        check_output(arguments.output)
    return options


def _check_inputs(
    arguments: argparse.Namespace, options: BenchOptions
) -> tuple[Image.Image, EngineDirectory]:
    """Open what is cheap, so that a wrong name shows before gigabytes are loaded."""
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.inputs.image_loading import load_image
    from divprune.runtime.reports.bench.picture import built_in_picture
    from divprune.runtime.reports.bench.workload import check_prompt_tokens, choose_keeps

    image = load_image(arguments.image) if arguments.image else built_in_picture()
    directory = EngineDirectory.open(arguments.engine_dir, max_seq_len=arguments.max_seq_len)
    choose_keeps(directory.manifest, options.keeps)
    check_prompt_tokens(directory.manifest, options.prompt_tokens)
    return image, directory


def _measure(
    arguments: argparse.Namespace,
    options: BenchOptions,
    image: Image.Image,
    directory: EngineDirectory,
) -> Report:
    from divprune.runtime.reports.bench.benchmark import benchmark
    from divprune.runtime.reports.bench.live_table import LiveTable
    from divprune.runtime.reports.bench.picture import BUILT_IN

    live = LiveTable(options.warmup + options.iters)
    source = arguments.image or BUILT_IN
    try:
        if arguments.quiet:
            return benchmark(directory, options, image, source)
        return benchmark(directory, options, image, source, live.update)
    finally:
        live.close()


if __name__ == "__main__":
    raise SystemExit(main())
