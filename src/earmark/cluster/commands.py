"""The subcommands of `earmark` that watch a run: their options. What they do is imported when one is called."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_RUN_HELP = "the run's name, `run` in its configuration (default: the one that was started last)"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Register status, tail, resources, doctor and resume."""
    _add_status(commands)
    _add_tail(commands)
    _add_resources(commands)
    _add_doctor(commands)
    _add_resume(commands)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help=_RUN_HELP)
    _add_directory(parser)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="the folder that Snakemake works in (default: this one)"
    )


def _add_status(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "status",
        help="what a run's jobs do",
        description="Per stage of the last call of Snakemake: how many jobs are done, run, wait in Slurm's queue, are "
        "not submitted yet, or failed; then every job that runs, waits in the queue (and why) or failed (and why).",
    )
    _add_folders(parser)
    parser.add_argument("--all", action="store_true", help="list every such job, not the first 20 of each kind")
    parser.add_argument("--json", action="store_true", help="a JSON line for every job of the run")
    parser.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> None:
    from earmark.cluster.status_page import print_status

    print_status(arguments.run, folder=arguments.directory, every_job=arguments.all, as_json=arguments.json)


def _add_tail(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "tail",
        help="the newest log of a stage",
        description="Print the end of the newest log of a stage: the job's own and, on Slurm, what Slurm wrote of it.",
    )
    parser.add_argument("stage", nargs="?", metavar="STAGE", help="a stage or a rule; default: any")
    _add_folders(parser)
    parser.add_argument("-n", type=int, default=20, metavar="LINES", help="lines of each log (default: %(default)s)")
    parser.add_argument(
        "-f", "--follow", action="store_true",
        help="go on with what is written to any log of the stage, through retries, until Ctrl-C",
    )  # fmt: skip
    parser.set_defaults(command=_tail)


def _tail(arguments: argparse.Namespace) -> None:
    from earmark.cluster.tail import tail

    tail(arguments.run, arguments.stage, folder=arguments.directory, lines=max(0, arguments.n), follow=arguments.follow)


def _add_resources(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "resources",
        help="what a run's jobs asked for and what they used",
        description="Per rule: time in the queue, run time, CPU and memory of the jobs that ended, beside what they "
        "asked for, and where to ask for less or more, as options for Snakemake.",
    )
    _add_folders(parser)
    parser.set_defaults(command=_resources)


def _resources(arguments: argparse.Namespace) -> None:
    from earmark.cluster.usage_page import print_usage

    print_usage(arguments.run, folder=arguments.directory)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="whether this machine can run a configuration",
        description="Check what a configuration needs on this machine: packages, aligner, audio, models, Slurm's "
        "partitions, room on the disks, a step of training. A line a check; exit status 1 if one is a problem.",
    )
    parser.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what overrides config.yaml, as for Snakemake",
    )
    # An editable install lies in the workflow's own repository.
    workflow = next((folder for folder in Path(__file__).parents if (folder / "Snakefile").is_file()), Path())
    parser.add_argument(
        "--workflow", type=Path, default=workflow, help="the folder of the Snakefile (default: %(default)s)"
    )
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> None:
    from earmark.cluster.doctor import examine

    if not examine(arguments.workflow, arguments.configfile):
        sys.exit(1)


def _add_resume(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "resume",
        help="take up a run whose Snakemake was killed",
        description="After Snakemake was killed: look for jobs that it left, unlock, and start it again. Where jobs "
        "live on, it lists them and stops, unless told to cancel them or to wait for them.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cancel", action="store_const", dest="mode", const="cancel", help="cancel jobs that live on")
    what.add_argument("--wait", action="store_const", dest="mode", const="wait", help="wait until they end")
    parser.add_argument(
        "--snakemake-is-gone", action="store_true",
        help="you have looked on the machine where the last Snakemake ran: it is gone",
    )  # fmt: skip
    parser.add_argument(
        "--forget-plan", action="store_true",
        help="a plan.json that cannot be read is to count as none; you know that its Snakemake is gone",
    )  # fmt: skip
    _add_directory(parser)
    parser.add_argument(
        "arguments", nargs="*", metavar="-- ARGUMENTS", help="Snakemake's; default: those that it had the last time"
    )
    parser.set_defaults(command=_resume, mode="refuse")


def _resume(arguments: argparse.Namespace) -> None:
    from earmark.cluster.resume import resume

    resume(
        arguments.directory,
        arguments.arguments,
        mode=arguments.mode,
        snakemake_is_gone=arguments.snakemake_is_gone,
        forget_plan=arguments.forget_plan,
    )
