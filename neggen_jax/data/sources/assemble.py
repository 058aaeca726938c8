"""A `Log` and what is asked of it -> `Catalog`.

The same steps for every source: repeated pairs, the k-core, the split, users
that cannot be evaluated, and indices. What sources add themselves are the
items' records and features.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from neggen_jax.catalog import SPLITS, Catalog, Interactions
from neggen_jax.data.extension import Known
from neggen_jax.data.items import bare_records
from neggen_jax.data.sources.core import core as core_of
from neggen_jax.data.sources.log import Log, first_of_each_pair, number
from neggen_jax.data.sources.splits import RATIOS, SPLITTERS
from neggen_jax.data.sources.splits import split as split_by
from neggen_jax.errors import InputError, nearest


class Rules(TypedDict, total=False):
    """The keywords of `assemble` that sources pass on as they are given."""

    duplicates: str | None
    core: int
    split: str | None
    ratios: Sequence[float | str]
    seed: int
    cold_users: str | None
    extends: Known | None


def assemble(
    log: Log,
    name: str,
    *,
    duplicates: str | None = None,
    core: int = 0,
    split: str | None = None,
    ratios: Sequence[float | str] = RATIOS,
    seed: int = 0,
    cold_users: str | None = None,
    num_items: int | None = None,
    extends: Known | None = None,
) -> Catalog:
    """Makes a catalogue, not validated yet, of interactions.

    Identifiers that are whole numbers from 0 on without gaps are taken as
    the indices. Others are numbered in sorted order and kept as `user_ids`
    and `records.ids`.

    Args:
      log: the interactions.
      name: of the catalogue.
      duplicates: what to do with a (user, item) pair that occurs again:
        "error", or keep the "first" by time (and then by row). By default
        "first", but "error" where the source brings the split.
      core: k of the k-core that is kept; 0 for everything.
      split: one of `splits.SPLITTERS`, or "given" for the source's; by
        default that, or "random" where it has none.
      ratios: shares of train, valid and test.
      seed: of the random split.
      cold_users: what to do with users of valid and test who are not in
        train: "error", or "drop" what they have there. By default "drop",
        but "error" where the source brings the split.
      num_items: how many items there are, where the codes of `log.items` are
        their indices already; where a dataset is extended, each of the names
        of `log.items` is an item then.
      extends: the dataset that the interactions come to; its users and items
        are the first ones.

    Returns:
      The catalogue, without features; its records tell identifiers alone,
      and there are none where these are the indices.

    Raises:
      InputError: for unknown words, if nothing is left, or for a k-core of
        what comes to a dataset.
    """
    given = split == "given" or (split is None and log.labels is not None)
    strict = "error" if given else None
    duplicates = duplicates or strict or "first"
    cold_users = cold_users or strict or "drop"
    _check("duplicates", duplicates, ("error", "first"))
    _check("cold_users", cold_users, ("error", "drop"))
    if split is not None:
        _check("split", split, (*SPLITTERS, "given"))
    if given and log.labels is None:
        raise InputError(
            "The source brings no split of its own.",
            where="--split=given",
            fix="name its column, or pass --split=random",
        )
    if not len(log):
        raise InputError("There are no interactions.", where=name)
    if extends is not None:
        if core > 1:
            raise InputError(
                "There is no k-core of what comes to a dataset.",
                where=f"--core={core}",
                fix="pass --core=0: old users and items stay, whatever comes",
            )
        log = extends.unseen(log)
    if duplicates == "first":
        log = _once(log)
    log = log.only(core_of(log.users.codes, log.items.codes, core))
    if not given:
        users, items = number(log.users).codes, number(log.items).codes
        labels = split_by(
            split or "random", users, items, log.times, ratios, seed
        )
        log = dataclasses.replace(log, labels=labels)
    if extends is not None:
        log = extends.before(log)
    if cold_users == "drop":
        assert log.labels is not None
        warm = np.zeros(len(log.users.names), np.bool_)
        warm[log.users.codes[log.labels == 0]] = True
        log = log.only(warm[log.users.codes])
    return _catalog(log, name, num_items, extends)


def _once(log: Log) -> Log:
    """Without what repeats an earlier interaction."""
    kept = log.only(first_of_each_pair(log))
    if again := len(log) - len(kept):
        print(
            f"note: {again:,} of {len(log):,} interactions repeat one of the "
            "same user and item, and are left out",
            file=sys.stderr,
        )
    return kept


def _catalog(
    log: Log, name: str, num_items: int | None, extends: Known | None
) -> Catalog:
    known = (0, 0)
    if extends is not None:
        known = extends.catalog.num_users, extends.catalog.num_items
    users = number(log.users, known[0])
    records = None
    if num_items is not None and extends is None:
        items = log.items.codes
    else:
        named = number(log.items, known[1], num_items is not None)
        items, num_items = named.codes, named.size
        records = None if named.names is None else bare_records(named.names)
    splits = {}
    for label, part in enumerate(SPLITS):
        rows = log.labels == label
        times = None if log.times is None else log.times[rows]
        splits[part] = Interactions(users.codes[rows], items[rows], times)
    return Catalog(
        name=name,
        num_users=users.size,
        num_items=num_items,
        splits=splits,
        records=records,
        user_ids=users.names,
    )


def _check(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(
            f"There is no way {value!r} to handle {flag}.",
            where=f"--{flag}",
            fix=nearest(value, known),
        )
