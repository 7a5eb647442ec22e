"""``divprune-serve``: answer OpenAI's chat API, and a page, from an engine directory."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.backends import BACKENDS, DEVICES
from divprune.runtime.cli.main_guard import (
    ToolParser,
    add_common_options,
    add_memory_options,
    run_tool,
)
from divprune.runtime.memory import share_one_heap

if TYPE_CHECKING:
    from divprune.runtime.backends import Backend
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.serving.options import ServerOptions

__all__ = ["main"]

_DESCRIPTION = """\
Serve an exported engine directory: OpenAI's chat API below /v1, a page at /, /health, /metrics.
Pictures come as data: URLs; nothing is fetched and no file is read unless it is switched on."""
_KEY_VARIABLE = "DIVPRUNE_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-serve", description=_DESCRIPTION)
    add = parser.add_argument
    add("engine_dir", type=Path, metavar="ENGINE_DIR", help="directory from divprune-export")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="0 takes any that is free (default: %(default)s)")
    add("--keep", help="fraction of visual tokens kept, or auto:C (default: as exported)")
    add("--model-name", metavar="NAME", help="what clients call it (default: the directory's name)")
    _add_access(parser)
    _add_limits(parser)
    add("--backend", help=f"{', '.join(BACKENDS)} (default: what the export was made for)")
    add("--device", choices=DEVICES, help="default: cuda with TensorRT, otherwise cpu")
    add("--threads", type=int, metavar="N", help="threads inside one operator")
    add("--encode-ahead", action="store_true", help="encode the next request's pictures while an"
        " answer is being decoded: where that leaves a processor idle")  # fmt: skip
    add_memory_options(parser)
    add_common_options(parser)
    return parser


def _add_access(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("access").add_argument
    add("--api-key", action="append", default=[], metavar="KEY",
        help=f"ask for it (or several); other users of this machine see arguments: {_KEY_VARIABLE}"
        " or --api-key-file keep it to you")  # fmt: skip
    add("--api-key-file", type=Path, metavar="FILE", help="keys, one a line")
    add("--no-api-key", action="store_true", help="serve the network without asking for a key")
    add("--allowed-host", action="append", default=[], metavar="NAME",
        help="a further name this server is reached under")  # fmt: skip
    add("--trusted-proxy", action="append", default=[], metavar="ADDRESS",
        help="a reverse proxy whose X-Forwarded-For is believed")  # fmt: skip
    add("--allow-urls", nargs="?", const="*", metavar="HOSTS",
        help="fetch pictures from public hosts, or only from these (with commas)")  # fmt: skip
    add("--media-dir", type=Path, metavar="DIR", help="read pictures below DIR for file: URLs")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("limits").add_argument
    add("--max-queue", type=int, default=16, metavar="N", help="requests that wait (%(default)s)")
    add("--max-tokens", type=int, default=1024, metavar="N", help="of an answer (%(default)s)")
    add("--max-body-mib", type=int, default=32, metavar="N", help="of a request (%(default)s)")
    add("--max-megapixels", type=int, default=40, metavar="N", help="of a picture (%(default)s)")
    add("--max-images", type=int, default=16, metavar="N", help="of a request (%(default)s)")
    add("--max-cache-mib", type=int, default=256, metavar="N",
        help="of encoded pictures that are kept for later questions (%(default)s)")  # fmt: skip
    add("--timeout", type=float, default=600, metavar="S", help="for an answer (%(default)s)")
    add("--grace", type=float, default=30, metavar="S", help="to finish when stopped (%(default)s)")


def _run(arguments: argparse.Namespace) -> int:
    from divprune.runtime.serving.server import bind, require_packages, run

    share_one_heap()  # before ONNX Runtime starts threads
    options = _options(arguments)
    _check_exposure(arguments.host, arguments, options)
    require_packages()
    directory = _check_directory(arguments)
    listener = bind(arguments.host, arguments.port)
    with listener:
        from divprune.runtime.backends import load_backend
        from divprune.runtime.pipeline import Pipeline
        from divprune.runtime.serving.app import ChatServer

        backend = load_backend(
            arguments.backend,
            directory,
            device=arguments.device,
            threads=arguments.threads,
            residency=arguments.residency,
        )
        _check_ahead(arguments, backend)
        pipeline = Pipeline(directory, backend, picture_cache_bytes=options.max_cache_bytes)
        server = ChatServer(pipeline, options)
        _set_log_levels(quiet=arguments.quiet)
        if not arguments.quiet:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"{options.model_name} at http://{shown}:{port}", file=sys.stderr, flush=True)
        run(server, options, listener, ",".join(arguments.trusted_proxy))
    return 0


def _set_log_levels(*, quiet: bool) -> None:
    serving = logging.getLogger("divprune.runtime.serving")
    serving.setLevel(logging.ERROR if quiet else logging.INFO)
    # Said for every request without max_tokens otherwise: the length shows in finish_reason.
    logging.getLogger("divprune.runtime.directory.limits").setLevel(logging.ERROR)


def _options(arguments: argparse.Namespace) -> ServerOptions:
    from divprune.runtime.directory.keep import AutoKeep, parse_keep
    from divprune.runtime.serving.options import ServerOptions

    keep = None if arguments.keep is None else parse_keep(arguments.keep)
    hosts = (arguments.allow_urls or "").lower().split(",")
    return ServerOptions(
        model_name=arguments.model_name or arguments.engine_dir.resolve().name,
        keep=str(keep) if isinstance(keep, AutoKeep) else keep,
        api_keys=_api_keys(arguments),
        allowed_hosts=tuple(arguments.allowed_host),
        max_queue=arguments.max_queue,
        max_body=arguments.max_body_mib * 2**20,
        max_pixels=arguments.max_megapixels * 10**6,
        max_images=arguments.max_images,
        max_cache_bytes=arguments.max_cache_mib * 2**20,
        max_tokens=arguments.max_tokens,
        timeout_s=arguments.timeout,
        grace_s=arguments.grace,
        allow_urls=tuple(host.strip() for host in hosts if host.strip()),
        encode_ahead=arguments.encode_ahead,
        media_dir=arguments.media_dir,
    )


def _api_keys(arguments: argparse.Namespace) -> tuple[str, ...]:
    from divprune.runtime.errors import OptionError

    keys = list(arguments.api_key)
    if given := os.environ.get(_KEY_VARIABLE):
        keys.append(given)
    if arguments.api_key_file is not None:
        try:
            text = arguments.api_key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError("--api-key-file cannot be read", found=error) from error
        lines = [line.strip() for line in text.splitlines()]
        keys.extend(line for line in lines if line and not line.startswith("#"))
        if not keys:
            raise OptionError("--api-key-file holds no key", expected="one a line", found="none")
    return tuple(keys)


def _check_exposure(host: str, arguments: argparse.Namespace, options: ServerOptions) -> None:
    """Refuse to serve a network without a key, unless that is said in so many words."""
    from divprune.runtime.errors import OptionError

    if options.api_keys or arguments.no_api_key or _is_loopback(host):
        return
    raise OptionError(
        "this would let everyone on the network use the model",
        expected="an API key beside --host, or --no-api-key",
        found=f"--host {host}",
        fix=f'{_KEY_VARIABLE}="$(openssl rand -hex 24)" divprune-serve ...',
    )


def _check_ahead(arguments: argparse.Namespace, backend: Backend) -> None:
    from divprune.runtime.errors import OptionError

    if not arguments.encode_ahead:
        return
    if arguments.max_cache_mib == 0:
        raise OptionError(
            "--encode-ahead has nowhere to put the pictures",
            expected="a cache for them",
            found="--max-cache-mib 0",
        )
    if not backend.encodes_beside_decoding:
        raise OptionError(
            "--encode-ahead cannot be used here",
            expected="ONNX Runtime with vision graph and LLM in memory together, unrecorded",
            found=f"{backend.name}, --residency {arguments.residency}",
            fix="leave --encode-ahead out",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_directory(arguments: argparse.Namespace) -> EngineDirectory:
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.keep import parse_keep
    from divprune.runtime.generation.kept_tokens import KeepRule

    directory = EngineDirectory.open(arguments.engine_dir, max_seq_len=arguments.max_seq_len)
    keep = None if arguments.keep is None else parse_keep(arguments.keep)
    KeepRule.of(directory.manifest, keep)
    return directory


if __name__ == "__main__":
    raise SystemExit(main())
