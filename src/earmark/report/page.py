"""Writing report.html: everything a run measured, in one file that opens anywhere."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import yaml

import earmark
from earmark.artifacts import atomic_path, iterate_rows, write_json
from earmark.cluster.plan import read_plan
from earmark.cluster.usage import RuleUsage, by_rule, run_usage
from earmark.cluster.usage_page import COLUMNS, advice, cells
from earmark.report import plots
from earmark.report.figures import (
    CONTROL,
    RECALL_AT,
    RunFigures,
    every_term_sentence,
    hints_sentence,
    quick_look_sentence,
    read_figures,
    rejection_sentence,
    transcript_sentence,
)
from earmark.report.trained import trained_rows

_SHARDED = ("corpus", "alignments", "chunks", "features/*", "transcripts")
_SHOWN_ROWS = 30  # of long lists; the artifacts hold them whole


def write_report(
    run_folder: Path, benchmarks: Path, shards: list[str], config: dict[str, Any], output: Path, config_copy: Path
) -> None:
    """Write the page of the run in `run_folder`, and the configuration that the run had.

    `benchmarks` (logs/{run}/benchmarks) holds Snakemake's benchmark tables; its plan lies beside that folder.
    """
    figures = read_figures(run_folder, config)
    predictions = {
        backend: [row for row in iterate_rows(run_folder / "evaluation" / backend / "predictions.parquet")]
        for backend in figures.metrics
    }
    main = next(iter(figures.metrics))
    usage = _usage(benchmarks)
    test = [row for row in predictions[main] if row["split"] == "test" and not row["seen_speaker"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    page = environment.get_template("page.html").render(
        version=earmark.__version__,
        figures=figures,
        quick_look=quick_look_sentence(figures.funnel),
        main=main,
        transcriber=config["evaluate"]["transcripts"],
        test_distractors=figures.metrics[main]["distractors"],
        control=CONTROL,
        recall_at=RECALL_AT,
        every_term_sentence=every_term_sentence,
        rejection_sentence=rejection_sentence,
        transcript_sentence=transcript_sentence,
        hints_sentence=hints_sentence,
        threshold_speakers=_threshold_speakers(figures.metrics[main]["set_on"], config),
        larger_tests=_larger_tests,
        answering_parts=_answering_parts,
        funnel_plot=plots.funnel([(step["step"], step["kept"], step["rejected"]) for step in figures.funnel["steps"]]),
        recall_plot=_recall_plot(figures),
        rejection_plot=_rejection_plot(test, figures.metrics[main]["rejection_threshold"]),
        # A model that is evaluated as it is has but one line.
        training_plots={name: _training_plot(lines) for name, lines in figures.losses.items() if len(lines) > 1},
        trained=list(trained_rows({name: figures.audits[name] for name in figures.answers})),
        confusions=_confusions(test),
        hardest=_hardest_terms(test),
        rejected=_rejected_rows(
            run_folder,
            shards,
            config["export"]["formats"],
            trained=figures.audits,
            answering=figures.answers,
            folds=config["train"]["folds"] if _has_folds(figures, config) else 0,
        ),
        conflicts=_first_lines(run_folder / "glossary/conflicts.jsonl"),
        usage_columns=COLUMNS,
        usage=[cells(rule) for rule in usage],
        advice=advice(usage),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json(config_copy, config)


def _has_folds(figures: RunFigures, config: dict[str, Any]) -> bool:
    """Whether retrievers were trained that have not heard some of the training speakers."""
    hinted = any("hints" in answers for answers in figures.answers.values())
    return hinted or bool(config["evaluate"]["held_out_chunks"])


def _threshold_speakers(set_on: dict[str, int], config: dict[str, Any]) -> str:
    chunks, speakers = f"{set_on['no_term_chunks']:,}", f"{set_on['no_term_speakers']:,}"
    if not config["evaluate"]["held_out_chunks"]:
        return f"dev ({chunks}, {speakers} speakers)"
    return (
        f"dev, and for the retriever also of training, where retrievers hear them that have not heard their speakers "
        f"({chunks} in all, {speakers} speakers)"
    )


def _larger_tests(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(words more, figures) of larger glossaries."""
    return [(f"{int(count):,}", larger["test"]) for count, larger in metrics["distractors"].items()]


