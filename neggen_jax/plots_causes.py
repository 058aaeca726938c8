"""A figure of what a causal module takes for causes; see `causes.py`.

Stands beside `plots.py` on the way of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neggen_jax.plots import COLOURS, GREY, blank, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAUSAL, IRRELEVANT = COLOURS[0], COLOURS[4]
QUESTIONS = {
    "items": "what moves anybody",
    "users": "what moves this user",
}


def causes(found: Mapping[str, Any], title: str) -> Figure:
    """Bars of the probes' scores, and of how well statistics order them."""
    rows = max(len(found["probes"]), 2 * len(found["statistics"]))
    figure = blank(11, 1.6 + 0.28 * rows)
    figure.suptitle(f"{title}: probes of {found['set']!r}, {found['split']}")
    left, right = figure.subplots(1, 2)
    _probes(left, found)
    _orders(right, found)
    return figure


def _probes(axes: Axes, found: Mapping[str, Any]) -> None:
    """What each attribute is worth, largest first."""
    style(axes, "mean score of the attribute's value", "")
    axes.set_title("causal effect by attribute", loc="left", fontsize=10)
    axes.grid(visible=False)
    known = [p for p in found["probes"] if p["score"]["mean"] is not None]
    known.sort(key=lambda probe: -probe["score"]["mean"])
    kinds = (True, "moves users", CAUSAL), (False, "moves nobody", IRRELEVANT)
    for causal, label, colour in kinds:
        some = [(n, p) for n, p in enumerate(known) if p["causal"] is causal]
        _bars(axes, [(n, p["score"]) for n, p in some], colour, label)
    names = [f"{probe['attribute']} ({probe['modality']})" for probe in known]
    axes.set_yticks(range(len(known)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _orders(axes: Axes, found: Mapping[str, Any]) -> None:
    """The AUC of each statistic, question by question."""
    style(axes, "AUC; 0.5 is chance", "")
    axes.set_title("causes before other attributes", loc="left", fontsize=10)
    axes.grid(visible=False)
    names = list(found["statistics"])
    for number, (question, label) in enumerate(QUESTIONS.items()):
        at = [n + 0.38 * (number - 0.5) for n in range(len(names))]
        values = [found["auc"][question][name] for name in names]
        colour = (COLOURS[2], COLOURS[3])[number]
        rows = [(p, v) for p, v in zip(at, values, strict=True) if v["n"]]
        _bars(axes, rows, colour, label, 0.36)
    axes.set_yticks(range(len(names)), [_spoken(name) for name in names])
    axes.invert_yaxis()
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.4), max(high, 0.6))
    axes.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
    )


def _spoken(name: str) -> str:
    words = name.removesuffix("_untrained").replace("_", " ")
    return f"{words}, untrained" if name.endswith("_untrained") else words


def _bars(
    axes: Axes,
    rows: list[tuple[Any, Mapping[str, float]]],
    colour: str,
    label: str,
    height: float = 0.7,
) -> None:
    """Bars with their intervals."""
    from matplotlib.ticker import ScalarFormatter

    axes.xaxis.set_major_formatter(ScalarFormatter())
    means = [value["mean"] for _, value in rows]
    spread = [
        [value["mean"] - value["low"] for _, value in rows],
        [value["high"] - value["mean"] for _, value in rows],
    ]
    axes.barh(
        [place for place, _ in rows],
        means,
        height,
        color=colour,
        label=label,
        xerr=spread,
        error_kw={"ecolor": GREY, "elinewidth": 1, "capsize": 2},
    )
