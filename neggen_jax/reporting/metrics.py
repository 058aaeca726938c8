"""Tables of metrics: with intervals, by popularity, and beyond accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neggen_jax.errors import InputError
from neggen_jax.intervals import MANY, RESAMPLES, bootstrap
from neggen_jax.metrics import paired_test
from neggen_jax.reporting.document import Cell, Table
from neggen_jax.reporting.told import ACCURACY, Told

# Measures that belong to no user, or are no accuracy -> what they tell.
LISTS = {
    "coverage": "share of the catalogue that is recommended at all",
    "gini": "0 if all items are recommended equally often, 1 if one alone is",
    "popularity": "mean train interactions of what is recommended",
    "novelty": "mean self-information of what is recommended, in bits",
    "diversity": "mean cosine distance between the items of a list",
    "category_entropy": "how varied a list's kinds of items are, in bits",
    "tail_recall": "of items in the eight less popular tenths",
}
UNKNOWN = "-"


def method(users: int, seed: int = 0) -> str:
    """How intervals come about, in words."""
    how = (
        f"percentile bootstrap over the {users:,} users, {RESAMPLES:,} "
        f"resamples, seed {seed}"
    )
    if users > MANY:
        how = f"normal limit of the bootstrap over the {users:,} users"
    return (
        f"In small print, 95 % confidence intervals ({how}). They tell how far "
        "a mean depends on who the users are; not how far it would move with "
        "another seed of the training."
    )


def accuracy(told: Told, split: str, seed: int = 0) -> Table:
    """Every metric at every cut-off, with intervals where users are known."""
    values, columns = told.results[split], told.users[split]
    keys = [
        f"{name}@{k}"
        for name in ACCURACY
        for k in told.cutoffs
        if f"{name}@{k}" in values
    ]
    between: dict[str, str] = {}
    if columns:
        matrix = np.stack([columns[key] for key in keys], axis=1)
        ends = zip(*bootstrap(matrix, seed=seed), strict=True)
        between = {
            key: f"{low:.4f} to {high:.4f}"
            for key, (low, high) in zip(keys, ends, strict=True)
        }
    rows = [
        (
            Cell(name),
            *(
                Cell(f"{values[key]:.4f}", between.get(key, ""))
                if (key := f"{name}@{k}") in values
                else Cell(UNKNOWN)
                for k in told.cutoffs
            ),
        )
        for name in ACCURACY
    ]
    header = ("metric", *(f"@{k}" for k in told.cutoffs))
    return Table(f"Accuracy on {split}", header, tuple(rows))


def interval(told: Told, split: str, key: str, seed: int = 0) -> str:
    """The interval of one metric, in words; "" where users are not known."""
    column = told.users[split].get(key)
    if column is None:
        return ""
    low, high = bootstrap(column[:, None], seed=seed)
    return f"{low[0]:.4f} to {high[0]:.4f}"


def paired(one: Told, other: Told, seed: int = 0) -> dict[str, dict]:
    """Each metric of both on test -> what `metrics.paired_test` says.

    Differences are `other` less `one`.

    Raises:
      InputError: the runs were not evaluated on the same users, or one of
        them does not tell users' own metrics.
    """
    before, after = (run.users["test"] for run in (one, other))
    for run, columns in ((one, before), (other, after)):
        if not columns:
            raise InputError(
                "A run does not tell each user's own metrics.",
                where=run.directory / "per_user_test.npz",
                fix="train it again",
            )
    if not np.array_equal(before["users"], after["users"]):
        raise InputError(
            "The runs were not evaluated on the same users.",
            where=f"{one.directory}, {other.directory}",
            expected=f"{len(before['users'])} users",
            found=f"{len(after['users'])} users",
            fix="put runs on one dataset beside each other",
        )
    keys = [
        f"{name}@{k}"
        for name in ACCURACY
        for k in one.cutoffs
        if f"{name}@{k}" in before and f"{name}@{k}" in after
    ]
    return {
        key: paired_test(after[key], before[key], seed=seed) for key in keys
    }


def differences(one: Told, other: Told, tests: Mapping[str, dict]) -> Table:
    """Both runs' metrics on test, their difference, and its p."""
    rows = [
        (
            Cell(key),
            Cell(f"{one.test[key]:.4f}"),
            Cell(f"{other.test[key]:.4f}"),
            difference(found),
            Cell(p_value(found["t_p"])),
        )
        for key, found in tests.items()
    ]
    header = ("metric", one.name, other.name, "difference", "p")
    return Table("Accuracy on test", header, tuple(rows))


def difference(found: Mapping[str, float]) -> Cell:
    """A difference with its interval; a tone, where that leaves out 0."""
    low, high = found["ci_low"], found["ci_high"]
    tone = "up" if low > 0 else "down" if high < 0 else ""
    between = f"{signed(low)} to {signed(high)}"
    return Cell(signed(found["mean_difference"]), between, tone)


def signed(value: float, digits: int = 4) -> str:
    """With its sign, which nothing has that is 0 in these digits."""
    if not round(value, digits):
        return f"{0:.{digits}f}"
    return f"{value:+.{digits}f}"


def p_value(p: float) -> str:
    """A p as papers print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def lists(named: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """What lists look like.

    Args:
      named: (header of the column, measures).
    """
    known = dict.fromkeys(key for _, values in named for key in values)
    rows = [
        (
            Cell(key.replace("_", " "), meaning),
            *(Cell(number(values.get(key))) for _, values in named),
        )
        for start, meaning in LISTS.items()
        for key in known
        if key.startswith(start)
    ]
    header = ("measure", *(name for name, _ in named))
    return Table("What lists look like", header, tuple(rows))


def number(value: float | None) -> str:
    """Some four digits; none where there is nothing."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    digits = 4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 0
    return f"{value:,.{digits}f}"


def deciles(named: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    """Recall by decile of popularity, of one run or of two.

    Args:
      named: (name, `results["deciles"]`) of each run; of two, the difference
        of the second to the first is shown as well.
    """
    (_, first), *_ = named
    keys = [key for key in first if key.startswith("recall@")]
    if not keys:
        return None
    (key,) = keys
    columns = [about[key] for _, about in named]
    most = max((v or 0 for values in columns for v in values), default=0) or 1
    single = len(named) == 1
    header = ["items", "held out", key if single else named[0][0]]
    rows = [
        [
            Cell(f"{place}"),
            Cell(f"{count:,}"),
            *(_recall(column[place - 1], most) for column in columns),
        ]
        for place, count in enumerate(first["heldout"], 1)
    ]
    rows[0][0] = Cell("1", "least popular tenth")
    rows[-1][0] = Cell(str(len(rows)), "most popular tenth")
    if not single:
        header += [named[1][0], "difference"]
        changes = [
            None if a is None or b is None else b - a
            for a, b in zip(*columns, strict=True)
        ]
        widest = max((abs(c) for c in changes if c is not None), default=0)
        for row, change in zip(rows, changes, strict=True):
            if change is None:
                row.append(Cell(UNKNOWN))
                continue
            share = change / widest if widest else 0.0
            row.append(Cell(signed(change), bar=share, middle=True))
    title = f"{key} on test by popularity of the items in train"
    return Table(title, tuple(header), tuple(map(tuple, rows)))


def _recall(value: float | None, most: float) -> Cell:
    if value is None:
        return Cell("none held out")
    return Cell(f"{value:.4f}", bar=value / most)
