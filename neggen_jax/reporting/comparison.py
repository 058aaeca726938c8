"""Several runs in one table: for the terminal, as Markdown, and in plots.

`launch/demo.py` ends with it. Two runs are told apart more closely in
`beside.py`, and methods over seeds in `neggen_jax/significance.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from neggen_jax import history, plots, plots_balance
from neggen_jax.errors import InputError
from neggen_jax.history import Workdir

# rich is imported where it is used: a trainer needs no tables.
if TYPE_CHECKING:
    from rich.table import Table

# Column of the comparison -> digits, and whether a larger value is better.
COLUMNS = {
    "recall@10": (4, True),
    "recall@20": (4, True),
    "ndcg@10": (4, True),
    "ndcg@20": (4, True),
    "coverage@20": (3, True),
    "gini@20": (3, False),
    "s/epoch": (2, False),
}


# Characters that a terminal needs for all of them; a narrower one goes
# without those at 10, as broken words are harder to do without.
_WIDE = 96


def compare(workdirs: Sequence[Workdir], width: int = _WIDE) -> Table:
    """Test metrics of several runs as a table for the terminal.

    The best value of each column is bold.

    Args:
      workdirs: of the runs.
      width: characters of the terminal.

    Raises:
      InputError: a run has no results, or the runs saw different data.
    """
    from rich.table import Table
    from rich.text import Text

    columns = [c for c in COLUMNS if width >= _WIDE or not c.endswith("@10")]
    header, rows = _comparison(workdirs, columns)
    title = f"Test metrics on {_dataset(workdirs)}"
    table = Table(title=title, box=None, collapse_padding=True)
    for name in header:
        number = name in COLUMNS
        table.add_column(
            name.replace("@", "\n@").replace("/", "/\n"),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
        )
    for row in rows:
        table.add_row(*(Text(c, "bold" if best else "") for c, best in row))
    return table


def comparison_markdown(workdirs: Sequence[Workdir]) -> str:
    """The same table as Markdown, for `comparison.md`.

    Raises:
      InputError: a run has no results, or the runs saw different data.
    """
    header, rows = _comparison(workdirs, COLUMNS)
    rule = ["---:" if name in COLUMNS else "---" for name in header]
    cells = [[f"**{c}**" if best else c for c, best in row] for row in rows]
    table = [f"| {' | '.join(line)} |" for line in (header, rule, *cells)]
    title = f"Test metrics on {_dataset(workdirs)}; the best of each is bold."
    return "\n".join([title, "", *table, ""])


def plot_comparison(workdirs: Sequence[Workdir], path: Workdir) -> None:
    """Draws validation recall at 20 by epoch, one line a run, into `path`.

    Runs are listed by their best value, which is marked.

    Raises:
      InputError: a log is missing or cannot be read.
    """
    key = f"valid/{history.CHOSEN_BY}"
    curves = [
        (name, *history.series(history.read_metrics(workdir), key, by="epoch"))
        for name, workdir in zip(history.names(workdirs), workdirs, strict=True)
    ]
    plots.save(plots.comparison_curves(curves), path)


def plot_measures(workdirs: Sequence[Workdir], path: Workdir) -> None:
    """Draws how varied, fair and balanced several runs are, into `path`.

    Raises:
      InputError: a run has no results, or the runs saw different data.
    """
    tests = [run.get("test", {}) for run in _alike(workdirs)]
    named = list(zip(history.names(workdirs), tests, strict=True))
    plots.save(plots_balance.measures(named), path)


def _dataset(workdirs: Sequence[Workdir]) -> str:
    return history.label(history.read_results(workdirs[0]).get("dataset"))


def _comparison(
    workdirs: Sequence[Workdir], columns: Collection[str]
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Header, and rows of (cell, whether it is the best of its column)."""
    runs = _alike(workdirs)
    values = [
        {
            **run.get("test", {}),
            "s/epoch": run.get("timing", {}).get("seconds_per_epoch"),
        }
        for run in runs
    ]
    rows: list[list[tuple[str, bool]]] = []
    for name, run in zip(history.names(workdirs), runs, strict=True):
        config = run.get("config", {})
        texts = (
            name,
            history.label(config.get("encoder")),
            history.label(config.get("negatives")),
        )
        rows.append([(text, False) for text in texts])
    for column in columns:
        digits, larger = COLUMNS[column]
        known = [v[column] for v in values if v.get(column) is not None]
        best = (max if larger else min)(known, default=None)
        for row, value in zip(rows, values, strict=True):
            found = value.get(column)
            cell = "-" if found is None else f"{found:.{digits}f}"
            row.append(
                (cell, found is not None and found == best and len(known) > 1)
            )
    return ["run", "encoder", "negatives", *columns], rows


def _alike(workdirs: Sequence[Workdir]) -> list[dict[str, Any]]:
    """The results of runs that saw the same data."""
    runs = [history.read_results(workdir) for workdir in workdirs]
    for workdir, run in zip(workdirs, runs, strict=True):
        if run.get("dataset") != runs[0].get("dataset"):
            raise InputError(
                "Runs on different data cannot be compared.",
                where=workdir,
                expected=runs[0].get("dataset"),
                found=run.get("dataset"),
                fix="compare the runs of one dataset at a time",
            )
    return runs
