"""``python -m divprune``: the list of commands, and any of them by its short name."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "export": ("divprune.export.cli", "a checkpoint to an engine directory"),
    "build": ("divprune.runtime.cli.build", "TensorRT engines in it, on the device"),
    "run": ("divprune.runtime.cli.run", "an answer about pictures"),
    "chat": ("divprune.runtime.cli.chat", "a conversation about pictures"),
    "serve": ("divprune.runtime.cli.serve", "OpenAI's chat API and a page"),
    "batch": ("divprune.runtime.cli.batch", "answers about many pictures, on many machines"),
    "bench": ("divprune.runtime.cli.bench", "times, memory and the speed-up over keep 1.0"),
    "compare": ("divprune.runtime.cli.compare", "several of its reports side by side"),
    "eval": ("divprune.runtime.cli.eval", "accuracy on a file of questions"),
    "plan": ("divprune.runtime.cli.plan", "the memory that a model needs, before anything else"),
}


def main() -> int:
    """List the commands, or run the one that is named."""
    name = sys.argv[1].removeprefix("divprune-") if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        del sys.argv[1]
        return int(importlib.import_module(COMMANDS[name][0]).main())
    lines = [f"  divprune-{command:<9}{what}" for command, (_, what) in COMMANDS.items()]
    usage = "usage: divprune-COMMAND ..., or python -m divprune COMMAND ..."
    help_ = "\n".join([usage, "", *lines])
    if name in COMMANDS:
        del sys.argv[1]
        return int(importlib.import_module(COMMANDS[name][0]).main())
    lines = [f"  divprune-{command:<9}{what}" for command, (_, what) in COMMANDS.items()]
    help_ = "\n".join(
        ["usage: divprune-COMMAND ..., or python -m divprune COMMAND ...", "", *lines]
    )
    if name in ("", "-h", "--help"):
        print(help_)
        return 0
    print(f"error: there is no command {sys.argv[1]!a}\n{help_}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
