"""The report of one run, from its headline to the command that made it."""

from __future__ import annotations

from collections.abc import Callable

from neggen_jax import history
from neggen_jax.reporting import examples, metrics, panels, parts
from neggen_jax.reporting.document import (
    Block,
    Card,
    Cards,
    Document,
    Facts,
    Folded,
    Plots,
    Section,
    Words,
)
from neggen_jax.reporting.shop import Shop
from neggen_jax.reporting.told import SPLITS, Told


def make(
    told: Told,
    shop: Shop | None,
    link: Callable[[str], str],
    seed: int = 0,
) -> Document:
    """The report.

    Args:
      told: the run.
      shop: its dataset; None leaves examples out.
      link: name of a plot's file -> what the document calls it.
      seed: of intervals and of examples.
    """
    data = told.dataset
    encoder = history.label(told.config.get("encoder"))
    sources = history.label(told.config.get("negatives"))
    lead = f"{encoder} with {sources} negatives on {data['name']}"
    return Document(
        told.name,
        lead,
        (
            Section("overview", "Overview", _overview(told, seed)),
            Section("learning", "Learning curves", _curves(told, link)),
            Section("accuracy", "Accuracy", _accuracy(told, seed)),
            Section("popularity", "By popularity", _popularity(told, link)),
            Section("lists", "Beyond accuracy", lists([told])),
            Section(
                "modalities",
                "Modality balance",
                parts.modalities(told, link("balance.png")),
            ),
            Section(
                "negatives",
                "Negatives by level",
                parts.negatives(told, link("negatives_{}.png")),
            ),
            Section(
                "examples", "Users and their lists", _people(told, shop, seed)
            ),
            Section("run", "How it was run", _run(told)),
        ),
    )


def _overview(told: Told, seed: int) -> tuple[Block, ...]:
    cards = []
    for name in ("recall", "ndcg"):
        key = told.headline(name)
        between = metrics.interval(told, "test", key, seed)
        cards.append(Card(f"{key} on test", f"{told.test[key]:.4f}", between))
    key = told.headline("recall")
    # Runs of earlier versions do not tell it.
    popular = told.results.get("most_popular", {}).get(key)
    if popular is not None:
        under = "all are shown the same, but for what they have"
        cards.append(Card(f"{key} of popular items", f"{popular:.4f}", under))
    trained = told.results.get("epochs_trained", 0)
    cards.append(
        Card(
            "best epoch",
            f"{told.results.get('epoch', 0):.0f}",
            f"of {trained}, by {told.metric} on valid",
        )
    )
    seconds = told.results.get("timing", {}).get("seconds_per_epoch")
    if seconds is not None:
        cards.append(Card("an epoch", f"{seconds:.2f} s", "median"))
    return Cards(tuple(cards)), dataset(told)


def dataset(told: Told) -> Facts:
    """Its name, and how large it is."""
    data = told.dataset
    counts = data["interactions"]
    total = sum(counts.values())
    density = total / (data["users"] * data["items"])
    held = told.users["test"]
    pairs = [
        ("dataset", data["name"]),
        ("users", f"{data['users']:,}"),
        ("items", f"{data['items']:,}"),
        (
            "interactions",
            f"{total:,} ("
            + ", ".join(f"{name} {n:,}" for name, n in counts.items())
            + f"), {100 * density:.2g} % of all pairs",
        ),
        ("fingerprint", data["fingerprint"]),
    ]
    if held:
        pairs.insert(4, ("users evaluated on test", f"{len(held['users']):,}"))
    return Facts(tuple(pairs))


def _curves(told: Told, link: Callable[[str], str]) -> tuple[Block, ...]:
    main, rest = panels.terms([told])
    file = link("learning_curves.png")
    blocks: list[Block] = [
        Plots(
            (*panels.validation([told]), *main),
            "learning curves",
            file,
        )
    ]
    if rest:
        blocks.append(
            Folded("Everything else that was logged", (Plots(rest, "", ""),))
        )
    return tuple(blocks)


def _accuracy(told: Told, seed: int) -> tuple[Block, ...]:
    tables = [metrics.accuracy(told, split, seed) for split in SPLITS]
    columns = told.users["test"]
    how = "The run does not tell each user's own metrics: no intervals."
    if columns:
        how = metrics.method(len(columns["users"]), seed)
    how = (
        "The whole catalogue is ranked for each user, but for what is known of "
        "them. The best step was chosen on valid. " + how
    )
    return (*tables, Words(how, "faint"))


def _popularity(told: Told, link: Callable[[str], str]) -> tuple[Block, ...]:
    table = metrics.deciles([("", told.results.get("deciles", {}))])
    if table is None:
        return ()
    return (
        table,
        Plots((), "recall by popularity", link("recall_by_popularity.png")),
    )


def lists(runs: list[Told]) -> tuple[Block, ...]:
    """What lists look like, of one run on both splits or of several on test."""
    named = [(run.name, run.test) for run in runs]
    if len(runs) == 1:
        named = [(split, runs[0].results[split]) for split in SPLITS]
    return (metrics.lists(named),)


def _people(told: Told, shop: Shop | None, seed: int) -> tuple[Block, ...]:
    if "lists" not in told.users["test"]:
        return (Words("The run does not tell what it recommended.", "note"),)
    if shop is None:
        return (Words("The dataset was not there to be shown.", "note"),)
    return examples.of_one(told, shop, seed)


def _run(told: Told) -> tuple[Block, ...]:
    return (
        parts.timing(told),
        *parts.config(told),
        Words("The same run again, in a new workdir:"),
        parts.command(told),
    )
