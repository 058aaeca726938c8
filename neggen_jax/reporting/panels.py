"""Curves of one run or of several, small enough for a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neggen_jax.history import series
from neggen_jax.plots import PANEL, blank, line, logged_terms, look, style
from neggen_jax.reporting.document import Plot
from neggen_jax.reporting.told import Told

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def validation(runs: Sequence[Told]) -> tuple[Plot, ...]:
    """The metric that chose the best step, and NDCG, on valid."""
    keys = dict.fromkeys([runs[0].metric, runs[0].headline("ndcg")])
    return _drawn(runs, [f"valid/{key}" for key in keys])


def terms(
    runs: Sequence[Told],
) -> tuple[tuple[Plot, ...], tuple[Plot, ...]]:
    """What was logged in training: terms of the loss, and all else."""
    every = list(
        dict.fromkeys(k for run in runs for k in logged_terms(run.log))
    )
    names = {name for run in runs for name in run.config.get("losses", {})}
    wanted = {"train/loss", *(f"train/{name}" for name in names)}
    main = [key for key in every if key in wanted]
    rest = [key for key in every if key not in wanted]
    return _drawn(runs, main), _drawn(runs, rest)


def _drawn(runs: Sequence[Told], keys: Sequence[str]) -> tuple[Plot, ...]:
    return tuple(Plot(_title(runs, key), curve(runs, key)) for key in keys)


def _title(runs: Sequence[Told], key: str) -> str:
    split, _, name = key.partition("/")
    if split != "valid":
        return f"{name.replace('/', ', ')} in training"
    title = f"{name} on valid"
    (run, *others) = runs
    steps, values = series(run.log, key)
    if not others and run.step in steps:
        best = values[steps.index(run.step)]
        title += f": {best:.4f} at the best step, {run.step:,}"
    return title


def curve(runs: Sequence[Told], key: str) -> Figure:
    """What was logged under one key, a line a run, best steps marked.

    One run goes by steps, which its other files speak of; several by epochs,
    as their steps may be of other sizes.
    """
    figure = blank(*PANEL)
    axes = figure.add_subplot()
    by = "step" if len(runs) == 1 else "epoch"
    style(axes, by, "")
    for number, run in enumerate(runs):
        x, y = series(run.log, key, by)
        if not x:
            continue
        line(axes, x, y, look(number), run.name)
        steps, _ = series(run.log, key)
        if run.step not in steps:
            continue
        at = steps.index(run.step)
        colour = look(number)["color"]
        axes.plot(x[at], y[at], "o", color=colour, markersize=6)
        axes.axvline(
            x[at], color=colour, linewidth=0.8, linestyle=":", zorder=0.9
        )
    if len(runs) > 1:
        axes.legend(
            frameon=False,
            ncols=1,
            loc="upper left",
            bbox_to_anchor=(0, -0.2),
        )
    return figure
