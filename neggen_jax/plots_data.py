"""The figure of a dataset: who has how much, and what is known of the items.

Drawn by `data/summary.py` after a dataset is prepared, in the manner of
`plots.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from neggen_jax.plots import COLOURS, GREY, blank, style

_BARS = 50  # of a histogram, at most

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def dataset(
    name: str,
    by_user: np.ndarray,
    by_item: np.ndarray,
    presence: Mapping[str, tuple[float, float]],
) -> Figure:
    """Popularity curve, interactions per user, and presence of modalities.

    Args:
      name: of the dataset.
      by_user: interactions of each user.
      by_item: interactions of each item.
      presence: modality -> share of items, and of interactions, that have it.
    """
    figure = blank(13, 4)
    figure.suptitle(name)
    left, middle, right = figure.subplots(1, 3)
    _popularity(left, by_item)
    _per_user(middle, by_user)
    _presence(right, presence)
    return figure


def _popularity(axes: Axes, by_item: np.ndarray) -> None:
    style(axes, "items, most popular first", "interactions")
    ranked = np.sort(by_item)[::-1]
    ranked = ranked[ranked > 0]
    # A point for each pixel at most.
    places = np.unique(np.geomspace(1, len(ranked), 500).astype(int))
    axes.loglog(places, ranked[places - 1], color=COLOURS[0], linewidth=1.6)
    decile = max(1, -(-len(by_item) // 10))
    share = np.sort(by_item)[::-1][:decile].sum() / by_item.sum()
    axes.axvline(decile, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"top decile:\n{share:.0%} of all",
        (decile, 0.97),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(-5, 0),
        ha="right",
        va="top",
        color=GREY,
        # Over the curve, it can be read.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _per_user(axes: Axes, by_user: np.ndarray) -> None:
    most = max(1, int(np.quantile(by_user, 0.99)))
    # As many numbers in each bar; who has far more is in the last one.
    width = -(-most // _BARS)
    edges = 0.5 + width * np.arange(-(-most // width) + 1)
    over = bool(by_user.max() > edges[-1])
    style(
        axes,
        "interactions of a user" + over * " (last bar: or more)",
        "users",
    )
    shown = np.minimum(by_user, edges[-1] - 0.5)
    axes.hist(shown, bins=[float(e) for e in edges], color=COLOURS[0])
    median = float(np.median(by_user))
    axes.axvline(median, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"median {median:g}",
        (median, 0.97),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(5, 0),
        va="top",
        color=GREY,
    )


def _presence(axes: Axes, presence: Mapping[str, tuple[float, float]]) -> None:
    from matplotlib.ticker import PercentFormatter

    style(axes, "", "share that has it")
    if not presence:
        axes.annotate(
            "no modalities", (0.5, 0.5), xycoords="axes fraction", ha="center"
        )
        axes.set_xticks([])
    places = np.arange(len(presence))
    for number, what in enumerate(("items", "interactions")):
        shares = [share[number] for share in presence.values()]
        bars = axes.bar(
            places + 0.4 * (number - 0.5),
            shares,
            0.38,
            color=COLOURS[number],
            label=what,
        )
        axes.bar_label(bars, [f"{s:.0%}" for s in shares], fontsize=9)
    if presence:
        axes.set_xticks(places, list(presence))
        axes.set_xlim(-0.8, max(len(presence), 2) - 0.2)
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
        )
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
