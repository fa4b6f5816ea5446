"""Fine-tuning as a job of the workflow: in one process or several, into a folder that appears when it is whole.

    python -m torch.distributed.run --standalone --nproc-per-node N -m earmark.speech_llm FLAGS

is what several processes run.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from earmark.artifacts import atomic_folder, write_json
from earmark.errors import ConfigError, EarmarkError, InputError
from earmark.files import read_json
from earmark.speech_llm.checkpoints import training_key
from earmark.speech_llm.section import as_flags
from earmark.speech_llm.settings import Settings
from earmark.speech_llm.train import SETTINGS, finetune

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_CHECKPOINTS = "checkpoints"
_OF_OTHER_PROCESSES = "process_*"
_SAYS_WHY = "earmark: "  # how the line of a process begins that was told to end


def train_speech_llm(settings: Settings, *, wavs: Sequence[Path], processes: int, threads: int) -> None:
    """`finetune`, with `output_dir` an artifact like any other: it appears when all of it is there.

    Until then the work lies in a hidden folder beside it, `models/.whisper_qwen3.training`, which outlives a killed
    job: the next attempt goes on from its last checkpoint. Checkpoints of other settings are removed first. `wavs` are
    the folders of the wavs that the lines name. `processes` share `threads` cores and have a GPU each. ConfigError if
    there are GPUs, but fewer; InputError if the wavs are still packed.
    """
    check_unpacked(wavs, Path(settings.data.train_json))
    output = Path(settings.train.output_dir)
    work = output.parent / f".{output.name}.training"
    working = dataclasses.replace(settings, train=dataclasses.replace(settings.train, output_dir=str(work)))
    _remove_other_checkpoints(working, work, processes)
    if processes == 1:
        torch.set_num_threads(threads)
        finetune(working)
    else:
        _finetune_in_processes(working, processes, threads)
    with atomic_folder(output) as folder:
        shutil.copytree(
            work, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_CHECKPOINTS, _OF_OTHER_PROCESSES)
        )
        written = read_json(folder / SETTINGS)
        written["train"]["output_dir"] = str(output)
        write_json(folder / SETTINGS, written)
    shutil.rmtree(work)


def check_unpacked(wavs: Sequence[Path], lines: Path) -> None:
    """InputError if the wavs of `lines` are packed, and not unpacked as well."""
    packed = [folder / "wavs.tar" for folder in wavs if (folder / "wavs.tar").exists()]
    if not packed:
        return
    with lines.open(encoding="utf-8") as file:
        first = file.readline()
    path = first.partition("<audio>")[2].partition("</audio>")[0]
    if not path or not Path(path).exists():
        raise InputError(
            f"{packed[0]}: the wavs that {lines} names are packed (export.max_wav_files, export.wav_root); unpack all "
            f"{len(packed)} where the lines say ({path or 'no path'}), or raise export.max_wav_files, and run again"
        )


def _remove_other_checkpoints(settings: Settings, work: Path, processes: int) -> None:
    data = [Path(path) for path in (settings.data.train_json, settings.data.valid_json) if path]
    mine = training_key(settings, data, processes)
    for folder in work.glob(f"{_CHECKPOINTS}/*"):
        if folder.name != mine:
            log.info("%s: checkpoints of another configuration, other inputs or another version; removed", folder)
            shutil.rmtree(folder)


def _finetune_in_processes(settings: Settings, processes: int, threads: int) -> None:
    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(
            f"train.processes is {processes}, but this job was given {torch.cuda.device_count()} GPU; ask for as many "
            "GPUs as processes (on Slurm: cluster.gpu_gres), or set train.processes to their number"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    torchrun = subprocess.Popen(
        [*command, "-m", "earmark.speech_llm", *as_flags(settings)],
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, threads // processes))},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=_end_with_parent,
    )
    why = None
    try:
        assert torchrun.stderr is not None
        for line in torchrun.stderr:
            sys.stderr.write(line)
            if why is None and line.startswith(_SAYS_WHY):
                why = line.removeprefix(_SAYS_WHY).strip()
        status = torchrun.wait()
    except BaseException:
        torchrun.send_signal(signal.SIGTERM)  # it ends its processes
        torchrun.wait()
        raise
    if status:
        raise EarmarkError(
            why
            or f"one of {processes} training processes ended without a word of its own (status {status}); its last "
            "lines are above. A process that is killed often had too little memory"
        )


def _end_with_parent() -> None:
    """Have Linux tell this process to end when its parent is gone: a job that is killed leaves no training behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
