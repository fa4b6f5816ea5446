"""The command `earmark`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from earmark.errors import EarmarkError
from earmark.report.figures import print_figures


def main() -> int:
    """Run one subcommand; an EarmarkError is printed as one sentence and gives exit status 1."""
    parser = argparse.ArgumentParser(prog="earmark", description="Teach a speech model which words matter.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    figures = commands.add_parser("figures", help="print what a finished run reached and where its report is")
    figures.add_argument("run_folder", type=Path, help="the run's folder, for instance data/demo")
    figures.set_defaults(command=lambda arguments: print_figures(arguments.run_folder))
    arguments = parser.parse_args()
    try:
        arguments.command(arguments)
    except EarmarkError as error:
        print(f"earmark: {error}", file=sys.stderr)
        return 1
    return 0