def _answering_parts(name: str, test: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(who, figures) of a backend that answers and of the retriever beside it, of unseen speakers, then seen ones."""
    parts = [(name, test), ("retriever", test["retriever"])]
    seen = test["seen_speakers"]
    if "reason" not in seen:
        parts += [(f"{name}, seen speakers", seen), ("retriever, seen speakers", seen["retriever"])]
    return [(who, figures) for who, figures in parts if figures]


def _recall_plot(figures: RunFigures) -> str:
    curves: dict[str, dict[int, float]] = {}
    for backend in figures.metrics:
        for group in ("seen", "unseen"):
            recalls = {k: value for k in RECALL_AT if (value := figures.recall(backend, group, k)) is not None}
            if recalls:
                prefix = "" if backend == "retriever" else f"{backend}, "
                curves[f"{prefix}{group} terms"] = recalls
    terms = next(iter(figures.metrics.values()))["main_terms"]
    curves["chance"] = {k: min(1.0, k / terms) for k in RECALL_AT}
    return plots.recall_curves(curves)


def _rejection_plot(test: list[dict[str, Any]], threshold: float | None) -> str | None:
    scores: dict[bool, list[float]] = {True: [], False: []}
    for row in test:
        scores[row["has_term"]].append(row["top_scores"][0])
    if threshold is None or not scores[True] or not scores[False]:
        return None
    return plots.score_histogram(scores[True], scores[False], threshold)


def _training_plot(lines: list[dict[str, Any]]) -> str:
    losses: dict[str, list[tuple[float, float]]] = defaultdict(list)
    dev: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if name.startswith("eval_") and ("recall" in name or "mrr" in name):
                dev[name.removeprefix("eval_")].append((line["epoch"], value))
            elif name.endswith("loss") and name != "train_loss":
                losses[name].append((line["epoch"], value))
    return plots.training_curves(losses, dev)


def _confusions(test: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """(spoken, heard instead, how often): what stood first where the spoken term did not."""
    pairs = Counter(
        (row["main_term"], row["top_terms"][0])
        for row in test
        if row["has_term"] and row["rank"] > 1 and row["top_terms"][0] != row["main_term"]
    )
    return [(spoken, heard, count) for (spoken, heard), count in _ordered(pairs)[:_SHOWN_ROWS]]


def _hardest_terms(test: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ranks: dict[str, list[int]] = defaultdict(list)
    seen = {}
    for row in test:
        if row["has_term"]:
            ranks[row["main_term"]].append(row["rank"])
            seen[row["main_term"]] = row["seen_term"]
    rows = [
        {
            "term": term,
            "seen": seen[term],
            "n": len(found),
            "first": sum(rank == 1 for rank in found) / len(found),
            "in_ten": sum(rank <= 10 for rank in found) / len(found),
        }
        for term, found in ranks.items()
    ]
    return sorted(rows, key=lambda row: (row["in_ten"], row["first"], row["term"]))[:_SHOWN_ROWS]


def _rejected_rows(
    run_folder: Path,
    shards: list[str],
    formats: list[str],
    *,
    trained: Iterable[str],
    answering: Iterable[str],
    folds: int,
) -> list[dict[str, str]]:
    """The first rejected rows of every artifact of this run, with where they are listed.

    `trained` and `answering` are the backends that this run's configuration names; `folds` is 0 where none was hinted.
    """
    sharded = [f"{stage}/{shard}" for stage in _SHARDED for shard in shards]
    named = [
        "corpus/manifest",
        "chunks/manifest",
        "splits/*",
        "index/*",
        *(f"models/{name}/*" for name in trained),
        *(f"answers/{name}/*" for name in answering),
        *(f"export/{name}/*" for name in formats),
        *(["hints/conversation/*"] if folds else []),
        *(f"folds/{fold}/index/*" for fold in range(folds)),
        *sharded,
    ]
    rows = []
    for path in sorted(found for name in named for found in run_folder.glob(f"{name}.rejected.jsonl")):
        rows += [{"file": str(path.relative_to(run_folder)), **row} for row in _first_lines(path)]
    return rows[: 3 * _SHOWN_ROWS]


def _usage(benchmarks: Path) -> list[RuleUsage]:
    """What the jobs used, by the plan beside Snakemake's benchmarks; nothing where no Snakemake made the run."""
    plan = benchmarks.parent / "plan.json"
    # logs/{run}/benchmarks: the plan's paths start three folders above.
    return by_rule(run_usage(read_plan(plan), benchmarks.parents[2])) if plan.exists() else []


def _first_lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(_SHOWN_ROWS), file, strict=False)]


def _ordered(pairs: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
