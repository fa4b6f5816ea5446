"""What a run reached, read from its artifacts: for the terminal and for the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.errors import InputError
from earmark.files import read_json

CONTROL = "retriever_random"
TRANSCRIPTS = ("transcript_letters", "transcript_phonemes")
RECALL_AT = (1, 5, 10, 20)
_NAMES = {
    CONTROL: f"{CONTROL}, the control",
    TRANSCRIPTS[0]: "Whisper's transcripts, terms matched by letters",
    TRANSCRIPTS[1]: "Whisper's transcripts, terms matched by phonemes",
}


@dataclass(frozen=True)
class RunFigures:
    """A run's measured figures. `alignment` is None where the chunks came from a file."""

    folder: Path
    funnel: dict[str, Any]
    alignment: dict[str, Any] | None
    metrics: dict[str, dict[str, Any]]  # by backend, the control behind it, then what was searched in transcripts
    losses: dict[str, list[dict[str, Any]]]  # train_metrics.jsonl by backend
    audits: dict[str, dict[str, Any]]
    answers: dict[str, dict[str, Any]]  # of speech language models, by backend

    def recall(self, backend: str, group: str, k: int, split: str = "test") -> float | None:
        """Recall@k of a group of terms (all, seen, unseen); None where the split holds no such chunk."""
        return _value(self.metrics[backend][split]["retrieval"][group].get(f"recall@{k}"))


def read_figures(folder: Path, config: dict[str, Any]) -> RunFigures:
    """Read the figures of the run in `folder` (data/{run}) that belong to its configuration.

    An earlier run under another configuration may have left more in the folder: that is passed over.
    """
    backends = ["retriever", *([CONTROL] if config["retrieval"]["random_control"] else [])]
    evaluated = [*backends, *(TRANSCRIPTS if config["evaluate"]["transcripts"] else [])]
    speech_llms = config["train"]["backends"][1:]
    trained = [*backends, *speech_llms]
    return RunFigures(
        folder=folder,
        funnel=read_json(folder / "funnel.json"),
        alignment=None if config["chunks"]["from_file"] else read_json(folder / "evaluation/alignment.json"),
        metrics={backend: read_json(folder / "evaluation" / backend / "metrics.json") for backend in evaluated},
        losses={backend: _read_lines(folder / "models" / backend / "train_metrics.jsonl") for backend in trained},
        audits={backend: read_json(folder / "models" / backend / "audit.json") for backend in trained},
        answers={name: read_json(folder / "evaluation" / name / "metrics.json") for name in speech_llms},
    )


def print_figures(folder: Path) -> None:
    """Print the figures that a reader wants first, and where the report is."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: holds no finished run (no config.json); run the stage report first")
    figures = read_figures(folder, read_json(folder / "config.json"))
    print(f"\n{folder.name}: {_funnel_sentence(figures.funnel)}")
    if sentence := quick_look_sentence(figures.funnel):
        print(sentence)
    if figures.alignment and (accuracy := figures.alignment["accuracy"]):
        every = accuracy["all"]
        print(
            f"alignment: {every['within_50_ms']:.1%} of {every['boundaries']:,} word boundaries within 50 ms, "
            f"median {every['median_ms']:.0f} ms"
        )
    for backend, metrics in figures.metrics.items():
        name = _NAMES.get(backend, backend)
        print(f"\n{name}: test speakers, {metrics['main_terms']} main terms")
        print(f"  {'':14}{'n':>6}" + "".join(f"{f'R@{k}':>8}" for k in RECALL_AT) + f"{'MRR':>8}")
        for group in ("seen", "unseen"):
            row = metrics["test"]["retrieval"][group]
            values = [_value(row.get(f"recall@{k}")) for k in RECALL_AT] + [_value(row.get("mrr"))]
            print(f"  {group + ' terms':14}{row['n']:>6}" + "".join(f"{_shown(value):>8}" for value in values))
        print(f"  rejection: {rejection_sentence(metrics)}")
        for count, larger in metrics["distractors"].items():
            print(f"  {distractors_sentence(int(count), larger)}")
        if sentence := every_term_sentence(metrics["test"]["every_term"]):
            print(f"  {sentence}")
        if sentence := seen_speakers_sentence(metrics["test"]["seen_speakers"]):
            print(f"  {sentence}")
    for name, answers in figures.answers.items():
        _print_answers(name, answers)
    print(f"\nreport: {(folder / 'report.html').resolve()}")


def _print_answers(name: str, metrics: dict[str, Any]) -> None:
    """The terms in a speech language model's answers, and in the retriever's at its threshold."""
    test = metrics["test"]
    print(f"\n{name}, answering ({metrics['task']}): test speakers")
    print(f"  {'':14}{'n':>6}{'recall':>10}{'precision':>11}{'retriever:':>13}{'recall':>8}{'precision':>11}")
    beside = test["retriever"]
    for group in ("seen", "unseen"):
        values = [test["recall"][group]["value"], test["precision"][group]["value"]]
        retriever = [beside[kind][group]["value"] if beside else None for kind in ("recall", "precision")]
        print(
            f"  {group + ' terms':14}{test['recall'][group]['n']:>6}{_shown(values[0]):>10}{_shown(values[1]):>11}"
            f"{'':13}{_shown(retriever[0]):>8}{_shown(retriever[1]):>11}"
        )
    print(f"  rejection: {answers_rejection_sentence(test)}")
    if "transcript" in test:
        print(f"  as transcripts: {transcript_sentence(test['transcript'])}")
    if "hints" in metrics:
        print(f"  {hints_sentence(metrics['hints'])}")
    seen = test["seen_speakers"]
    if "reason" not in seen:
        recall = {group: _shown(seen["recall"][group]["value"]) for group in ("seen", "unseen")}
        print(
            f"  speakers heard in training, {seen['n_term']} term chunks: recall of seen terms {recall['seen']}, "
            f"of unseen ones {recall['unseen']}"
        )


def every_term_sentence(figures: dict[str, Any]) -> str | None:
    """How many of all spoken terms are found; None where no chunk holds two."""
    if figures["chunks"] == figures.get("terms", 0):
        return None
    micro, per_sample = (_shown(figures[kind]["recall@10"]["value"]) for kind in ("micro", "per_sample"))
    return (
        f"all {figures['terms']} terms spoken in {figures['chunks']} chunks: R@10 {micro}; as the mean over chunks "
        f"{per_sample}"
    )


def seen_speakers_sentence(seen: dict[str, Any]) -> str | None:
    """What is reached for speakers whom training hears; None where test has none."""
    if "reason" in seen:
        return None
    retrieval = seen["retrieval"]
    recalls = [
        f"{group} terms R@1 {_shown(_value(retrieval[group].get('recall@1')))}, "
        f"R@10 {_shown(_value(retrieval[group].get('recall@10')))}"
        for group in ("seen", "unseen")
    ]
    return f"speakers heard in training, {retrieval['all']['n']} term chunks: {'; '.join(recalls)}"


def answers_rejection_sentence(figures: dict[str, Any]) -> str:
    """A split's rejection figures of answers in words."""
    return (
        f"{_shown(figures['rejected_no_term'])} of {figures['n_no_term']} no-term chunks rejected, "
        f"{_shown(figures['false_rejection'])} of {figures['n_term']} term chunks falsely rejected, "
        f"{figures['precision']['no_glossary_term']} times something said that is no glossary term"
    )


