"""Fine-tune Fun-ASR-Nano through FunASR's own trainer, into a model directory that appears when it is whole."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import earmark
from earmark.artifacts import write_json
from earmark.errors import InputError
from earmark.files import read_json
from earmark.funasr_nano import environment
from earmark.funasr_nano.lines import Limits, prepare_lines
from earmark.funasr_nano.model_folder import find_model, write_model_files
from earmark.funasr_nano.settings import check_conf, merged, training_conf
from earmark.funasr_nano.transcribe import smoke_transcription
from earmark.training_gpus import check_visible

log = logging.getLogger(__name__)

TRAIN_LOG = "train.log"
TRAIN_CONFIG = "train_config.yaml"
DATA_REPORT = "data_report.json"
WHICH = "which_model.json"
_KEY = "training_key"  # in the working folder: a digest of all that shapes the training in it
# They change what is told, or how fast it goes, not the model.
_NOT_SHAPING = (("train_conf", "log_interval"), ("train_conf", "resume"))


def train_funasr_nano(
    section: Mapping[str, Any],
    *,
    train_lines: Path,
    dev_lines: Path,
    output: Path,
    processes: int,
    threads: int,
    seed: int,
    max_rejected_fraction: float,
    flags: Mapping[str, Any] | None = None,
    gpu_ids: Sequence[int] | None = None,
) -> None:
    """Train on `train_lines`, choose on `dev_lines`, and write the model directory `output`.

    `section`: the configuration's `funasr_nano` (model_dir, python, conf, and FunASR's keys over that file); `flags`
    are laid over it. `gpu_ids`: the GPUs to train on, where the caller has chosen some (`training_gpus`). The lines are
    ChatML, or the older source/target, and are checked first (`lines.prepare_lines`).

    `output` holds which_model.json (which file to use, and why), model.pt.best, model.pt.avg*, model.pt (the last) and
    model.pt.ep* (checkpoints, with the optimiser's state), config.yaml, configuration.json and the tokenizer's folder,
    so that FunASR loads it by its path; train_config.yaml (all that FunASR was given), train.log, train_metrics.jsonl,
    audit.json (trainable parameters by part, with types), data_report.json, train.rejected.jsonl, dev.rejected.jsonl.

    Until it is whole the work lies in a hidden folder beside it, which outlives a killed job: the next attempt goes on
    from the last checkpoint. Work of another configuration or on other inputs is removed first.

    ConfigError if keys are unknown to the installed FunASR, or do not go together; InputError if the model directory
    lacks a file or no line can be trained on; EarmarkError if the training was not what was declared, or is not finite.
    """
    output = output.absolute()
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder that is not there yet")
    if output.exists() and not (output / WHICH).exists() and any(output.iterdir()):
        raise InputError(
            f"{output}: holds something else than a trained Fun-ASR-Nano; give a folder that is not there yet"
        )
    python = Path(section["python"])
    conf = training_conf(section, flags or {})
    model = find_model(section["model_dir"], python)
    whole = merged(model.with_paths(), conf)
    check_conf(whole)
    found = _check(python, conf, whole, processes)
    check_visible(gpu_ids, found["cuda"])
    work = output.parent / f".{output.name}.training"
    key = _training_key(whole, [train_lines, dev_lines], seed, processes, max_rejected_fraction, found)
    _begin(work, key, resume=bool(conf.get("train_conf", {}).get("resume", True)))
    with _also_to(work / TRAIN_LOG):
        prepared = _prepare(train_lines, dev_lines, whole, work, max_rejected_fraction)
        kwargs = _kwargs(whole, prepared, work, seed)
        environment.run(python, "train", {"kwargs": kwargs, "seed": seed}, processes=processes, threads=threads)
        write_model_files(model, conf, read_json(work / WHICH)["use"], work)
        smoke_transcription(work, prepared["dev"], python=python, threads=threads)
    _finish(work, output, kwargs, train_lines, dev_lines)


def _check(python: Path, conf: Mapping[str, Any], whole: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Versions in FunASR's environment. ConfigError if it does not know a key of `conf`, or there are too few GPUs."""
    with tempfile.TemporaryDirectory(prefix="earmark-funasr-") as scratch:
        result = Path(scratch, "found.json")
        job = {"conf": conf, "model": whole, "processes": processes, "result": str(result)}
        environment.run(python, "check", job)
        found = read_json(result)
    log.info("FunASR %s with torch %s, GPUs: %d", found["funasr"], found["torch"], found["cuda"])
    return found


def _training_key(
    whole: Mapping[str, Any],
    lines: list[Path],
    seed: int,
    processes: int,
    max_rejected_fraction: float,
    found: Mapping[str, Any],
) -> str:
    """A digest of the configuration, of the files it trains on (path, size, time) and starts from, and of versions."""
    shaping = json.loads(json.dumps(whole))
    for section, name in _NOT_SHAPING:
        shaping.get(section, {}).pop(name, None)
    weights = Path(whole["init_param"])
    for path in lines:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file of lines; run the stage export, or check the path")
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in (*lines, weights)]
    versions = [earmark.__version__, found["funasr"], found["torch"]]
    parts = (shaping, stats, seed, processes, max_rejected_fraction, versions)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _begin(work: Path, key: str, *, resume: bool) -> None:
    """Make the working folder, without what another training left in it."""
    mine = work / _KEY
    same = mine.exists() and mine.read_text(encoding="utf-8") == key
    if work.exists() and not (resume and same):
        whose = "work of another configuration, on other inputs or of another version"
        log.info("%s: %s; removed", work, "train_conf.resume is false" if same else whose)
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    mine.write_text(key, encoding="utf-8")


