"""Figures of what accuracy does not tell: balance, diversity, popularity.

Stands beside `plots.py` on the way of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neggen_jax.history import History, series
from neggen_jax.plots import (
    BY_MODALITY,
    GREY,
    PANEL,
    blank,
    line,
    look,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DROP = "modality_drop_"
# Measure -> title of its panel in a comparison of runs.
MEASURES = {
    "recall": "recall@20",
    "tail_recall": "recall@20 of the less popular 80 %",
    "coverage": "catalogue recommended (share)",
    "gini": "Gini coefficient of exposure",
    "popularity": "popularity of what is recommended",
    "category_entropy": "entropy of categories (bits)",
    "modality_balance": "modality balance",
}
_CUTOFF = "@20"
COLUMNS = 4


def balance(
    log: History,
    results: Mapping[str, Any],
    title: str,
    step: int | None = None,
) -> Figure | None:
    """How much a run leans on each modality.

    One panel shows what is lost without each modality, the other the norms
    of the gradients of each modality's own parameters over the steps.

    Args:
      log: of a run.
      results: of the run, if it has come so far.
      title: of the figure.
      step: the best one, None if there is none yet.

    Returns:
      The figure; None if there is nothing to draw: the ranking reads no
      modality, and no parameter belongs to one.
    """
    test = results.get("test", {})
    drops, norms = drops_of(test), norms_of(log)
    # A modality has one colour in both panels.
    names = sorted({*drops, *norms})
    if not names:
        return None
    panels = bool(drops) + bool(norms)
    figure = blank(1 + 4.4 * panels, 3.6)
    figure.suptitle(title)
    if drops:
        metric = next(iter(results.get("without_modality", {})), "recall")
        axes = figure.add_subplot(
            1, panels, 1, ylabel=f"share of {metric} lost on test"
        )
        _drops(axes, drops, names, test.get("modality_balance"))
    if norms:
        axes = figure.add_subplot(1, panels, panels)
        _norms(axes, log, norms, names, step)
    return figure


def drops_of(test: Mapping[str, float]) -> dict[str, float]:
    """Modality -> share of the metric that is lost without it."""
    return {
        key.removeprefix(_DROP): value
        for key, value in sorted(test.items())
        if key.startswith(_DROP)
    }


def norms_of(log: History) -> list[str]:
    """Modalities whose gradients' norms were logged."""
    found = {key for entry in log for key in entry}
    return sorted(
        key.removeprefix(BY_MODALITY)
        for key in found
        if key.startswith(BY_MODALITY)
    )


def gradients(log: History, step: int | None = None) -> Figure | None:
    """The norms of the gradients of each modality's parameters, in a panel.

    Args:
      log: of a run.
      step: the best one, None if there is none yet.

    Returns:
      The figure; None if no parameter belongs to a modality.
    """
    norms = norms_of(log)
    if not norms:
        return None
    figure = blank(*PANEL)
    _norms(figure.add_subplot(), log, norms, norms, step)
    return figure


def _drops(
    axes: Axes,
    drops: Mapping[str, float],
    names: Sequence[str],
    even: float | None,
) -> None:
    style(axes, "", axes.get_ylabel())
    heading = "without the modality"
    if even is not None:
        heading += f"; balance {even:.2f}"
    axes.set_title(heading, loc="left", fontsize=10)
    colours = [look(names.index(name))["color"] for name in drops]
    places = range(len(drops))
    bars = axes.bar(places, list(drops.values()), 0.6, color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=9, color=GREY)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(places, list(drops))
    axes.margins(x=0.2, y=0.15)


def _norms(
    axes: Axes,
    log: History,
    norms: Sequence[str],
    names: Sequence[str],
    step: int | None,
) -> None:
    style(axes, "step", "")
    heading, at = "gradient norm", []
    for name in norms:
        x, y = series(log, BY_MODALITY + name)
        line(axes, x, y, look(names.index(name)), name)
        until = [v for s, v in zip(x, y, strict=True) if not step or s <= step]
        at += until[-1:]
    if len(norms) == len(at) > 1 and min(at) > 0:
        heading += f"; largest / smallest {max(at) / min(at):.2g}"
        heading += " at the best step" if step else " at last"
    axes.set_title(heading, loc="left", fontsize=10)
    axes.set_ylim(bottom=0)
    if step is not None:
        axes.axvline(step, color="#BBBBBB", linewidth=1, zorder=0.9)
    axes.legend(frameon=False, fontsize=9, loc="best")


def measures(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Measures of several runs side by side, a panel each.

    Args:
      runs: (name, measures on test) of each run. A measure that no run has
        gets no panel; one that some lack, says so.
    """
    known = [
        (measure, title)
        for measure, title in MEASURES.items()
        if any(_value(test, measure) is not None for _, test in runs)
    ]
    columns = min(COLUMNS, max(1, len(known)))
    rows = max(1, -(-len(known) // columns))
    figure = blank(1 + 3.0 * columns, 0.8 + rows * (0.9 + 0.28 * len(runs)))
    figure.set_layout_engine("constrained", h_pad=0.15)
    figure.suptitle("test, lists of 20")
    for number, (measure, title) in enumerate(known):
        axes = figure.add_subplot(rows, columns, number + 1)
        _compared(axes, runs, measure, title, number % columns == 0)
    return figure


def _compared(
    axes: Axes,
    runs: Sequence[tuple[str, Mapping[str, Any]]],
    measure: str,
    title: str,
    named: bool,
) -> None:
    style(axes, "", "")
    axes.grid(visible=False)
    axes.set_title(title, loc="left", fontsize=10)
    values = [_value(test, measure) for _, test in runs]
    places = range(len(runs))
    colours = [look(number)["color"] for number in places]
    bars = axes.barh(places, [v or 0 for v in values], 0.7, color=colours)
    texts = ["none" if v is None else f"{v:.3g}" for v in values]
    axes.bar_label(bars, texts, padding=3, fontsize=8, color=GREY)
    axes.set_yticks(places, [name for name, _ in runs] if named else [])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xticks([])
    axes.spines[["bottom"]].set_visible(False)


def _value(test: Mapping[str, Any], measure: str) -> float | None:
    return test.get(measure + _CUTOFF, test.get(measure))
