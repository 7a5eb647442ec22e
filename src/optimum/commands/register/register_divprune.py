"""`optimum-cli export divprune`: the arguments and behaviour of `divprune-export`.

Optimum imports every file of the namespace package `optimum.commands.register` when its
command line starts. No folder above may contain an `__init__.py`, and this module must import
nothing heavy.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from divprune.export import cli

if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["REGISTER_COMMANDS", "DivPruneExportCommand"]


class DivPruneExportCommand(BaseOptimumCLICommand):
    """Export a checkpoint to an engine directory with visual-token pruning inside."""

    COMMAND = CommandInfo(
        name="divprune",
        help="Export LLaVA-type models to ONNX with visual-token pruning inside (DivPrune).",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the arguments of `divprune-export`; the name is Optimum's."""
        cli.add_arguments(parser)

    def run(self) -> None:
        """Exports, and leaves with the exit code of `divprune-export`."""
        assert self.args is not None  # it was made for parsed arguments
        sys.exit(cli.run(self.args))


REGISTER_COMMANDS = [(DivPruneExportCommand, ExportCommand)]
