"""What is done again when one key of the configuration changes, or one artifact is asked for again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The rules in the order of the chain: what a change makes new, each stage after it reads.
EVALUATED = {"evaluate_backend", "report"}
INDEXED = {"index_backend", "index_fold", *EVALUATED}
TRAINED = {"train_backend", "train_fold", *INDEXED}
ENCODED = {"encode", *TRAINED}
EXPORTED = {"export_split", "export_funnel"}
SPLIT = {"splits", "fold_splits", "funnel", "export_wavs", *EXPORTED, *TRAINED}
CHUNKED = {"chunks_shard", *SPLIT, *ENCODED}
ALIGNED = {"align_shard", "align_summary", *CHUNKED}
CHECKED = {"corpus_shard", *ALIGNED}

# The report shows the configuration, so that every change but one of `cluster` writes it anew.
RE_RUNS = {
    "cluster.cpu_partition=long": set(),
    "cluster.gpu_partition=null": set(),
    "align.threads=1": {"report"},
    "train.threads=2": {"report"},
    "train.processes=2": {"report"},
    "train.nodes=2": {"report"},
    "train.gpu_ids=[0]": {"report"},
    "train.checkpoint_minutes=1": {"report"},
    "retrieval.alignment.background_words=1000": INDEXED,
    "train.tensorboard=true": {"report"},
    "retrieval.pooled.index=flat": {"report"},
    "speech_llm.max_new_tokens=32": {"report"},
    "speech_llm.hints=3": {"report"},
    "train.folds=3": {"fold_splits", "train_fold", "index_fold", *EVALUATED},
    "funasr_nano.max_new_tokens=32": {"report"},
    "corpus.checks.min_peak=0.002": CHECKED,
    "align.max_differing_words=0.1": ALIGNED,
    "align.mfa.beam=20": {"report"},
    "align.reference=null": {"align_summary", "report"},
    "glossary.filters.min_characters=4": {"glossary", *CHUNKED},
    "chunks.context_s=0.9": CHUNKED,
    "splits.test_recordings=0.1": SPLIT,
    "splits.max_chunks_per_term=50": {*SPLIT, *ENCODED},  # under a limit only what it keeps is encoded
    "splits.max_train_chunks=50": {*SPLIT, *ENCODED},
    "export.task=transcribe": {*EXPORTED, "report"},
    "export.interchange=true": {"interchange", "export_wavs", *EXPORTED, "report"},
    "retrieval.encode_batch_size=16": ENCODED,
    "retrieval.alignment.head.dropout=0.1": TRAINED,
    "retrieval.pooled.embedding_dim=128": {"report"},
    "train.schedule.epochs=3": TRAINED,
    "evaluate.bootstrap_resamples=21": EVALUATED,
    "evaluate.held_out_chunks=0": EVALUATED,
}


def _changed(config: dict[str, Any], change: str) -> dict[str, Any]:
    """The configuration with one key ("a.b=value") set otherwise; the value is JSON, or else a word."""
    path, _, word = change.partition("=")
    try:
        value = json.loads(word)
    except ValueError:
        value = word
    *sections, key = path.split(".")
    changed = json.loads(json.dumps(config))
    place = changed
    for section in sections:
        place = place.setdefault(section, {})
    assert key not in place or place[key] != value
    place[key] = value
    return changed


def _rules(output: str) -> set[str]:
    """The rules that a dry run would run: its table of jobs."""
    return set(re.findall(r"^(\w+) +\d+$", output, re.MULTILINE)) - {"all", "total"}


@pytest.mark.parametrize("change", RE_RUNS)
def test_a_changed_key_re_runs_these_rules(
    chain: Path, run_snakemake: Callable, small_config: dict[str, Any], tmp_path: Path, change: str
) -> None:
    changed = tmp_path / "changed.json"
    # In the order of the chain's own file: Snakemake compares parameters by how they are spelt.
    changed.write_text(json.dumps(_changed(small_config, change), sort_keys=True), encoding="utf-8")
    run = run_snakemake(chain, configfile=changed, arguments=("--dry-run",))
    assert run.status == 0, run.output[-2000:]
    rules = _rules(run.output)
    assert rules == RE_RUNS[change]


def test_one_shard_of_a_stage_is_made_anew_alone(
    chain: Path, run_snakemake: Callable, small_config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(chain, folder, symlinks=True)
    shard = "data/small/chunks/0001.parquet"
    times = {path: path.stat().st_mtime_ns for path in (folder / "data/small").rglob("*") if path.is_file()}
    run = run_snakemake(folder, shard, configfile=small_config, arguments=("--force",))
    assert run.status == 0, run.output[-2000:]
    anew = {path for path, time_ns in times.items() if path.stat().st_mtime_ns != time_ns}
    assert {path.relative_to(folder / "data/small/chunks").name for path in anew} - {".snakemake_timestamp"} == {
        "0001.parquet",
        "0001.rejected.jsonl",
    }
    # The bytes are those of before, but Snakemake goes by time: what reads the shard comes next.
    run = run_snakemake(folder, configfile=small_config, arguments=("--dry-run",))
    assert {"splits", "encode"} <= _rules(run.output)
