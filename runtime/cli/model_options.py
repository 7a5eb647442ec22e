"""Options of the tools that load an engine directory and answer with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.backends import BACKENDS, DEVICES
from divprune.runtime.cli.main_guard import add_memory_options

if TYPE_CHECKING:
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.pipeline import Pipeline

__all__ = [
    "add_answer_options",
    "add_model_options",
    "check_answer_options",
    "load_pipeline",
    "open_directory",
]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how an engine directory is loaded."""
    add = parser.add_argument
    add("engine_dir", type=Path, metavar="ENGINE_DIR", help="directory from divprune-export")
    add("--backend", help=f"{', '.join(BACKENDS)} (default: what the export was made for)")
    add("--device", choices=DEVICES, help="default: cuda with TensorRT, otherwise cpu")
    add("--threads", type=int, metavar="N", help="threads inside one operator")
    add_memory_options(parser)
    add(
        "--verify",
        choices=("cached", "full"),
        default="cached",
        help="hash files that changed since the last time (cached), or all of them (full)",
    )


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how an answer is made."""
    add = parser.add_argument
    add(
        "--keep",
        metavar="K",
        help="fraction of visual tokens kept, or auto:C to keep as few as leave no dropped token "
        "less similar than C to a kept one (default: as exported)",
    )
    add(
        "--num-frames", type=int, metavar="N", help="frames taken of a video (default: the model's)"
    )
    add(
        "--fps",
        type=float,
        metavar="F",
        help="frames a second of a folder or an animation, for models that write times",
    )
    add("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--stop", action="append", default=[], metavar="TEXT", help="end the answer in front of"
        " this text; may be given again")  # fmt: skip
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how tokens are chosen").add_argument
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-k", type=int, default=0, metavar="N", help="draw from the N most probable tokens")
    add("--top-p", type=float, default=1.0, help="nucleus of the draw (default: all tokens)")
    add("--min-p", type=float, default=0.0, metavar="P", help="draw from tokens with at least this"
        " share of the largest probability")  # fmt: skip
    add("--seed", type=int, help="make draws repeatable")
    add("--repetition-penalty", type=float, metavar="X", help="above 1, what has occurred becomes"
        " less probable (default: the model's own)")  # fmt: skip


def check_answer_options(arguments: argparse.Namespace) -> SamplingOptions:
    """Check what can be checked before any file is opened; ``keep`` is parsed in place.

    Raises:
        OptionError: for a value out of range, and options that have no effect.
    """
    from divprune.runtime.backends import check_choice
    from divprune.runtime.directory.keep import parse_keep
    from divprune.runtime.directory.limits import validate_max_new_tokens
    from divprune.runtime.errors import OptionError
    from divprune.runtime.generation.sampling import SamplingOptions
    from divprune.runtime.generation.stop_text import validate_stop

    if arguments.keep is not None:
        arguments.keep = parse_keep(arguments.keep)
    validate_max_new_tokens(arguments.max_new_tokens)
    if arguments.num_frames is not None and arguments.num_frames < 1:
        raise OptionError(
            "--num-frames must be at least 1", expected="1 or more", found=arguments.num_frames
        )
    if arguments.fps is not None and not 0 < arguments.fps < 1e6:
        raise OptionError("--fps is no rate", expected="above 0", found=arguments.fps)
    check_choice(arguments.backend, arguments.device, arguments.threads)
    arguments.stop = validate_stop(arguments.stop)
    sampling = SamplingOptions(
        arguments.temperature,
        arguments.top_p,
        arguments.seed,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
    )
    without_effect = {
        "--top-p": arguments.top_p != 1.0,
        "--top-k": arguments.top_k != 0,
        "--min-p": arguments.min_p != 0.0,
        "--seed": arguments.seed is not None,
    }
    given = " and ".join(name for name, is_given in without_effect.items() if is_given)
    if arguments.temperature == 0 and given:
        raise OptionError(
            f"{given} would have no effect on a greedy answer",
            expected="a --temperature above 0 beside it",
            found="--temperature 0 (greedy, the default)",
            fix=f"add --temperature 0.7, or leave {given} out",
        )
    return sampling


def open_directory(arguments: argparse.Namespace) -> EngineDirectory:
    """Open and check the engine directory; nothing is loaded yet.

    Raises:
        EngineDirectoryError: if it is missing, damaged or of another schema.
        OptionError: for a ``--keep`` that it cannot serve.
    """
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.generation.kept_tokens import KeepRule

    directory = EngineDirectory.open(
        arguments.engine_dir, verify=arguments.verify, max_seq_len=arguments.max_seq_len
    )
    KeepRule.of(directory.manifest, arguments.keep)
    return directory


def load_pipeline(arguments: argparse.Namespace, directory: EngineDirectory) -> Pipeline:
    """Load an opened engine directory.

    Raises:
        BackendError: if the backend is missing, too old, or refuses the graphs.
    """
    from divprune.runtime.backends import load_backend
    from divprune.runtime.pipeline import Pipeline

    backend = load_backend(
        arguments.backend,
        directory,
        device=arguments.device,
        threads=arguments.threads,
        residency=arguments.residency,
    )
    return Pipeline(directory, backend)
