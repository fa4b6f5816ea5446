"""FunASR's training program with guards around it, and a look into every file that it saved.

job: kwargs (all that `funasr.bin.train_ds.main` is given), seed.
Writes into kwargs.output_dir what FunASR writes, audit.json, train_metrics.jsonl and which_model.json.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from funasr.bin import train_ds
from omegaconf import OmegaConf

from earmark.errors import EarmarkError
from earmark.funasr_nano.inside.guards import check_safe, check_saved, is_lora
from earmark.funasr_nano.inside.trainer import AUDIT, METRICS, UNFINISHED, guarded, write_json
from earmark.funasr_nano.settings import check_no_foreign_code

log = logging.getLogger(__name__)

WHICH = "which_model.json"
BEST, LAST = "model.pt.best", "model.pt"


def main(job: dict[str, Any]) -> None:
    kwargs = OmegaConf.to_container(OmegaConf.create(job["kwargs"]), resolve=True)
    assert isinstance(kwargs, dict)
    check_no_foreign_code(kwargs)  # once more: a reference in it may have hidden a key
    folder = Path(kwargs["output_dir"])
    first = os.environ.get("RANK", "0") == "0"
    if first:
        for unfinished in folder.glob(f"*{UNFINISHED}"):
            unfinished.unlink()
        if not (folder / LAST).exists():
            (folder / METRICS).write_text("", encoding="utf-8")
    resumed = folder / LAST
    for path in (
        kwargs["init_param"],
        (kwargs.get("ctc_decoder_conf") or {}).get("init_param_path"),
        resumed if resumed.exists() else None,
    ):
        if path:
            check_safe(Path(path))
    kwargs["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    kwargs["ncpu"] = torch.get_num_threads()
    with guarded(kwargs, job["seed"]) as names:
        train_ds.main(**kwargs)
    if first:
        _check_files(folder, kwargs, names)


def _check_files(folder: Path, conf: dict[str, Any], names: set[str]) -> None:
    """Look at every saved file, which must hold the model's tensors `names`; write which of them to use."""
    if not (folder / LAST).exists():
        raise EarmarkError(f"{folder}: FunASR ended without a checkpoint; its log is above")
    use_lora = bool((conf.get("llm_conf") or {}).get("use_lora", False))
    files = sorted(folder.glob("model.pt*"))
    for path in files:
        check_saved(path, names, use_lora=use_lora)
    state = torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)
    metric = state["avg_keep_nbest_models_type"]
    best = state["best_step_or_epoch"]
    has_best = (folder / BEST).exists()
    use = folder / (BEST if has_best else LAST)
    averaged = [path.name for path in files if path.name.startswith("model.pt.avg")]
    written = {
        "use": use.name,
        "why": f"best dev {metric}" if has_best else f"no checkpoint has a dev {metric}; the last one",
        "checkpoint": best if has_best else None,
        "dev": {name: state[f"val_{name}_step_or_epoch"].get(best) for name in ("acc", "loss")},
        "size_bytes": use.stat().st_size,
        "sha256": _digest(use),
        "averaged": averaged[0] if averaged else None,
        "last": LAST,
        "checkpoints": [path.name for path in files if path.name.startswith("model.pt.ep")],
        "adapter_tensors": sum(map(is_lora, names)),
        "note": "configuration.json names the file to use, so that FunASR loads it when it is given this folder. The "
        "averaged model has not been looked at on dev.",
    }
    audit = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
    audit["checkpoint"] = {"bytes": use.stat().st_size, "files": {use.name: use.stat().st_size}}
    write_json(folder / AUDIT, audit)
    write_json(folder / WHICH, written)
    log.info("%d saved files are whole and finite; use %s (%s)", len(files), use.name, written["why"])


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