def hints_sentence(hints: dict[str, dict[str, Any]]) -> str:
    """How many hints stood in the prompts, and how often the spoken term was among them, by split."""
    shares = [f"{split} {_shown(of['spoken_among_them']['all']['value'])}" for split, of in hints.items()]
    return (
        f"hints: the {hints['test']['count']} terms that a retriever ranks first stand in each prompt. The share of "
        f"term chunks whose own term is among them: {', '.join(shares)} (of train by retrievers that have not heard "
        "the speaker; of test whoever speaks)"
    )


def transcript_sentence(transcript: dict[str, Any]) -> str:
    """How far answers are from what was spoken, in words."""
    wer, cer = _shown(transcript["wer"]), _shown(transcript["cer"])
    return f"word error rate {wer}, character error rate {cer}, over {transcript['words']:,} words"


def distractors_sentence(count: int, larger: dict[str, Any]) -> str:
    """What is left of Recall@10 and rejection with `count` words in the glossary that nobody says."""
    retrieval, rejection = larger["test"]["retrieval"], larger["test"]["rejection"]
    seen, unseen = (_shown(_value(retrieval[group].get("recall@10"))) for group in ("seen", "unseen"))
    sentence = f"with {count:,} words more in the glossary: R@10 seen {seen}, unseen {unseen}"
    if "reason" in rejection:
        return sentence
    terms = rejection["term_chunks"]["all"]
    return (
        f"{sentence}; falsely rejected {_shown(terms['false_rejection'])}, accepted "
        f"{_shown(rejection['false_acceptance'])} (AUROC {_shown(terms['auroc'])})"
    )


def rejection_sentence(metrics: dict[str, Any]) -> str:
    """The test split's rejection figures in words."""
    rejection = metrics["test"]["rejection"]
    if "reason" in rejection:
        return str(rejection["reason"])
    terms = rejection["term_chunks"]["all"]
    return (
        f"{_shown(rejection['rejected_no_term'])} of {rejection['n_no_term']} no-term chunks rejected, "
        f"{_shown(terms['false_rejection'])} of {terms['n']} term chunks falsely rejected, "
        f"AUROC {_shown(terms['auroc'])}"
    )


def quick_look_sentence(funnel: dict[str, Any]) -> str | None:
    """Of how many training chunks a quick look made do with few; None where training had them all."""
    steps = {step["step"]: step for step in funnel["steps"]}
    left_out = steps["splits"]["reasons"].get("over_train_limit", 0)
    if not left_out:
        return None
    trained = funnel["splits"]["train"]["chunks"]
    return f"a quick look: trained on {trained:,} of {trained + left_out:,} chunks (splits.max_train_chunks)"


def _funnel_sentence(funnel: dict[str, Any]) -> str:
    steps = {step["step"]: step for step in funnel["steps"]}
    aligned = f"{steps['align']['kept']:,} segments aligned, " if "align" in steps else ""  # not of chunks from a file
    return (
        f"{steps['manifest']['input']:,} manifest lines, {aligned}"
        f"{funnel['chunks']['term']:,} term chunks and {funnel['chunks']['no_term']:,} no-term chunks"
    )


def _value(figure: dict[str, float] | None) -> float | None:
    return None if figure is None else figure["value"]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
