"""`earmark funasr`: fine-tune Fun-ASR-Nano outside the workflow, with the flags that FunASR's users know."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from earmark.errors import InputError
from earmark.funasr_nano.model_folder import PUBLISHED
from earmark.funasr_nano.settings import CONF, set_key

# Flags by the names that users know, and the keys they set.
_KEYS = {
    "batch_size": ("dataset_conf.batch_size", int, "in speech_length + text_length (or in lines, by "
    "dataset_conf.batch_type)"),
    "max_epoch": ("train_conf.max_epoch", int, "epochs"),
    "learning_rate": ("optim_conf.lr", float, "at its highest"),
}  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `funasr` to the commands of `earmark`."""
    parser = commands.add_parser("funasr", help="fine-tune Fun-ASR-Nano through FunASR's own trainer")
    train = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "train",
        help="train on ChatML lines",
        description="Fine-tune Fun-ASR-Nano. --conf holds FunASR's configuration; flags and --set are laid over it.",
    )
    _flag(train, "model_dir", required=True, help=f"folder of a Fun-ASR-Nano, or its hub id ({PUBLISHED})")
    _flag(train, "train_data", type=Path, required=True, help="JSON lines: ChatML, or the older source/target")
    _flag(train, "valid_data", type=Path, required=True, help="the same, to choose the best checkpoint on")
    _flag(train, "output_dir", type=Path, required=True, help="a model directory, which appears when it is whole")
    for name, (key, type_, told) in _KEYS.items():
        _flag(train, name, type=type_, help=f"{told}; sets {key}")
    _flag(train, "conf", type=Path, default=CONF, help="default: %(default)s")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
        help="any key of FunASR's, for instance train_conf.accum_grad=4; may be given again",
    )  # fmt: skip
    _flag(
        train, "python", type=Path, default=Path(".venv-funasr/bin/python"),
        help="interpreter of FunASR's environment (default: %(default)s, which `make funasr` builds)",
    )  # fmt: skip
    _flag(train, "seed", type=int, default=0, help="default: %(default)s")
    _flag(train, "processes", type=int, default=1, help="each with a GPU (default: %(default)s)")
    _flag(train, "threads", type=int, default=1, help="cores of all processes together (default: %(default)s)")
    train.add_argument(
        "--overwrite", action="store_true", help="replace a trained model that lies in output_dir already"
    )
    _flag(train, "max_rejected_fraction", type=float, default=0.1, help="of the lines (default: %(default)s)")
    train.set_defaults(command=_train)


def _flag(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    dashed = f"--{name.replace('_', '-')}"
    parser.add_argument(f"--{name}", *([dashed] if "_" in name else []), **options)


def _train(arguments: argparse.Namespace) -> None:
    # Imported here: it needs pyarrow and more, which other commands do without.
    from earmark.funasr_nano.train import WHICH, train_funasr_nano

    if (arguments.output_dir / WHICH).exists() and not arguments.overwrite:
        raise InputError(
            f"{arguments.output_dir}: holds a trained model already; give another output_dir, or --overwrite to "
            "replace it when the new one is whole"
        )
    train_funasr_nano(
        {"model_dir": arguments.model_dir, "python": str(arguments.python), "conf": str(arguments.conf)},
        train_lines=arguments.train_data,
        dev_lines=arguments.valid_data,
        output=arguments.output_dir,
        processes=arguments.processes,
        threads=arguments.threads,
        seed=arguments.seed,
        max_rejected_fraction=arguments.max_rejected_fraction,
        flags=flags_of(arguments),
    )


def flags_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of FunASR's that the command line sets."""
    flags: dict[str, Any] = {}
    for assignment in arguments.assignments:
        set_key(flags, assignment)
    for name, (key, _, _) in _KEYS.items():
        if (value := getattr(arguments, name)) is not None:
            section, _, last = key.partition(".")
            flags.setdefault(section, {})[last] = value
    return flags
