"""Before anything is read or loaded: does the installed FunASR know the configuration, and has the machine the GPUs?

job: conf (what the user set), model (that over the model's own configuration), processes, result (a path).
Writes {funasr, torch, cuda: number of GPUs, keys} to `result`.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from earmark.errors import ConfigError
from earmark.funasr_nano.inside.known_keys import check_keys, known_keys


def _check_features() -> None:
    """Without a library for them, FunASR passes over every line of the data with a warning."""
    from funasr.frontends.wav_frontend import kaldi

    try:
        kaldi.fbank(torch.zeros(1, 16000), num_mel_bins=80)
    except ImportError:
        raise ConfigError(
            f"{sys.executable}: FunASR cannot compute features of audio in this environment; install "
            "kaldi-native-fbank there (pip install kaldi-native-fbank), or torchaudio of torch's own version"
        ) from None


def main(job: dict[str, Any]) -> None:
    import funasr  # noqa: F401 (it fills the tables of classes)

    check_keys(job["conf"], job["model"])
    _check_features()
    gpus, processes = torch.cuda.device_count(), job["processes"]
    if processes > 1 and gpus < processes:
        raise ConfigError(
            f"train.processes is {processes}, but this job has {gpus or 'no'} GPU; FunASR's trainer wants a GPU for "
            "each of several processes, so give it as many GPUs (on Slurm it asks for them), or set train.processes to "
            "1"
        )
    found = {"funasr": metadata.version("funasr"), "torch": torch.__version__, "cuda": gpus}
    Path(job["result"]).write_text(json.dumps(found | {"keys": known_keys(job["model"])}), encoding="utf-8")