def _prepare(
    train_lines: Path, dev_lines: Path, whole: Mapping[str, Any], work: Path, max_rejected_fraction: float
) -> dict[str, Path]:
    """The lines that FunASR will train on, and a report of those that it would have dropped."""
    limits = Limits.of(whole, tokenizer=whole["llm_conf"]["init_param_path"])
    prepared = {"train": work / "train.jsonl", "dev": work / "dev.jsonl"}
    report = {}
    for split, source in (("train", train_lines), ("dev", dev_lines)):
        kept = prepare_lines(source, prepared[split], limits=limits, max_rejected_fraction=max_rejected_fraction)
        report[split] = kept.as_dict()
        write_json(work / DATA_REPORT, report)
        if not kept.kept:
            raise InputError(f"{source}: no line of it can be trained on; see {work / DATA_REPORT}")
    return prepared


def _kwargs(whole: Mapping[str, Any], prepared: Mapping[str, Path], work: Path, seed: int) -> dict[str, Any]:
    """All that FunASR's program is given."""
    stopped = whole.get("freeze_param") or []
    stopped = stopped.split(",") if isinstance(stopped, str) else list(stopped)
    return merged(
        whole,
        {
            "train_data_set_list": str(prepared["train"]),
            "valid_data_set_list": str(prepared["dev"]),
            "output_dir": str(work),
            "seed": seed,
            "freeze_param": [
                *stopped,
                "ctc_decoder",
                "ctc",
            ],  # FunASR leaves them open, and never uses them in training
            "disable_update": True,  # or it asks its server for a newer version of itself
            "trust_remote_code": False,
            "disable_log": True,
        },
    )


def _finish(work: Path, output: Path, kwargs: Mapping[str, Any], train_lines: Path, dev_lines: Path) -> None:
    """Turn the working folder into the output."""
    lasting = {"train_data_set_list": train_lines, "valid_data_set_list": dev_lines, "output_dir": output}
    given = dict(kwargs) | {name: str(path.absolute()) for name, path in lasting.items()}
    (work / TRAIN_CONFIG).write_text(yaml.safe_dump(given, allow_unicode=True, sort_keys=False), encoding="utf-8")
    for name in ("train.jsonl", "dev.jsonl"):
        (work / name).unlink(missing_ok=True)
    if output.exists():
        shutil.rmtree(output)
    work.rename(output)  # not copied: checkpoints of the real model take gigabytes each
    (output / _KEY).unlink()  # not before: without it the next attempt would train anew


@contextmanager
def _also_to(path: Path) -> Iterator[None]:
    """Within, what is logged goes to this file as well; a resumed training's behind what is there."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("earmark")
    level = logger.level
    logger.addHandler(handler)
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        logger.error("%s", error)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
