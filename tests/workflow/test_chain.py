"""The whole workflow on a few talks of the demo: every stage, a second run, partial re-runs, the report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest


def _times(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted((folder / "data/small").rglob("*")):
        if path.is_file() and path.name != ".snakemake_timestamp":
            yield str(path.relative_to(folder / "data/small")), path.stat().st_mtime_ns


def _rewritten(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name.split("/")[0] for name in after if before.get(name) != after[name]}


def test_second_run_has_nothing_to_do(chain: Path, run_snakemake: Callable, small_config: dict[str, Any]) -> None:
    before = dict(_times(chain))
    run = run_snakemake(chain, configfile=small_config)
    assert run.status == 0
    assert "Nothing to be done" in run.output
    assert dict(_times(chain)) == before


def test_every_row_is_accounted_for(chain: Path, small_config: dict[str, Any]) -> None:
    funnel = json.loads((chain / "data/small/funnel.json").read_text())
    manifest = Path(small_config["corpus"]["manifest"]).read_text().splitlines()
    assert funnel["steps"][0]["input"] == len(manifest) - 1
    for step in funnel["steps"]:
        assert step["kept"] + step["rejected"] == step["input"]
        assert sum(step["reasons"].values()) == step["rejected"]
    in_splits = sum(pq.read_metadata(chain / f"data/small/splits/{name}.parquet").num_rows for name in funnel["splits"])
    assert in_splits == funnel["steps"][-1]["kept"] > 100


def test_unseen_terms_and_test_speakers_are_not_in_training(chain: Path, small_config: dict[str, Any]) -> None:
    unseen = set(small_config["splits"]["unseen_terms"])
    for name in ("train", "dev"):
        rows = pq.read_table(chain / f"data/small/splits/{name}.parquet").to_pylist()
        assert not {row["speaker_id"] for row in rows} & set(small_config["splits"]["test_speakers"])
        assert not any(unseen & {row["main_term"], *row["other_terms"]} for row in rows)
        assert not any(term in row["text"] for row in rows for term in unseen)
    funnel = json.loads((chain / "data/small/funnel.json").read_text())
    kept_out = funnel["steps"][-1]["reasons"]["unseen_term"]
    assert kept_out > 0, "no training speaker says an unseen term: this test would pass whatever the splits do"


@pytest.mark.parametrize(
    "load",
    [
        "from earmark import TermRetriever; model = TermRetriever(sys.argv[1])",
        "from sentence_transformers import SentenceTransformer; "
        "model = SentenceTransformer(sys.argv[1], trust_remote_code=True)",
    ],
    ids=["earmark", "sentence_transformers"],
)
def test_model_loads_in_a_fresh_process(chain: Path, load: str) -> None:
    program = (
        f"import sys, numpy; {load}\n"
        "term = model.encode(['photosynthesis'])\n"
        "sound = model.encode([numpy.random.default_rng(0).normal(0, 0.1, 16000).astype('float32')])\n"
        "assert term.shape == sound.shape and numpy.isfinite(sound).all(), (term.shape, sound.shape)\n"
    )
    command = [sys.executable, "-c", program, str(chain / "data/small/models/retriever")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=chain)
    assert done.returncode == 0, done.stderr[-2000:]


def test_redoing_one_stage_alone_touches_no_other(
    chain: Path, tmp_path: Path, run_snakemake: Callable, small_config: dict[str, Any]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(chain, folder, symlinks=True)
    before = dict(_times(folder))
    arguments = ("--forcerun", "chunks_shard", "--until", "chunks_shard")
    run = run_snakemake(folder, configfile=small_config, arguments=arguments)
    assert run.status == 0, run.output[-2000:]
    assert _rewritten(before, dict(_times(folder))) == {"chunks"}


def test_one_changed_key_re_runs_only_what_depends_on_it(
    chain: Path, run_snakemake: Callable, small_config: dict[str, Any]
) -> None:
    changed = {**small_config, "evaluate": {**small_config["evaluate"], "bootstrap_resamples": 21}}
    run = run_snakemake(chain, configfile=changed, arguments=("--dry-run",))
    assert run.status == 0
    rules = set(re.findall(r"^rule (\w+):|^(\w+) +\d+$", run.output, re.MULTILINE))
    named = {name for pair in rules for name in pair if name} - {"all", "total"}
    assert named == {"evaluate_backend", "report"}


def test_a_quick_look_and_recordings_of_training_speakers_in_test_are_told_and_shown_by_themselves(
    chain: Path, tmp_path: Path, run_snakemake: Callable, small_config: dict[str, Any]
) -> None:
    assert "No test speaker is heard in training" in (chain / "data/small/report.html").read_text()
    folder = tmp_path / "copy"
    shutil.copytree(chain, folder, symlinks=True)
    changed = {
        **small_config,
        # One of four recordings, and of what is left so many chunks.
        "splits": {**small_config["splits"], "test_recordings": 0.07, "max_train_chunks": 60},
        "retrieval": {"random_control": False},
    }
    run = run_snakemake(folder, configfile=changed, timeout=600)
    assert run.status == 0, run.output[-4000:]

    data = folder / "data/small"
    spoken = {
        name: {(row["speaker_id"], row["recording_id"]) for row in pq.read_table(path).to_pylist()}
        for name in ("train", "test")
        for path in [data / f"splits/{name}.parquet"]
    }
    seen = {pair for pair in spoken["test"] if pair[0] in {speaker for speaker, _ in spoken["train"]}}
    assert len(seen) == 1 and not seen & spoken["train"]
    [(speaker, recording)] = seen
    tested = pq.read_table(data / "splits/test.parquet").to_pylist()
    chunks = [row for row in tested if row["recording_id"] == recording]
    funnel = json.loads((data / "funnel.json").read_text())
    assert funnel["seen_test_speakers"] == {"chunks": len(chunks), "speakers": [speaker]}
    # Nothing but what training knows has changed for the chunks of the test speakers.
    before = json.loads((chain / "data/small/evaluation/retriever/metrics.json").read_text())["test"]
    test = json.loads((data / "evaluation/retriever/metrics.json").read_text())["test"]
    assert [test["retrieval"]["all"]["n"], test["rejection"]["n_no_term"]] == [
        before["retrieval"]["all"]["n"], before["rejection"]["n_no_term"],
    ]  # fmt: skip
    part = test["seen_speakers"]
    terms = sum(row["has_term"] for row in chunks)
    assert (part["retrieval"]["all"]["n"], part["rejection"]["n_no_term"]) == (terms, len(chunks) - terms)
    page = (data / "report.html").read_text()
    assert f"{len(chunks)} test chunks are of speakers that training hears" in page
    quick = f"a quick look: trained on 60 of {60 + funnel['steps'][-1]['reasons']['over_train_limit']} chunks"
    assert f"This is {quick}" in page
    command = [str(Path(sys.executable).with_name("earmark")), "figures", "data/small"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder).stdout
    assert f"speakers heard in training, {terms} term chunks: seen terms R@1 " in printed
    assert quick in printed


def test_the_threshold_is_set_on_dev_and_on_training_speakers_whom_a_retriever_has_not_heard(chain: Path) -> None:
    data = chain / "data/small"
    rows = {split: pq.read_table(data / f"splits/{split}.parquet").to_pylist() for split in ("train", "dev")}
    for backend, splits in (("retriever", ("train", "dev")), ("retriever_random", ("dev",))):
        set_on = [row for split in splits for row in rows[split]]
        told = json.loads((data / f"evaluation/{backend}/metrics.json").read_text())["set_on"]
        assert told == {
            "term_chunks": sum(row["has_term"] for row in set_on),
            "no_term_chunks": sum(not row["has_term"] for row in set_on),
            "no_term_speakers": len({row["speaker_id"] for row in set_on if not row["has_term"]}),
        }
    for fold in ("0", "1"):
        speakers = {
            name: set(pq.read_table(data / f"folds/{fold}/{name}.parquet")["speaker_id"].to_pylist())
            for name in ("train", "held_out")
        }
        assert not speakers["train"] & speakers["held_out"]
        assert speakers["train"] | speakers["held_out"] == {row["speaker_id"] for row in rows["train"]}


def test_figures_are_printed_with_the_report(chain: Path) -> None:
    command = [str(Path(sys.executable).with_name("earmark")), "figures", "data/small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=chain)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((chain / "data/small/evaluation/retriever/metrics.json").read_text())
    assert f"{metrics['test']['retrieval']['seen']['recall@10']['value']:.3f}" in done.stdout
    assert str(chain / "data/small/report.html") in done.stdout


def test_figures_of_an_unfinished_run_are_refused_in_a_sentence(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("earmark")), "figures", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "run the stage report first" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_is_one_file_that_asks_for_nothing_from_outside(chain: Path) -> None:
    page = (chain / "data/small/report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", "href")), "refers to a file"
    assert "@import" not in page and "<script" not in page
    assert page.count("<svg") >= 4


def test_report_renders_in_a_browser(chain: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    picture = tmp_path / "report.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    page = (chain / "data/small/report.html").as_uri()
    dom = subprocess.run([*command, "--dump-dom", page], capture_output=True, text=True, timeout=120)
    assert dom.returncode == 0, dom.stderr[-1000:]
    metrics = json.loads((chain / "data/small/evaluation/retriever/metrics.json").read_text())
    assert f"{metrics['test']['retrieval']['unseen']['recall@10']['value']:.3f}" in dom.stdout
    shot = [*command, f"--screenshot={picture}", "--window-size=1100,1600", page]
    assert subprocess.run(shot, capture_output=True, timeout=120).returncode == 0
    assert picture.stat().st_size > 50_000, "the page is blank"
