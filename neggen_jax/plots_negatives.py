"""A figure for each source of negatives that logs by level of difficulty.

Stands beside `plots.py` on the way of the data. A source is known by what
it logged alone: "train/<source>/<measure>/<label>", where a label is a level
("1-text"), a yardstick that levels are held against ("positive", "uniform"),
or a range of timesteps of the source's process ("0-4").
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from neggen_jax.history import History, by_epoch
from neggen_jax.plots import GREY, PANEL, Look, blank, line, look, style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Measure -> title of its panel, in the order of panels; most are those of
# `negatives/hardness.py`. Any other comes after them, under its own name.
TITLES = {
    "hardness": "hardness",
    "score": "score (inner product with the user)",
    "distance": "cosine distance to nearest train positive",
    "false_negatives": "share of false negatives",
    "diversity": "diversity (cosine distance within a pair)",
    "denoiser": "denoiser loss",
}
# Yardstick -> its hardness, what that means, and how it is drawn.
YARDSTICKS: dict[str, tuple[float, str, Look]] = {
    "positive": (
        1.0,
        "as the\npositive",
        {"color": GREY, "linestyle": "--"},
    ),
    "uniform": (
        0.0,
        "as a uniform\nnegative",
        {"color": GREY, "linestyle": ":"},
    ),
}
BEST = "best step"
# Epochs, the best one last, that the summary is a mean over.
SUMMED = 5
COLUMNS = 3
# Characters that fit below the bars of the summary.
ROOM = 45


@dataclasses.dataclass(frozen=True)
class Logged:
    """What one source logged.

    Attributes:
      log: of the whole run.
      source: name.
      levels: from the first to the last.
      measures: measure by level -> its labels, yardsticks among them.
      ranges: measure by range of timesteps -> its ranges.
      best: epoch of the best step, None if there is none yet.
      last: epoch that the log ends in.
    """

    log: History
    source: str
    levels: list[str]
    measures: dict[str, list[str]]
    ranges: dict[str, list[str]]
    best: int | None
    last: int

    @classmethod
    def of(cls, log: History, source: str, step: int | None) -> Logged:
        """Finds what `source` logged; `step` is the best one."""
        found: dict[str, list[str]] = {}
        for name, measure, label in sorted(_labelled(log)):
            if name == source:
                found.setdefault(measure, []).append(label)
        ranges = {
            measure: sorted(labels, key=_rank)
            for measure, labels in found.items()
            if all(re.fullmatch(r"\d+-\d+", label) for label in labels)
        }
        rest = sorted(found.keys() - TITLES.keys())
        measures = {
            measure: sorted(found[measure], key=_rank)
            for measure in (*TITLES, *rest)
            if measure in found and measure not in ranges
        }
        levels = {label for labels in measures.values() for label in labels}
        epochs = [
            (e["step"], math.ceil(e["epoch"])) for e in log if "epoch" in e
        ]
        until = [at for s, at in epochs if step is not None and s <= step]
        return cls(
            log,
            source,
            sorted(levels - YARDSTICKS.keys(), key=_rank),
            measures,
            ranges,
            max(until, default=None),
            max((at for _, at in epochs), default=1),
        )

    def values(
        self, measure: str, *label: str
    ) -> tuple[list[int], list[float]]:
        """Epochs, and the mean of each."""
        return by_epoch(
            self.log, "/".join(("train", self.source, measure, *label))
        )

    def look(self, label: str) -> Look:
        """The same in every panel."""
        if label in YARDSTICKS:
            return YARDSTICKS[label][2]
        return look(self.levels.index(label))


def sources(log: History) -> list[str]:
    """Names of the sources that logged something by level or range."""
    return sorted({source for source, _, _ in _labelled(log)})


def by_level(
    log: History, source: str, title: str, step: int | None = None
) -> Figure:
    """Everything that a source logged by level or range.

    Lines have one point an epoch, the mean of what was logged in it. Before
    them, bars show hardness at the best step: the mean over the few epochs
    up to it, or up to the end of the log if there is none yet.

    Args:
      log: of a run.
      source: one of `sources(log)`.
      title: of the figure.
      step: the best one, None if there is none yet.
    """
    logged = Logged.of(log, source, step)
    draws = _draws(logged)
    columns = min(COLUMNS, len(draws))
    rows = -(-len(draws) // columns)
    figure = blank(4.4 * columns, 2.6 * rows + 0.8)
    # Room for what stands right of the panels of hardness.
    figure.set_layout_engine("constrained", w_pad=0.1)
    for number, draw in enumerate(draws, 1):
        draw(figure.add_subplot(rows, columns, number), logged)
    figure.suptitle(title)
    _legend(figure, logged)
    return figure


def panels(
    log: History, source: str, step: int | None = None
) -> dict[str, Figure]:
    """The same, without the bars, a figure for each panel.

    Returns:
      What it shows, in words -> the figure.
    """
    logged = Logged.of(log, source, step)
    found = {}
    for draw in _draws(logged):
        if draw is _summary:
            continue
        figure = blank(*PANEL)
        axes = figure.add_subplot()
        draw(axes, logged)
        title = axes.get_title(loc="left")
        axes.set_title("", loc="left")
        if axes.get_legend() is None:
            _legend(figure, logged, columns=3)
        found[title] = figure
    return found


def _draws(logged: Logged) -> list[Callable[[Axes, Logged], None]]:
    draws: list[Callable[[Axes, Logged], None]] = []
    if logged.levels and "hardness" in logged.measures:
        draws.append(_summary)
    draws += [functools.partial(_levels, m) for m in logged.measures]
    draws += [functools.partial(_ranges, m) for m in logged.ranges]
    if logged.values("admitted")[0]:
        draws.append(_admitted)
    return draws


def summed(
    logged: Logged, measure: str = "hardness"
) -> tuple[list[int], list[float | None]]:
    """A measure's mean of each level in the few epochs up to the best step.

    Hardness changes as a model learns, so that levels are compared in the
    same epochs: those in which all were measured that were measured by then.

    Returns:
      The epochs, `SUMMED` at most; the means, None where there is none.
    """
    until = logged.best or logged.last
    window = range(max(1, until - SUMMED + 1), until + 1)
    known = []
    for level in logged.levels:
        points = zip(*logged.values(measure, level), strict=True)
        known.append({at: value for at, value in points if at in window})
    epochs = [at for at in window if all(at in k for k in known if k)]
    return epochs or list(window), [
        statistics.fmean(k[at] for at in epochs) if k and epochs else None
        for k in known
    ]


def _labelled(log: History) -> set[tuple[str, str, str]]:
    """(source, measure, label) of all that was logged with a label."""
    parts = (key.split("/", 3) for e in log for key in e)
    return {
        (p[1], p[2], p[3]) for p in parts if len(p) == 4 and p[0] == "train"
    }


def _rank(label: str) -> tuple[float, str]:
    """Sorts by the leading number: "10-14" after "5-9"."""
    number = re.match(r"\d+", label)
    return (int(number[0]) if number else math.inf, label)


# -- panels -----------------------------------------------------------------


def _summary(axes: Axes, logged: Logged) -> None:
    """Bars: hardness by level, up to the best step."""
    epochs, heights = summed(logged)
    span = f"epoch {epochs[0]}"
    if len(epochs) > 1:
        span = f"epochs {epochs[0]}-{epochs[-1]}"
    style(axes, "", "")
    axes.set_title(f"hardness by level, {span}", loc="left", fontsize=10)
    places = range(len(heights))
    bars = axes.bar(
        places,
        [height or 0 for height in heights],
        0.6,
        color=[logged.look(level)["color"] for level in logged.levels],
    )
    _marks(axes, [height for height in heights if height is not None])
    texts = ["none" if h is None else f"{h:.2f}" for h in heights]
    # The mark at 1 would strike them through.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.bar_label(bars, texts, padding=3, fontsize=9, bbox=ground, zorder=3)
    labels = [re.sub(r"^(\d+)-", r"\1\n", level) for level in logged.levels]
    longest = max(len(part) for x in labels for part in x.split("\n"))
    if longest * len(labels) > ROOM:
        # The legend has their names.
        labels = [level.split("-")[0] for level in logged.levels]
    axes.set_xticks(places, labels, fontsize=9)
    # Room for three, lest one bar fill the panel.
    middle, half = (len(places) - 1) / 2, max(3, len(places)) / 2
    axes.set_xlim(middle - half, middle + half)


def _levels(measure: str, axes: Axes, logged: Logged) -> None:
    """Lines: one measure by level, over epochs."""
    _epochs(axes, logged, _title(measure))
    labels = logged.measures[measure]
    drawn = [(label, *logged.values(measure, label)) for label in labels]
    for label, x, y in drawn:
        line(axes, x, y, logged.look(label), label)
    if measure == "hardness":
        # Only later values are sure to be in view: before anything is
        # learned a positive scores like any item, and hardness, which is
        # divided by the difference, may be anything.
        _marks(
            axes,
            [
                value
                for _, x, y in drawn
                for epoch, value in zip(x, y, strict=True)
                if epoch > logged.last // 2
            ],
        )


def _ranges(measure: str, axes: Axes, logged: Logged) -> None:
    """Lines: one measure by range of timesteps, over epochs."""
    from matplotlib import colormaps

    _epochs(axes, logged, f"{_title(measure)} by range of timesteps")
    labels = logged.ranges[measure]
    for number, label in enumerate(labels):
        # In order, from dark to light; its lightest is too pale on white.
        shade = colormaps["viridis"](0.85 * number / max(1, len(labels) - 1))
        line(axes, *logged.values(measure, label), {"color": shade}, label)
    drawn = axes.lines[-len(labels) :]
    axes.legend(
        drawn, labels, frameon=False, fontsize=8, loc="best", labelspacing=0.2
    )


def _admitted(axes: Axes, logged: Logged) -> None:
    """A line: how many negatives of a pair count."""
    _epochs(axes, logged, "negatives admitted")
    x, y = logged.values("admitted")
    line(axes, x, y, {"color": "black"})
    top = max(1, *y)
    axes.set_ylim(-0.04 * top, 1.08 * top)


def _title(measure: str) -> str:
    return TITLES.get(measure, measure.replace("_", " "))


def _epochs(axes: Axes, logged: Logged, title: str) -> None:
    """Epochs along x, the same ones in every panel."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    style(axes, "epoch", "")
    axes.set_title(title, loc="left", fontsize=10)
    margin = max(0.5, 0.02 * logged.last)
    axes.set_xlim(1 - margin, logged.last + margin)
    axes.xaxis.set_major_locator(
        MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if logged.best is not None:
        axes.axvline(
            logged.best, color="#BBBBBB", linewidth=1, zorder=0.9, label=BEST
        )


def _marks(axes: Axes, values: list[float]) -> None:
    """Marks 0 and 1 of hardness, and keeps both and `values` in view."""
    for at, meaning, drawn in YARDSTICKS.values():
        axes.axhline(at, **drawn, linewidth=1.2, zorder=2.5)
        axes.annotate(
            meaning,
            (1.01, at),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=GREY,
            annotation_clip=False,
        )
    low, high = min(values, default=0), max(values, default=1)
    low, high = min(low, 0), max(high, 1)
    margin = 0.12 * (high - low)
    axes.set_ylim(low - margin if low else -0.04 * high, high + margin)


def _legend(figure: Figure, logged: Logged, columns: int = 6) -> None:
    """One for all panels: levels, yardsticks and the best step."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for drawn in axes.lines:
            handles.setdefault(str(drawn.get_label()), drawn)
    labels = [*logged.levels, *YARDSTICKS, BEST]
    chosen = [x for x in labels if x in handles]
    figure.legend(
        [handles[x] for x in chosen],
        chosen,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
