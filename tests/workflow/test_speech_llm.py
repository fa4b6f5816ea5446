"""Speech language models beside the retriever: trained, asked, measured and reported in the same workflow."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

KILLER = Path(__file__).parent / "killer"
BACKENDS = ("whisper_qwen3", "qwen2_audio")


@pytest.fixture(scope="module")
def config(repo: Path, small_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small configuration with tiny random bases, made as `make demo-llm` makes its own."""
    folder = tmp_path_factory.mktemp("bases")
    for base in ("tiny_qwen3", "tiny_qwen2_audio_instruct"):
        command = [sys.executable, str(repo / f"benchmarks/{base}.py"), str(folder / base), "--hidden-size", "64"]
        subprocess.run([*command, "--layers", "2"], check=True, timeout=120)
    return {
        **small_config,
        "train": {**small_config["train"], "backends": ["retriever", *BACKENDS]},
        "speech_llm": {
            "qwen3_model": str(folder / "tiny_qwen3"),
            "qwen2_audio": {"qwen2_audio_model": str(folder / "tiny_qwen2_audio_instruct")},
            "train_qwen3_layers": 2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 0.003,
            "answer_batch_size": 32,
            "max_new_tokens": 12,
        },
    }


@pytest.fixture(scope="module")
def answered(
    chain: Path, config: dict[str, Any], run_snakemake: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The finished run with the language models added: nothing that stood there is made again but the report."""
    folder = tmp_path_factory.mktemp("answered") / "run"
    shutil.copytree(chain, folder, symlinks=True)
    run = run_snakemake(folder, configfile=config, timeout=900)
    assert run.status == 0, run.output[-4000:]
    for rule in ("train_speech_llm", "answer_split", "evaluate_answers", "report"):
        assert f"{rule} " in run.output, rule
    for rule in ("train_backend", "export_split", "encode", "evaluate_backend"):
        assert f"{rule} " not in run.output, rule
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dev_and_test_chunk_has_an_answer_and_figures(answered: Path, backend: str) -> None:
    data = answered / "data/small"
    for split in ("dev", "test"):
        asked = [row["chunk_id"] for row in pq.read_table(data / f"splits/{split}.parquet").to_pylist()]
        answers = pq.read_table(data / f"answers/{backend}/{split}.parquet")
        assert answers["chunk_id"].to_pylist() == asked
        assert any(answers["text"].to_pylist())
    metrics = json.loads((data / f"evaluation/{backend}/metrics.json").read_text())
    test = metrics["test"]
    assert metrics["task"] == "spot_terms"
    assert test["n_term"] + test["n_no_term"] == len(asked)
    assert test["recall"]["seen"]["n"] + test["recall"]["unseen"]["n"] == test["n_term"] > 0
    # The retriever beside it: its first term counts where that is the spoken one, above the threshold it was given.
    retriever = json.loads((data / "evaluation/retriever/metrics.json").read_text())
    rejection = retriever["test"]["rejection"]
    assert test["retriever"]["rejected_no_term"] == pytest.approx(rejection["rejected_no_term"])
    assert test["retriever"]["false_rejection"] == pytest.approx(rejection["term_chunks"]["all"]["false_rejection"])
    assert test["retriever"]["recall"]["all"]["value"] <= retriever["test"]["retrieval"]["all"]["recall@1"]["value"]
    written = pq.read_table(data / f"evaluation/{backend}/predictions.parquet")
    assert sum(written["split"].to_numpy(zero_copy_only=False) == "test") == len(asked)


@pytest.mark.parametrize(
    ("backend", "trained", "weights"),
    [
        ("whisper_qwen3", {"projector", "qwen3"}, "trained.safetensors"),
        ("qwen2_audio", {"lora"}, "adapter_model.safetensors"),
    ],
)
def test_the_model_trained_what_it_was_told_and_nothing_else(
    answered: Path, backend: str, trained: set[str], weights: str
) -> None:
    model = answered / "data/small/models" / backend
    audit = json.loads((model / "audit.json").read_text())
    assert {name for name, part in audit["parts"].items() if part["trainable"]} == trained
    assert audit["checkpoint"]["files"][weights] == (model / weights).stat().st_size > audit["trainable_bytes"]
    assert [path.name for path in model.glob("*.safetensors")] == [weights]
    losses = [json.loads(line)["loss"] for line in (model / "train_metrics.jsonl").open() if '"loss"' in line]
    assert losses[-1] < losses[0]
    assert not list(model.parent.glob(".*"))


def test_report_and_figures_show_it_beside_the_retriever(answered: Path) -> None:
    page = (answered / "data/small/report.html").read_text()
    answers = page[page.index('<h2 id="answers">') : page.index('<h2 id="funnel">')]
    answers, trained = answers.split('<h2 id="trained">')
    assert answers.count("<td>whisper_qwen3</td>") == answers.count("<td>qwen2_audio</td>") == 3
    assert answers.count("<td>retriever</td>") == 6
    # The whole and each part: whisper, projector and qwen3; audio tower, projector, language model and adapters.
    assert (trained.count("<td>whisper_qwen3</td>"), trained.count("<td>qwen2_audio</td>")) == (4, 5)
    audit = json.loads((answered / "data/small/models/qwen2_audio/audit.json").read_text())
    assert f"{audit['trainable']:,}" in trained
    assert f"{audit['checkpoint']['bytes']:,}" in trained
    command = [str(Path(sys.executable).with_name("earmark")), "figures", "data/small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=answered)
    assert done.returncode == 0, done.stderr
    assert "whisper_qwen3, answering (spot_terms): test speakers" in done.stdout


def test_a_second_run_has_nothing_to_do_and_a_longer_answer_trains_nothing(
    answered: Path, config: dict[str, Any], run_snakemake: Callable
) -> None:
    run = run_snakemake(answered, configfile=config)
    assert "Nothing to be done" in run.output
    longer = {**config, "speech_llm": {**config["speech_llm"], "max_new_tokens": 13}}
    run = run_snakemake(answered, configfile=longer, arguments=("--dry-run",))
    assert "answer_split " in run.output
    assert "train_speech_llm " not in run.output
    # A key that the other does not read trains one of them anew.
    as_it_is = {**config["speech_llm"]["qwen2_audio"], "qwen2_audio_dtype": "float32"}
    other = {**config, "speech_llm": {**config["speech_llm"], "qwen2_audio": as_it_is}}
    run = run_snakemake(answered, configfile=other, arguments=("--dry-run",))
    assert "Training qwen2_audio" in run.output
    assert "Training whisper_qwen3" not in run.output


@pytest.fixture(scope="module")
def hinted_config(config: dict[str, Any]) -> dict[str, Any]:
    """Transcripts asked for, with three of the retriever's terms in each prompt; shorter trainings."""
    section = {name: value for name, value in config["speech_llm"].items() if name != "qwen2_audio"}
    return {
        **config,
        "train": {**config["train"], "backends": ["retriever", "whisper_qwen3"]},
        "export": {"task": "transcribe", "formats": ["conversation"]},
        "speech_llm": {**section, "num_train_epochs": 1, "hints": 3, "hint_prompt": "Perhaps: {terms}."},
    }


@pytest.fixture(scope="module")
def hinted(
    answered: Path, hinted_config: dict[str, Any], run_snakemake: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run with hints added: its own retriever is not trained, indexed or evaluated anew."""
    folder = tmp_path_factory.mktemp("hinted") / "run"
    shutil.copytree(answered, folder, symlinks=True)
    run = run_snakemake(folder, configfile=hinted_config, timeout=900)
    assert run.status == 0, run.output[-4000:]
    for rule in ("rank_fold", "rank_split", "hint_split", "train_speech_llm", "answer_split"):
        assert re.search(rf"^{rule} +\d+$", run.output, re.MULTILINE), rule
    for rule in ("train_backend", "index_backend", "evaluate_backend", "encode", "splits", "export_wavs"):
        assert not re.search(rf"^{rule} +\d+$", run.output, re.MULTILINE), rule
    return folder


def _hints(data: Path, split: str) -> dict[str, list[str]]:
    """chunk id -> the hints in its line's prompt."""
    found = {}
    for line in (data / f"hints/conversation/{split}.jsonl").open(encoding="utf-8"):
        wav, _, prompt = json.loads(line)["conversations"][0]["value"].partition("</audio> ")
        _, _, hints = prompt.removesuffix(".").partition("Transcribe the speech. Perhaps: ")
        found[Path(wav).stem] = hints.split(", ")
    return found


def test_hints_of_training_chunks_come_from_who_has_not_heard_them_and_others_from_the_runs_own(hinted: Path) -> None:
    data = hinted / "data/small"
    glossary = json.loads((data / "glossary/glossary.json").read_text())

    def shown(row: dict[str, Any]) -> list[str]:
        return [glossary[term]["term"] for term in row["top_terms"][:3]]

    ranked: dict[str, list[str]] = {}
    for fold in ("0", "1"):
        heard = set(pq.read_table(data / f"folds/{fold}/train.parquet")["speaker_id"].to_pylist())
        rows = pq.read_table(data / f"folds/{fold}/ranked/retriever.parquet").to_pylist()
        assert heard and rows and heard.isdisjoint(row["speaker_id"] for row in rows)
        assert ranked.keys().isdisjoint(row["chunk_id"] for row in rows)
        ranked |= {row["chunk_id"]: shown(row) for row in rows}
    assert sorted(ranked) == sorted(pq.read_table(data / "splits/train.parquet")["chunk_id"].to_pylist())
    assert _hints(data, "train") == ranked
    evaluated = pq.read_table(data / "evaluation/retriever/predictions.parquet").to_pylist()
    for split in ("dev", "test"):
        assert _hints(data, split) == {row["chunk_id"]: shown(row) for row in evaluated if row["split"] == split}
    # The folds' retrievers are other ones than the run's.
    weights = {path.read_bytes() for path in data.glob("**/models/retriever/**/model.safetensors")}
    assert len(weights) >= 3
    exported = (data / "export/conversation/train.jsonl").read_text(encoding="utf-8")
    assert "Transcribe the speech." in exported and "Perhaps" not in exported


def test_transcripts_have_error_rates_and_the_report_says_how_good_the_hints_were(hinted: Path) -> None:
    data = hinted / "data/small"
    metrics = json.loads((data / "evaluation/whisper_qwen3/metrics.json").read_text())
    assert metrics["task"] == "transcribe"
    for split in ("dev", "test"):
        transcript = metrics[split]["transcript"]
        assert transcript["wer"] > 0 and transcript["cer"] > 0 and transcript["words"] > 0
        rows = pq.read_table(data / f"splits/{split}.parquet").to_pylist()
        hints = _hints(data, split)
        terms = json.loads((data / "glossary/glossary.json").read_text())
        spoken = [row for row in rows if row["has_term"]]
        found = sum(terms[row["main_term"]]["term"] in hints[row["chunk_id"]] for row in spoken)
        told = metrics["hints"][split]
        assert (told["count"], told["without_hints"]) == (3, 0)
        assert told["spoken_among_them"]["all"] == {"n": len(spoken), "found": found, "value": found / len(spoken)}
    value = metrics["hints"]["test"]["spoken_among_them"]["all"]["value"]
    page = (data / "report.html").read_text()
    assert "whisper_qwen3, hints: the 3 terms that a retriever ranks first stand in each prompt." in page
    assert (
        f", test {value:.3f} (of train by retrievers that have not heard the speaker; of test whoever speaks)" in page
    )
    assert "word error rate" in page


def test_more_hints_train_the_language_model_anew_and_no_retriever(
    hinted: Path, hinted_config: dict[str, Any], run_snakemake: Callable
) -> None:
    assert "Nothing to be done" in run_snakemake(hinted, configfile=hinted_config).output
    more = {**hinted_config, "speech_llm": {**hinted_config["speech_llm"], "hints": 5}}
    run = run_snakemake(hinted, configfile=more, arguments=("--dry-run",))
    rules = set(re.findall(r"^(\w+) +\d+$", run.output, re.MULTILINE)) - {"all", "total"}
    assert rules == {"hint_split", "train_speech_llm", "answer_split", "evaluate_answers", "report"}


def test_a_hint_prompt_without_a_place_for_the_terms_is_refused_in_a_sentence(
    tmp_path: Path, small_config: dict[str, Any], run_snakemake: Callable
) -> None:
    config = {**small_config, "speech_llm": {"hints": 3, "hint_prompt": "Perhaps:"}}
    run = run_snakemake(tmp_path, configfile=config, arguments=("--dry-run",))
    assert run.status == 1
    assert "speech_llm.hint_prompt is 'Perhaps:'; expected a text with {terms} in it" in run.output


def test_a_killed_training_goes_on_and_ends_with_the_same_model(
    answered: Path,
    config: dict[str, Any],
    run_snakemake: Callable,
    checksums: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(answered, folder, symlinks=True)
    undisturbed = checksums(folder / "data/small/models/whisper_qwen3")
    arguments = ("--forcerun", "train_speech_llm", "--until", "train_speech_llm")
    monkeypatch.setenv("PYTHONPATH", str(KILLER))
    monkeypatch.setenv("KILL_BEFORE_RENAME", "data/small/models/whisper_qwen3")
    killed = run_snakemake(folder, configfile=config, timeout=600, arguments=arguments)
    assert killed.status == -signal.SIGKILL, killed.output[-2000:]
    assert not (folder / "data/small/models/whisper_qwen3").exists()
    monkeypatch.delenv("KILL_BEFORE_RENAME")
    assert run_snakemake(folder, configfile=config, arguments=("--unlock",)).status == 0
    run = run_snakemake(folder, "data/small/models/whisper_qwen3", configfile=config, timeout=600)
    assert run.status == 0, run.output[-4000:]
    # The kill came when all was trained, so there is nothing left to train.
    assert "has ended already" in (folder / "logs/small/train/whisper_qwen3.log").read_text()
    assert checksums(folder / "data/small/models/whisper_qwen3") == undisturbed
    assert not list((folder / "data/small/models").glob(".*"))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"projector_stack": 3}, "speech_llm.projector_stack is 3, but it is a flag of architecture whisper_qwen3"),
        ({"qwen2_audio": {"method": "projector"}}, "set i_know_this_overwrites_alignment"),
    ],
)
def test_a_key_that_no_named_backend_reads_or_could_train_with_is_refused_in_a_sentence(
    tmp_path: Path, small_config: dict[str, Any], run_snakemake: Callable, section: dict[str, Any], told: str
) -> None:
    config = {
        **small_config,
        "train": {**small_config["train"], "backends": ["retriever", "qwen2_audio"]},
        "speech_llm": section,
    }
    run = run_snakemake(tmp_path, configfile=config, arguments=("--dry-run",))
    assert run.status == 1
    assert told in run.output


def test_a_backend_without_the_retriever_is_refused_in_a_sentence(
    tmp_path: Path, small_config: dict[str, Any], run_snakemake: Callable
) -> None:
    config = {**small_config, "train": {"backends": ["whisper_qwen3"]}}
    run = run_snakemake(tmp_path, configfile=config, arguments=("--dry-run",))
    assert run.status == 1
    assert "train.backends.0: 'retriever' was expected" in run.output


def test_memory_is_asked_for_by_the_base_and_for_each_process(
    tmp_path: Path, small_config: dict[str, Any], asked_resources: Callable
) -> None:
    asked = {}
    for backend in BACKENDS:
        train = {**small_config["train"], "backends": ["retriever", backend], "processes": 2}
        resources = asked_resources(tmp_path, "slurm", {**small_config, "train": train})
        asked[backend] = [int(resources[rule]["mem_mb"]) for rule in ("train_speech_llm", "answer_split")]
    assert asked["whisper_qwen3"] == [14_000, 8_000]
    assert asked["qwen2_audio"][0] > 2 * 24_000 and asked["qwen2_audio"][1] > 24_000
