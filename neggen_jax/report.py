"""Reports: plots of one run, and tables and plots that compare runs.

Stands last on the way of the data: `history.py` reads what a run left,
`plots.py` and its neighbours draw it, and here both are put together and
saved. Nothing here is read back by anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from neggen_jax import (
    history,
    plots,
    plots_balance,
    plots_negatives,
    storage,
)
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


def plot_run(workdir: Workdir) -> list[epath.Path]:
    """Writes the plots of one run to `plots/` in its workdir.

    `learning_curves.png`: validation recall and NDCG at 20 with the best
    step marked, and each training term. `negatives_<source>.png`, of each
    source that logs by level: how hard its negatives are, and how wrong.
    `balance.png`: what is lost without each modality, and the gradients of
    each, where anything reads modalities. `recall_by_popularity.png`: recall
    at 20 by decile of item popularity, once `results.json` has it.

    Returns:
      The files written.

    Raises:
      InputError: the log or the results are missing or cannot be read.
    """
    (name,) = history.names([workdir])
    log = history.read_metrics(workdir)
    results = {}
    if (storage.path(workdir) / "results.json").exists():
        results = history.read_results(workdir)
    figures = {"learning_curves.png": plots.learning_curves(log, name)}
    # The metric of early stopping may be another than the one drawn.
    step = results.get("step", history.best_step(log))
    for source in plots_negatives.sources(log):
        figures[f"negatives_{source}.png"] = plots_negatives.by_level(
            log, source, f'{name}, negatives "{source}"', step
        )
    balance = plots_balance.balance(log, results, name, step)
    if balance is not None:
        figures["balance.png"] = balance
    deciles = results.get("deciles", {})
    if deciles.get("recall@20"):
        dataset = history.label(results.get("dataset"))
        figures["recall_by_popularity.png"] = plots.popularity_bars(
            deciles, f"{name}, test split of {dataset}"
        )
    directory = storage.path(workdir) / "plots"
    for file, figure in figures.items():
        plots.save(figure, directory / file)
    return [directory / file for file in figures]


def compare(workdirs: Sequence[Workdir]) -> Table:
    """Test metrics of several runs as a table for the terminal.

    The best value of each column is bold.

    Raises:
      InputError: a run has no results, or the runs saw different data.
    """
    from rich.table import Table
    from rich.text import Text

    header, rows = _comparison(workdirs)
    title = f"Test metrics on {_dataset(workdirs)}"
    # Narrow, so that short names fit into a terminal of 80 characters.
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
    header, rows = _comparison(workdirs)
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
    workdirs: Sequence[Workdir],
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
    for column, (digits, larger) in COLUMNS.items():
        known = [v[column] for v in values if v.get(column) is not None]
        best = (max if larger else min)(known, default=None)
        for row, value in zip(rows, values, strict=True):
            found = value.get(column)
            cell = "-" if found is None else f"{found:.{digits}f}"
            row.append(
                (cell, found is not None and found == best and len(known) > 1)
            )
    return ["run", "encoder", "negatives", *COLUMNS], rows


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
