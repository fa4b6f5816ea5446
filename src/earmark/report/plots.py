"""The report's plots, each as one inline SVG string that needs nothing from outside."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use("svg")  # before pyplot: no display is asked for
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

BLUE, ORANGE, GREY, GREEN = "#2f6db5", "#d9822b", "#9aa5b1", "#3a8f5c"
PURPLE, RED, BROWN = "#8460a8", "#b8434e", "#8c6d46"
plt.rcParams.update(
    {
        "svg.hashsalt": "earmark",  # the same plot gives the same bytes
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


def funnel(steps: Sequence[tuple[str, int, int]]) -> str:
    """Horizontal bars of (step, kept, rejected) rows, first step on top."""
    figure, axes = _figure(7.0, 0.45 * len(steps) + 0.7)
    labels = [step for step, _, _ in steps]
    kept = [kept for _, kept, _ in steps]
    axes.barh(labels, kept, color=BLUE, label="kept")
    axes.barh(labels, [rejected for _, _, rejected in steps], left=kept, color=ORANGE, label="rejected")
    for row, (_, kept_rows, rejected_rows) in enumerate(steps):
        note = f" {kept_rows:,}" + (f"  (-{rejected_rows:,})" if rejected_rows else "")
        axes.text(kept_rows + rejected_rows, row, note, va="center")
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    axes.margins(x=0.15)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def recall_curves(curves: Mapping[str, Mapping[int, float]]) -> str:
    """Recall@K over K, one line for each name; dashed grey where the name says control or chance."""
    figure, axes = _figure(6.0, 3.4)
    colours = itertools.cycle((BLUE, GREEN, ORANGE, PURPLE, RED, BROWN))
    for name, recalls in curves.items():
        quiet = "random" in name or "chance" in name
        axes.plot(
            list(recalls),
            list(recalls.values()),
            marker="" if "chance" in name else "o",
            linestyle="--" if quiet else "-",
            color=GREY if quiet else next(colours),
            alpha=0.6 if "chance" in name else 1.0,
            label=name,
        )
    ks = sorted({k for recalls in curves.values() for k in recalls})
    axes.set_xticks(ks)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("K")
    axes.set_ylabel("Recall@K")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def score_histogram(term_scores: Sequence[float], no_term_scores: Sequence[float], threshold: float) -> str:
    """Top scores of term and no-term chunks, and the threshold between accepting and rejecting."""
    figure, axes = _figure(6.0, 3.0)
    every = [*term_scores, *no_term_scores]
    edges = np.linspace(min(every), max(every), 41).tolist()
    axes.hist(no_term_scores, bins=edges, color=GREY, alpha=0.8, label="no-term chunks", density=True)
    axes.hist(term_scores, bins=edges, color=BLUE, alpha=0.6, label="term chunks", density=True)
    axes.axvline(threshold, color=ORANGE, label="threshold")
    axes.set_xlabel("score of the best term")
    axes.set_ylabel("density")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def training_curves(
    losses: Mapping[str, Sequence[tuple[float, float]]], dev: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """Loss parts (left) and, where there are any, dev figures (right) over epochs: name -> (epoch, value) points."""
    shown = [(losses, "loss"), (dev, "dev")] if dev else [(losses, "loss")]
    figure, panels = plt.subplots(1, len(shown), figsize=(4.0 * len(shown), 3.0), squeeze=False)
    for axes, (series, label) in zip(panels[0], shown, strict=True):
        for name, points in series.items():
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(width, height))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
