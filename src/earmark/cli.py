"""The command `earmark`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from earmark.errors import EarmarkError
from earmark.export.convert import convert
from earmark.export.formats import FORMATS
from earmark.export.tokenizer import BUNDLED
from earmark.report.figures import print_figures


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("convert", help="write a list of audio and text in a training format")
    parser.add_argument("--input", type=Path, required=True, help='JSON lines of {"key", "wav", "txt"}')
    parser.add_argument("--output", type=Path, required=True, help="the JSON lines to write")
    parser.add_argument("--format", choices=list(FORMATS), default="funasr_nano", help="default: %(default)s")
    parser.add_argument(
        "--calculate-lengths", action=argparse.BooleanOptionalAction, default=True,
        help="add the lengths of audio and text that the FunASR formats hold (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", default=BUNDLED, help="counts funasr_nano's text_length: %(default)s, a model folder or a hub id"
    )
    parser.add_argument("--prompt", default="Transcribe the speech.", help="what conversation and flat ask for")
    parser.add_argument("--audio-root", type=Path, help="where relative paths start; default: the input's folder")
    parser.add_argument("--max-rejected-fraction", type=float, default=0.1, help="default: %(default)s")
    parser.set_defaults(
        command=lambda arguments: convert(
            arguments.input, arguments.output, format=arguments.format, calculate_lengths=arguments.calculate_lengths,
            tokenizer=arguments.tokenizer, prompt=arguments.prompt, audio_root=arguments.audio_root,
            max_rejected_fraction=arguments.max_rejected_fraction,
        )
    )  # fmt: skip


def main() -> int:
    """Run one subcommand; an EarmarkError is printed as one sentence and gives exit status 1."""
    parser = argparse.ArgumentParser(prog="earmark", description="Teach a speech model which words matter.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    figures = commands.add_parser("figures", help="print what a finished run reached and where its report is")
    figures.add_argument("run_folder", type=Path, help="the run's folder, for instance data/demo")
    figures.set_defaults(command=lambda arguments: print_figures(arguments.run_folder))
    _add_convert(commands)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arguments.command(arguments)
    except (EarmarkError, OSError) as error:
        print(f"earmark: {error}", file=sys.stderr)
        return 1
    return 0
