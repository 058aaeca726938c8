"""Figures of runs: learning curves, recall by popularity, a comparison.

Stands behind `history.py` on the way of the data and before `reporting/`,
which gives it what was read. Figures of sources of
negatives are drawn in `plots_negatives.py`, of modalities and of lists in
`plots_balance.py`, in the manner set here.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neggen_jax import storage
from neggen_jax.history import CHOSEN_BY, History, series

# matplotlib is imported where it is used: it is slow to load, and a trainer
# needs it only at its end.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any colour vision; its yellow is
# left out as too pale for lines on white.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
DASHES = ("-", "--", ":", "-.")
GREY = "#666666"
# Width and height in inches of a panel that stands alone.
PANEL = 4.0, 2.7

# Before the name of a modality.
BY_MODALITY = "train/gradient_norm/"

Look = Mapping[str, Any]


def save(figure: Figure, path: storage.Workdir) -> None:
    """Writes a figure, in the format that the name of the file tells."""
    file = io.BytesIO()
    suffix = pathlib.PurePath(path).suffix
    figure.savefig(file, format=suffix.removeprefix(".") or None)
    storage.write(storage.path(path), file.getvalue())


def learning_curves(log: History, title: str) -> Figure:
    """Validation recall and NDCG at 20, and a panel for each training term.

    What a source logs by level, "train/<source>/<measure>/<level>", is left
    to `plots_negatives.py`, and what is logged by modality, "train/
    gradient_norm/<modality>", to `plots_balance.py`.
    """
    terms = logged_terms(log)
    columns = 1 if len(terms) <= 3 else 2
    rows = max(1, -(-len(terms) // columns))
    figure = blank(6 + 3 * columns, max(4, 1.6 * rows))
    ((left, right),) = figure.subfigures(
        1, 2, width_ratios=[6, 3 * columns], squeeze=False
    )
    _validation(left.add_subplot(title=title), log)
    # Each term has a scale of its own, and so a panel of its own.
    for number, term in enumerate(terms):
        last = number + columns >= len(terms)
        axes = right.add_subplot(rows, columns, number + 1)
        style(axes, "step" if last else "", "")
        axes.set_title(term, loc="left", fontsize=10)
        axes.tick_params(labelbottom=last)
        line(axes, *series(log, term), look(0))
    return figure


def logged_terms(log: History) -> list[str]:
    """Keys of training terms that are logged alone, the loss first."""
    terms = sorted(
        {
            key
            for e in log
            for key in e
            if key.startswith("train/")
            and key.count("/") < 3
            and not key.startswith(BY_MODALITY)
        }
    )
    return sorted(terms, key=lambda key: key != "train/loss")


def _validation(axes: Axes, log: History) -> None:
    style(axes, "step", "validation metric")
    for number, metric in enumerate((CHOSEN_BY, "ndcg@20")):
        x, y = series(log, f"valid/{metric}")
        line(axes, x, y, look(number))
        if x:
            axes.annotate(
                metric,
                (x[-1], y[-1]),
                textcoords="offset points",
                xytext=(8, 0),
                va="center",
                color=COLOURS[number],
            )
    x, y = series(log, f"valid/{CHOSEN_BY}")
    if not x:
        return
    at = y.index(max(y))
    axes.vlines(x[at], 0, y[at], color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(x[at], y[at], "o", color=COLOURS[0], markersize=7)
    where = f"step {x[at]:,}"
    # A log of one's own may have no epochs.
    epochs, _ = series(log, f"valid/{CHOSEN_BY}", by="epoch")
    if len(epochs) == len(x):
        where += f", epoch {epochs[at]:g}"
    axes.annotate(
        f"best: {y[at]:.4f}\nat {where}",
        (x[at], y[at]),
        textcoords="offset points",
        xytext=(0, 8),
        ha="center",
        va="bottom",
    )
    axes.set_ylim(0, 1.2 * max(y) or 1)


def popularity_bars(deciles: Mapping[str, Any], title: str) -> Figure:
    """Recall at 20 by decile of item popularity.

    Args:
      deciles: as `results.json` has them: "recall@20", None where nothing
        was held out, and "heldout", counts, if known.
      title: of the figure.
    """
    recall, heldout = deciles["recall@20"], deciles.get("heldout")
    figure = blank(7.5, 4)
    axes = figure.add_subplot(title=title)
    style(axes, "items by popularity: 1 least popular, 10 most", "recall@20")
    places = range(1, len(recall) + 1)
    bars = axes.bar(places, [r or 0 for r in recall], color=COLOURS[0])
    texts = ["none\nheld out" if r is None else f"{r:.3f}" for r in recall]
    axes.bar_label(bars, texts, padding=2, fontsize=9, color=GREY)
    labels = [str(place) for place in places]
    if heldout:
        labels = [f"{d}\n{n:,}" for d, n in zip(labels, heldout, strict=True)]
        axes.annotate(
            "decile\nheld out",
            (0, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            # As far below the axis as the tick labels it explains.
            xytext=(-8, -7),
            ha="right",
            va="top",
            color=GREY,
        )
    axes.set_xticks(places, labels)
    axes.set_ylim(0, 1.15 * max(r or 0 for r in recall) or 1)
    return figure


def comparison_curves(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
) -> Figure:
    """Validation recall at 20 of several runs, listed by their best value.

    Args:
      curves: (name, epochs, values) of each run.
    """
    ranked = sorted(
        ((max(y, default=0.0), name, x, y) for name, x, y in curves),
        key=lambda curve: curve[0],
        reverse=True,
    )
    figure = blank(8, 4.2)
    axes = figure.add_subplot()
    style(axes, "epoch", f"validation {CHOSEN_BY}")
    for number, (best, name, x, y) in enumerate(ranked):
        line(axes, x, y, look(number), f"{name}  {best:.4f}")
        if x:
            colour = axes.lines[-1].get_color()
            axes.plot(x[y.index(best)], best, "o", color=colour, markersize=6)
    axes.legend(
        title="run, best value",
        alignment="left",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


# -- the manner of all figures ----------------------------------------------


def blank(width: float, height: float) -> Figure:
    """A figure of its own: no pyplot, so no global state and no display.

    Args:
      width: inches.
      height: inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def style(axes: Axes, x: str, y: str) -> None:
    """Labels the axes and takes away what is not data."""
    from matplotlib.ticker import EngFormatter

    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def look(number: int) -> Look:
    """Colour and dashes of line `number`, told apart from the others."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    look: Look,
    label: str = "",
) -> None:
    """Draws one line, or a dot where there is a single point."""
    axes.plot(
        x,
        y,
        **look,
        linewidth=1.6,
        marker="" if len(x) > 1 else "o",
        markersize=4,
        label=label,
    )
