"""The figure of a search: its history, learning curves, and each key.

In the manner of `neggen_jax/plots.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from neggen_jax.plots import COLOURS, GREY, blank, style
from neggen_jax.search.spec import Choices, Search
from neggen_jax.search.study import Tried, best, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST, _OTHER = COLOURS[1], COLOURS[0]
# Panels of keys in a row.
_ROW = 3


def draw(
    tried: Sequence[Tried],
    search: Search,
    importances: Mapping[str, float],
    title: str,
) -> Figure:
    """History and learning curves above, below them a panel for each key.

    Args:
      tried: all trials, some of them finished.
      search: what was asked for.
      importances: of the keys, if they are known.
      title: of the figure.
    """
    # Those that explain most come first.
    keys = sorted(search.space, key=lambda key: -importances.get(key, 0.0))
    rows = -(-len(keys) // _ROW)
    figure = blank(9, 3 + 2.5 * rows)
    figure.suptitle(title)
    (above,), (below,) = figure.subfigures(
        2, 1, height_ratios=[3, 2.5 * rows], squeeze=False
    )
    left, right = above.subplots(1, 2)
    top = best(list(tried))[0]
    _history(left, tried, top, search.metric)
    _curves(right, tried, top, search.metric)
    panels = below.subplots(
        rows, min(_ROW, len(keys)), sharey=True, squeeze=False
    )
    for axes, key in itertools.zip_longest(panels.flat, keys):
        if key is None:
            axes.remove()
            continue
        _slice(axes, tried, top, search, key)
        share = importances.get(key)
        if share is not None:
            axes.set_title(f"importance {share:.2f}", fontsize=9, color=GREY)
    panels[0, 0].set_ylabel(f"{search.metric} on valid")
    return figure


def _history(
    axes: Axes, tried: Sequence[Tried], top: Tried, metric: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    style(axes, "trial", f"{metric} on valid")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    done = [x for x in tried if x.state == "finished"]
    values = [x.value or 0.0 for x in done]
    axes.step(
        [x.number for x in done],
        list(itertools.accumulate(values, max)),
        where="post",
        color=GREY,
        linewidth=1,
        label="best so far",
    )
    _points(axes, [(x.number, x) for x in tried], top)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _curves(
    axes: Axes, tried: Sequence[Tried], top: Tried, metric: str
) -> None:
    style(axes, "epoch", f"{metric} on valid")
    for x in [*(x for x in tried if x is not top), top]:
        epochs = sorted(x.curve)
        pruned = x.state == "pruned"
        axes.plot(
            epochs,
            [x.curve[epoch] for epoch in epochs],
            color=_BEST if x is top else GREY if pruned else _OTHER,
            linewidth=2 if x is top else 1,
            linestyle=":" if pruned else "-",
            alpha=1 if x is top else 0.7,
            marker="x" if pruned else "",
            markevery=[-1] if pruned else None,
            markersize=5,
        )


def _slice(
    axes: Axes,
    tried: Sequence[Tried],
    top: Tried,
    search: Search,
    key: str,
) -> None:
    """The value of each trial by its value of one key."""
    of = search.space[key]
    style(axes, key, "")
    known = [x for x in tried if key in x.params]
    if isinstance(of, Choices):
        places = [of.values.index(x.params[key]) for x in known]
        axes.set_xticks(range(len(of.values)), list(map(text, of.values)))
        axes.set_xlim(-0.5, len(of.values) - 0.5)
        _points(axes, list(zip(places, known, strict=True)), top)
        return
    if of.log:
        axes.set_xscale("log")
        edge = (of.high / of.low) ** 0.05
        axes.set_xlim(of.low / edge, of.high * edge)
    else:
        edge = 0.05 * (of.high - of.low)
        axes.set_xlim(of.low - edge, of.high + edge)
    _points(axes, [(float(x.params[key]), x) for x in known], top)


def _points(
    axes: Axes, points: Sequence[tuple[float, Tried]], top: Tried
) -> None:
    """Dots for finished trials, crosses for pruned ones, the best larger."""
    for label, state, marker, colour in (
        ("finished", "finished", "o", _OTHER),
        ("pruned", "pruned", "x", GREY),
    ):
        shown = [(place, x) for place, x in points if x.state == state]
        if shown:
            axes.scatter(
                [place for place, _ in shown],
                [x.value or 0.0 for _, x in shown],
                s=22,
                marker=marker,
                color=colour,
                label=label,
                zorder=3,
            )
    for place, x in points:
        if x is top:
            axes.plot(
                place, x.value or 0.0, "o", color=_BEST, markersize=8, zorder=4
            )
