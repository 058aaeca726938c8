"""Figures of a counterfactual set: what fails, what changes, and how far.

Drawn from the numbers of `summary.py`, in the manner of `neggen_jax/plots.py`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neggen_jax.plots import GREY, blank, look, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.2  # inches of one panel
_BARS = 8  # reasons, or attributes, that have a bar


def panels(figures: Mapping[str, Any]) -> dict[str, Figure]:
    """One figure for each thing there is to see.

    Args:
      figures: of `summary.summary`.

    Returns:
      What it shows, in words -> the figure.
    """
    found = {}
    for title, draw, there in _PANELS:
        if any(there(about) for about in figures["modalities"].values()):
            figure = blank(WIDTH, HEIGHT)
            draw(figure.add_subplot(title=title), figures["modalities"])
            found[title] = figure
    return found


def _reasons(axes: Axes, told: Mapping[str, Any]) -> None:
    """Bars: records that failed, by reason."""
    _bars(axes, told, "reasons", "records")


def _changed(axes: Axes, told: Mapping[str, Any]) -> None:
    """Bars: counterfactuals in which an attribute changes."""
    _bars(axes, told, "changed", "counterfactuals")


def _bars(axes: Axes, told: Mapping[str, Any], name: str, counted: str) -> None:
    """Bars from left to right, one modality after the other in each."""
    totals: dict[str, int] = {}
    for about in told.values():
        for word, count in about[name].items():
            totals[word] = totals.get(word, 0) + count
    ranked = sorted(totals, key=lambda word: (-totals[word], word))
    words, others = ranked[:_BARS], ranked[_BARS:]
    labels = [_short(word) for word in words]
    if others:
        labels.append(f"{len(others)} others")
    _sideways(axes, counted)
    places = range(len(labels))
    left = [0] * len(labels)
    for number, (modality, about) in enumerate(told.items()):
        counts = [about[name].get(word, 0) for word in words]
        if others:
            counts.append(sum(about[name].get(word, 0) for word in others))
        colour = look(number)["color"]
        ends = axes.barh(
            places, counts, 0.7, left, color=colour, label=modality
        )
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.bar_label(
        ends, [f"{n:,}" for n in left], padding=3, fontsize=8, color=GREY
    )
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    # Room for three, lest one bar fill the panel; and for the last label.
    axes.set_ylim(max(3, len(labels)) - 0.5, -0.5)
    axes.set_xlim(0, 1.18 * max(left, default=1) or 1)
    if len(told) > 1:
        _legend(axes)


def _words(axes: Axes, told: Mapping[str, Any]) -> None:
    """Steps: share of the words that changed."""
    style(axes, "share of words that differ", "")
    for number, (modality, about) in enumerate(told.items()):
        _steps(axes, about["words_changed"], number, modality)
    _fit(axes, told, [about["words_changed"] for about in told.values()])


def _cosines(axes: Axes, told: Mapping[str, Any]) -> None:
    """Steps: cosines of counterfactuals, and of items with each other."""
    style(axes, "cosine of encoded texts", "")
    drawn = []
    for number, (modality, about) in enumerate(told.items()):
        found = about["similarity"]
        for known, dashes, what in (
            (found, "-", ""),
            (found and found["items"], ":", ", random items"),
        ):
            _steps(axes, known, number, modality + what, dashes)
            drawn.append(known)
    _fit(axes, told, drawn)


def _steps(
    axes: Axes,
    known: Mapping[str, Any] | None,
    number: int,
    label: str,
    dashes: str = "-",
) -> None:
    if not known:
        return
    counts = known["histogram"]
    step = (1 - known["from"]) / len(counts)
    edges = [known["from"] + step * i for i in range(len(counts) + 1)]
    axes.stairs(
        [count / known["number"] for count in counts],
        edges,
        color=look(number)["color"],
        linestyle=dashes,
        linewidth=1.6,
        label=label,
    )


def _fit(axes: Axes, told: Mapping[str, Any], drawn: list[Any]) -> None:
    """Shows the bins that hold something, and shares from 0."""
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    ends = []
    for known in drawn:
        if known:
            counts = known["histogram"]
            step = (1 - known["from"]) / len(counts)
            some = [i for i, count in enumerate(counts) if count]
            ends += [known["from"] + step * some[0]]
            ends += [known["from"] + step * (some[-1] + 1)]
    if not ends:
        return
    margin = 0.04 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of pairs")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    if len(told) > 1 or len([known for known in drawn if known]) > 1:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Below the panel, where it hides nothing."""
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
    )


def _sideways(axes: Axes, x: str) -> None:
    """The manner of `style`, for bars from left to right."""
    style(axes, x, "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)


def _plain(words: str) -> str:
    """Words in which dollars begin no formula, which might be none."""
    return words.replace("$", r"\$")


def _short(word: str) -> str:
    text = textwrap.shorten(_plain(word), 75, placeholder="...")
    return "\n".join(textwrap.wrap(text, 28)[:3])


# Title, how it is drawn, and whether a modality has what it shows.
_PANELS = (
    ("why records failed", _reasons, lambda about: about["reasons"]),
    ("attributes changed", _changed, lambda about: about["changed"]),
    (
        "words changed",
        _words,
        lambda about: about["words_changed"],
    ),
    (
        "similarity to the description",
        _cosines,
        lambda about: about["similarity"],
    ),
)
