"""From a trained run and a file of users to a file of recommendations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from neggen_jax import storage
from neggen_jax.recommend import asked as people
from neggen_jax.recommend import output as files
from neggen_jax.recommend.asked import Asked
from neggen_jax.recommend.lists import Lister, Lists
from neggen_jax.recommend.reasons import Reasons, attributes_of
from neggen_jax.recommend.trained import Trained

Path = str | os.PathLike[str]


def recommend(
    trained: Trained,
    users: Path | None = None,
    output: Path | None = None,
    *,
    k: int = 20,
    seen: Sequence[str] = ("train",),
    unknown: str = "error",
    reasons: int = 0,
    probes: str = "",
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Gives everybody in a file their k best items.

    Args:
      trained: see `trained.load`.
      users: file of who asks; see `asked.read`. None for all users.
      output: a `.jsonl` or `.parquet`; None prints a table.
      k: length of the lists, but for who has fewer items left.
      seen: splits whose items a user is known to have, and is not given.
      unknown: "error", or "skip" identifiers that the dataset lacks.
      reasons: most reasons of each kind for each item; see `reasons.py`.
      probes: the set of counterfactuals that attributes are asked by; "" for
        that of the run.
      overwrite: whether the output may replace a file.
      progress: called with the number of users of each block that is done.

    Returns:
      How many users there were.

    Raises:
      InputError: for a bad file or output.
    """
    begin = _everybody(trained)
    if users is not None:
        begin = people.read(
            storage.path(users),
            trained.user_names,
            trained.item_names,
            unknown,
        )
    where = files.to_terminal()
    if output is not None:
        where = files.to_file(storage.path(output), overwrite, reasons > 0)
    with where as write:
        lister = Lister(
            trained.run,
            trained.users,
            trained.items,
            trained.num_items,
            k=k,
            seen=seen,
            folding=trained.folding if users is not None else None,
        )
        why = None
        if reasons:
            why = Reasons(
                trained.folding,
                attributes_of(trained.run, trained.params, probes),
                trained.item_vectors,
                reasons,
            )
        total = 0
        for lists in lister(begin()):
            write(_rows(trained, lister, lists, why))
            progress(len(lists.asked))
            total += len(lists.asked)
    return total


def _everybody(trained: Trained) -> Callable[[], Iterator[Asked]]:
    return lambda: people.everybody(trained.user_names)


def _rows(
    trained: Trained, lister: Lister, lists: Lists, why: Reasons | None
) -> list[dict[str, Any]]:
    """What is written of some lists."""
    told = None
    if why is not None:
        told = why(lists, [lister.history(one) for one in lists.asked])
    rows = []
    for b, one in enumerate(lists.asked):
        items = []
        for n in np.flatnonzero(lists.items[b] >= 0):
            item = _named(trained, int(lists.items[b, n]))
            item["score"] = float(lists.scores[b, n])
            if told is not None:
                item["reasons"] = [
                    {**reason, **_named(trained, int(reason["item"]))}
                    if reason["kind"] == "item"
                    else reason
                    for reason in told[b][n]
                ]
            items.append(item)
        rows.append({"user": one.name, "items": items})
    return rows


def _named(trained: Trained, row: int) -> dict[str, Any]:
    """An item's identifier, and its title if it has one."""
    named: dict[str, Any] = {"item": trained.item_names[row]}
    if trained.titles and trained.titles[row]:
        named["title"] = trained.titles[row]
    return named
