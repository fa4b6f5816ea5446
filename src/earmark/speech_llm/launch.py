"""Fine-tuning as a job of the workflow: in one process or several, into a folder that appears when it is whole.

    python -m torch.distributed.run --standalone --nproc-per-node N -m earmark.speech_llm.launch FLAGS

is what several processes run.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from earmark.artifacts import atomic_folder, write_json
from earmark.files import read_json
from earmark.packed_wavs import check_unpacked
from earmark.speech_llm.checkpoints import training_key
from earmark.speech_llm.section import as_flags
from earmark.speech_llm.settings import Settings, parse_settings
from earmark.speech_llm.train import SETTINGS, finetune
from earmark.torchrun import launch_folder, process, torchrun

log = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
_OF_OTHER_PROCESSES = "process_*"


def train_speech_llm(settings: Settings, *, wavs: Sequence[Path], processes: int, threads: int, nodes: int = 1) -> None:
    """`finetune`, with `output_dir` an artifact like any other: it appears when all of it is there.

    Until then the work lies in a hidden folder beside it, `models/.whisper_qwen3.training`, which outlives a killed
    job: the next attempt goes on from its last checkpoint. What a training of other settings left there is removed
    first. `wavs` are the folders of the wavs that the lines name. On each of `nodes` nodes, `processes` share `threads`
    cores and have a GPU each. ConfigError as `torchrun.torchrun` says; InputError if the wavs are still packed.
    """
    check_unpacked(wavs, Path(settings.data.train_json))
    output = Path(settings.train.output_dir)
    work = output.parent / f".{output.name}.training"
    working = dataclasses.replace(settings, train=dataclasses.replace(settings.train, output_dir=str(work)))
    _remove_other_work(working, work, processes * nodes)
    if processes == nodes == 1:
        torch.set_num_threads(threads)
        finetune(working)
    else:
        with launch_folder(output, nodes) as folder:
            torchrun(__name__, as_flags(working), processes=processes, threads=threads, folder=folder, nodes=nodes)
    with atomic_folder(output) as folder:
        shutil.copytree(
            work, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_CHECKPOINTS, _OF_OTHER_PROCESSES)
        )
        written = read_json(folder / SETTINGS)
        written["train"]["output_dir"] = str(output)
        write_json(folder / SETTINGS, written)
    shutil.rmtree(work)


def _remove_other_work(settings: Settings, work: Path, processes: int) -> None:
    data = [Path(path) for path in (settings.data.train_json, settings.data.valid_json) if path]
    mine = training_key(settings, data, processes)
    if work.exists() and [folder.name for folder in work.glob(f"{_CHECKPOINTS}/*")] != [mine]:
        log.info("%s: work of another configuration, on other inputs or of another version; removed", work)
        shutil.rmtree(work)


def main() -> None:
    """One of several processes."""
    with process():
        finetune(parse_settings(sys.argv[1:], "python -m earmark.speech_llm.launch"))


if __name__ == "__main__":
    main()
