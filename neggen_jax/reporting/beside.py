"""The report of two runs, side by side."""

from __future__ import annotations

from neggen_jax import plots_balance
from neggen_jax.errors import InputError
from neggen_jax.intervals import MANY
from neggen_jax.reporting import examples, metrics, panels, parts, single
from neggen_jax.reporting.document import (
    Block,
    Card,
    Cards,
    Cell,
    Document,
    Folded,
    Plots,
    Section,
    Table,
    Words,
)
from neggen_jax.reporting.shop import Shop
from neggen_jax.reporting.told import Told

# Keys that differ of which more are folded.
_MANY = 8
# Rows of the timing that two runs are compared in.
_TIMES = {
    "seconds_per_epoch": "seconds an epoch",
    "evaluation_seconds": "seconds an evaluation",
    "compile_seconds": "seconds of compilation",
    "peak_memory_mib": "peak memory, MiB",
}


def make(
    one: Told, other: Told, shop: Shop | None, curves: str, seed: int = 0
) -> Document:
    """The report; differences are the other run less the first.

    Args:
      one: the first run.
      other: what stands beside it.
      shop: their dataset; None leaves examples out.
      curves: what the document calls the file of both runs' curves.
      seed: of intervals and of examples.

    Raises:
      InputError: the runs saw other data, or were evaluated on other users or
        at other cut-offs.
    """
    check(one, other)
    tests = metrics.paired(one, other, seed)
    main, rest = panels.terms([one, other])
    drawn = (*panels.validation([one, other]), *main)
    learning: list[Block] = [Plots(drawn, "learning curves", curves)]
    if rest:
        folded = Plots(rest, "", "")
        learning.append(Folded("Everything else that was logged", (folded,)))
    popularity = metrics.deciles(
        [(run.name, run.results.get("deciles", {})) for run in (one, other)]
    )
    return Document(
        f"{one.name} and {other.name}",
        f"two runs on {one.dataset['name']}; differences are {other.name} "
        f"less {one.name}",
        (
            Section("overview", "Overview", _overview(one, other, tests)),
            Section("config", "What differs", _config(one, other)),
            Section("learning", "Learning curves", tuple(learning)),
            Section("accuracy", "Accuracy", _accuracy(one, other, tests)),
            Section(
                "popularity",
                "By popularity",
                (popularity,) if popularity else (),
            ),
            Section("lists", "Beyond accuracy", single.lists([one, other])),
            Section("modalities", "Modality balance", _balance(one, other)),
            Section(
                "examples",
                "Users and their lists",
                _people(one, other, shop, seed),
            ),
            Section("run", "Time", (_times(one, other),)),
        ),
    )


def check(one: Told, other: Told) -> None:
    """Refuses two runs that cannot be compared.

    Raises:
      InputError: they saw other data, or have other cut-offs.
    """
    a, b = (run.dataset for run in (one, other))
    if a["fingerprint"] != b["fingerprint"]:
        raise InputError(
            "Runs on other data cannot stand side by side.",
            where=f"{one.directory}, {other.directory}",
            expected=f"{a['name']} ({a['fingerprint']}), as of the first",
            found=f"{b['name']} ({b['fingerprint']})",
            fix="give two runs on one dataset",
        )
    if one.headline("recall") != other.headline("recall"):
        raise InputError(
            "The runs were evaluated at other cut-offs.",
            where=f"{one.directory}, {other.directory}",
            expected=one.cutoffs,
            found=other.cutoffs,
            fix="train one of them again with --config.evaluate.cutoffs",
        )


def _overview(
    one: Told, other: Told, tests: dict[str, dict]
) -> tuple[Block, ...]:
    cards = []
    for name in ("recall", "ndcg"):
        key = one.headline(name)
        found = tests[key]
        told = metrics.difference(found)
        p = metrics.p_value(found["t_p"])
        p = f"p {p}" if p.startswith("<") else f"p = {p}"
        pair = [f"{run.test[key]:.4f}" for run in (one, other)]
        cards.append(
            Card(
                f"{key} on test",
                " \N{RIGHTWARDS ARROW} ".join(pair),
                f"{told.text} ({told.under}), {p}",
            )
        )
    return Cards(tuple(cards)), single.dataset(one)


def _accuracy(
    one: Told, other: Told, tests: dict[str, dict]
) -> tuple[Block, ...]:
    users = len(one.users["test"]["users"])
    kind = "normal" if users > MANY else "percentile bootstrap"
    said = (
        f"p is that of a two-sided paired t-test over the {users:,} users, and "
        f"in small print stands the difference's 95 % interval ({kind}); "
        "neither is corrected for the number of rows. They compare these two "
        "trained models: whether another seed would tell the same, is what "
        "launch/compare.py tells from several."
    )
    return metrics.differences(one, other, tests), Words(said, "faint")


def _config(one: Told, other: Told) -> tuple[Block, ...]:
    table = parts.changed(one, other)
    if table is None:
        return (Words("Both were made with the same config."),)
    if len(table.rows) > _MANY:
        return (Folded(f"{len(table.rows)} keys that differ", (table,)),)
    return (table,)


def _balance(one: Told, other: Told) -> tuple[Block, ...]:
    drops = [plots_balance.drops_of(run.test) for run in (one, other)]
    names = sorted({*drops[0], *drops[1]})
    if not names:
        return ()
    rows = [
        (Cell(name), *(parts.lost(found.get(name)) for found in drops))
        for name in names
    ]
    header = ("modality", one.name, other.name)
    metric = next(
        (
            key
            for run in (one, other)
            for key in run.results.get("without_modality", {})
        ),
        "recall",
    )
    table = Table(
        f"Share of {metric} lost without a modality", header, tuple(rows)
    )
    return (table,)


def _people(
    one: Told, other: Told, shop: Shop | None, seed: int
) -> tuple[Block, ...]:
    if any("lists" not in run.users["test"] for run in (one, other)):
        return (Words("A run does not tell what it recommended.", "note"),)
    if shop is None:
        return (Words("The dataset was not there to be shown.", "note"),)
    return examples.of_two(one, other, shop, seed)


def _times(one: Told, other: Told) -> Table:
    known = [run.results.get("timing", {}) for run in (one, other)]
    rows = [
        (Cell(name), *(Cell(metrics.number(found.get(key))) for found in known))
        for key, name in _TIMES.items()
    ]
    return Table("Time and memory", ("", one.name, other.name), tuple(rows))
