"""Reports: plots of one run, and tables and plots that compare runs.

Stands behind `train.py` and `evaluate.py` on the way of the data and reads
only what they leave in a workdir: `metrics.jsonl`, one JSON object a line
with "step", "epoch" and any of "train/<term>" and "valid/<metric>"; and
`results.json`, the metrics of the chosen checkpoint. Nothing here is read
back by anything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neggen_jax.errors import InputError

# matplotlib and rich are imported where they are used: they are slow to load,
# and a trainer needs them only at its end.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

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
CHOSEN_BY = "recall@20"

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

Workdir = str | os.PathLike[str]


def read_metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """What was logged while training, one dict a step, by rising step.

    A run that was killed and resumed logs some steps twice, and may have
    cut its last line short: of repeated values the later one counts, and a
    broken last line is left out.

    Raises:
      InputError: there is no `metrics.jsonl`, or another line is broken.
    """
    path = Path(workdir) / "metrics.jsonl"
    lines = _read(path, "launch/train.py").splitlines()
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(
                "A line of the training log cannot be read.",
                where=f"{path}, line {number}",
                expected='a JSON object with a "step"',
                found=line[:80],
                fix="remove the line",
            ) from error
        steps.setdefault(step, {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def read_results(workdir: Workdir) -> dict[str, Any]:
    """The contents of `results.json`.

    Raises:
      InputError: there is none, or it does not hold a JSON object.
    """
    path = Path(workdir) / "results.json"
    text = _read(path, "launch/train.py")
    try:
        results = json.loads(text)
    except ValueError as error:
        results = error
    if not isinstance(results, dict):
        raise InputError(
            "The results of a run cannot be read.",
            where=path,
            expected="a JSON object",
            found=results,
            fix="take it away and run launch/train.py on the workdir again",
        )
    return results


def plot_run(workdir: Workdir) -> list[Path]:
    """Writes the plots of one run to `plots/` in its workdir.

    `learning_curves.png`: validation recall and NDCG at 20 with the best
    step marked, and each training term. `recall_by_popularity.png`: recall
    at 20 by decile of item popularity, once `results.json` has it.

    Returns:
      The files written.

    Raises:
      InputError: the log or the results are missing or cannot be read.
    """
    plots = Path(workdir) / "plots"
    (name,) = _names([workdir])
    figures = {
        "learning_curves.png": _learning_curves(read_metrics(workdir), name)
    }
    if (Path(workdir) / "results.json").exists():
        results = read_results(workdir)
        title = f"{name}, test split of {_label(results.get('dataset'))}"
        deciles = results.get("deciles", {})
        if deciles.get("recall@20"):
            bars = _popularity_bars(deciles, title)
            figures["recall_by_popularity.png"] = bars
    for file, figure in figures.items():
        _save(figure, plots / file)
    return [plots / file for file in figures]


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
    _save(_comparison_curves(workdirs), Path(path))


# -- reading ----------------------------------------------------------------


def _read(path: Path, command: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"The workdir has no {path.name}.",
            where=path.parent,
            fix=f"run {command} on it first, or check --workdir",
        ) from error


def _series(
    log: Sequence[Mapping[str, Any]], key: str, by: str = "step"
) -> tuple[list[float], list[float]]:
    points = [(e[by], e[key]) for e in log if key in e and by in e]
    return [x for x, _ in points], [y for _, y in points]


def _names(workdirs: Sequence[Workdir]) -> list[str]:
    """Last part of each path, or as many parts as tell the runs apart."""
    paths = [Path(w).resolve() for w in workdirs]
    depth = 1
    while len({p.parts[-depth:] for p in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(p.parts[-depth:]) for p in paths]


def _dataset(workdirs: Sequence[Workdir]) -> str:
    return _label(read_results(workdirs[0]).get("dataset"))


def _label(value: object) -> str:
    """A short name for a part of a config: what it, or each entry, names."""
    if isinstance(value, Mapping):
        return _label(value.get("name", list(value.values())))
    if isinstance(value, list | tuple):
        return " + ".join(map(_label, value)) or "-"
    return "-" if value is None else str(value)


def _comparison(
    workdirs: Sequence[Workdir],
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Header, and rows of (cell, whether it is the best of its column)."""
    runs = [read_results(workdir) for workdir in workdirs]
    for workdir, run in zip(workdirs, runs, strict=True):
        if run.get("dataset") != runs[0].get("dataset"):
            raise InputError(
                "Runs on different data cannot be compared.",
                where=workdir,
                expected=runs[0].get("dataset"),
                found=run.get("dataset"),
                fix="compare the runs of one dataset at a time",
            )
    values = [
        {
            **run.get("test", {}),
            "s/epoch": run.get("timing", {}).get("seconds_per_epoch"),
        }
        for run in runs
    ]
    rows: list[list[tuple[str, bool]]] = []
    for name, run in zip(_names(workdirs), runs, strict=True):
        config = run.get("config", {})
        texts = (
            name,
            _label(config.get("encoder")),
            _label(config.get("negatives")),
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


# -- drawing ----------------------------------------------------------------


def _learning_curves(log: Sequence[Mapping[str, Any]], title: str) -> Figure:
    terms = sorted({key for e in log for key in e if key.startswith("train/")})
    terms.sort(key=lambda key: key != "train/loss")
    columns = 1 if len(terms) <= 3 else 2
    rows = max(1, -(-len(terms) // columns))
    figure = _figure(6 + 3 * columns, max(4, 1.6 * rows))
    ((left, right),) = figure.subfigures(
        1, 2, width_ratios=[6, 3 * columns], squeeze=False
    )
    _validation(left.add_subplot(title=title), log)
    # Each term has a scale of its own, and so a panel of its own.
    for number, term in enumerate(terms):
        last = number + columns >= len(terms)
        axes = right.add_subplot(rows, columns, number + 1)
        _style(axes, "step" if last else "", "")
        axes.set_title(term, loc="left", fontsize=10)
        axes.tick_params(labelbottom=last)
        _line(axes, *_series(log, term), 0)
    return figure


def _validation(axes: Axes, log: Sequence[Mapping[str, Any]]) -> None:
    _style(axes, "step", "validation metric")
    for number, metric in enumerate((CHOSEN_BY, "ndcg@20")):
        x, y = _series(log, f"valid/{metric}")
        _line(axes, x, y, number)
        if x:
            axes.annotate(
                metric,
                (x[-1], y[-1]),
                textcoords="offset points",
                xytext=(8, 0),
                va="center",
                color=COLOURS[number],
            )
    x, y = _series(log, f"valid/{CHOSEN_BY}")
    if not x:
        return
    at = y.index(max(y))
    axes.vlines(x[at], 0, y[at], color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(x[at], y[at], "o", color=COLOURS[0], markersize=7)
    axes.annotate(
        f"best: {y[at]:.4f}\nat step {x[at]:,}",
        (x[at], y[at]),
        textcoords="offset points",
        xytext=(0, 8),
        ha="center",
        va="bottom",
    )
    axes.set_ylim(0, 1.2 * max(y) or 1)


def _popularity_bars(deciles: Mapping[str, Any], title: str) -> Figure:
    recall, heldout = deciles["recall@20"], deciles.get("heldout")
    figure = _figure(7.5, 4)
    axes = figure.add_subplot(title=title)
    _style(axes, "items by popularity: 1 least popular, 10 most", "recall@20")
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


def _comparison_curves(workdirs: Sequence[Workdir]) -> Figure:
    curves = []
    for name, workdir in zip(_names(workdirs), workdirs, strict=True):
        x, y = _series(read_metrics(workdir), f"valid/{CHOSEN_BY}", by="epoch")
        curves.append((max(y, default=0.0), name, x, y))
    curves.sort(key=lambda curve: curve[0], reverse=True)
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    _style(axes, "epoch", f"validation {CHOSEN_BY}")
    for number, (best, name, x, y) in enumerate(curves):
        _line(axes, x, y, number, label=f"{name}  {best:.4f}")
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


def _figure(width: float, height: float) -> Figure:
    """A figure of its own: no pyplot, so no global state and no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _style(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _line(
    axes: Axes, x: list[float], y: list[float], number: int, label: str = ""
) -> None:
    axes.plot(
        x,
        y,
        color=COLOURS[number % len(COLOURS)],
        linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
        linewidth=1.6,
        marker="" if len(x) > 1 else "o",  # a single point is no line
        markersize=4,
        label=label,
    )


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
