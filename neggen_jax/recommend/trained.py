"""A finished run, ready to be asked: vectors, and what they are called.

New items join here: encoded as those of the dataset were, embedded by the
encoder's `cold`, and put behind the catalogue's own.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from neggen_jax import storage
from neggen_jax.catalog import ItemRecords
from neggen_jax.data import inputs, store
from neggen_jax.data.features import encode_new
from neggen_jax.data.items import read_new
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoder
from neggen_jax.recommend import cold
from neggen_jax.recommend.asked import Names
from neggen_jax.recommend.folding import Folding, learn
from neggen_jax.run import Run, reopen


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What is known of users and items once a run is done.

    Attributes:
      workdir: of the run.
      run: composed.
      params: of its best step.
      step: that step.
      users: `[user_rows, d]`, on the devices; a score is the inner product.
      items: `[item_rows, d]`, or with new ones `[num_items, d]`.
      user_names: identifiers.
      item_names: identifiers, of new items last.
      titles: of the items; empty if the dataset has none.
      records: of the dataset's items; None without.
    """

    workdir: epath.Path
    run: Run
    params: Any
    step: int
    users: jax.Array
    items: jax.Array
    user_names: Names
    item_names: Names
    titles: list[str]
    records: ItemRecords | None

    @property
    def num_items(self) -> int:
        """How many are ranked."""
        return len(self.item_names)

    @functools.cached_property
    def folding(self) -> Folding:
        """From histories to users' vectors; learned when first asked for."""
        return learn(self.run, self.params, self.users, self.items)

    @functools.cached_property
    def item_vectors(self) -> np.ndarray:
        """The same as `items`, on the host, float32 `[num_items, d]`."""
        return np.asarray(self.items[: self.num_items], np.float32)


def load(workdir: str | os.PathLike[str], data: str | None = None) -> Trained:
    """Opens a workdir at its best step.

    Args:
      workdir: of a run.
      data: where the dataset is now, if it has moved.

    Raises:
      InputError: see `run.reopen`.
    """
    run, state, step = reopen(workdir, data)
    users, items = run.encode(state.evaluated)
    path, catalog = run.config.data.path, run.catalog
    records = store.read_records(path)
    ids = None if records is None else records.ids
    return Trained(
        workdir=storage.path(workdir),
        run=run,
        params=state.evaluated,
        step=step,
        users=users,
        items=items,
        user_names=Names(store.read_users(path), catalog.num_users),
        item_names=Names(ids, catalog.num_items),
        titles=[] if records is None else records.titles,
        records=records,
    )


def with_new(
    trained: Trained,
    file: str | os.PathLike[str],
    models: dict[str, str | None] | None = None,
) -> Trained:
    """The same with new items, which are ranked with the others.

    Items without content that the encoder could read are refused.

    Args:
      trained: of the catalogue alone.
      file: of new items; see `data.items.read_new`.
      models: modality -> where the weights of a neural encoder are now.

    Raises:
      InputError: if the encoder cannot tell items by their content, or the
        file is not what it should be.
    """
    run, catalog = trained.run, trained.run.catalog
    encoder = run.program.recommender.encoder
    needs = encoder.needs()
    if type(encoder).cold is Encoder.cold or not (
        needs.features or needs.item_item
    ):
        raise _not_by_content(run)
    path = Path(file)
    new, given = read_new(path)
    _check_names(trained, new, path)
    names = inputs.contents(catalog, needs)
    vectors = {
        name: _vectors(
            trained, name, new, given.get(name, {}), models or {}, path
        )
        for name in names
    }
    has = np.stack([vectors[name].any(axis=1) for name in names]).any(axis=0)
    if not has.all():
        row = int(np.flatnonzero(~has)[0])
        raise InputError(
            f"{(~has).sum()} new items have nothing that the encoder reads.",
            where=f"{path}, item {new.ids[row]!r}",
            expected=f"content or vectors of {' or '.join(names)}",
            fix="add it, or leave these items out",
        )
    new_rows = cold.embed(run, trained.params, trained.items, vectors)
    if new_rows is None:
        raise _not_by_content(run)
    known = trained.items[: catalog.num_items]
    items = jnp.concatenate([known, new_rows.astype(known.dtype)])
    ids = [trained.item_names[row] for row in range(catalog.num_items)]
    titles = trained.titles or [""] * catalog.num_items
    return dataclasses.replace(
        trained,
        items=items,
        item_names=Names([*ids, *new.ids], len(items)),
        titles=[*titles, *new.titles],
    )


def _check_names(trained: Trained, new: ItemRecords, path: Path) -> None:
    for row, name in enumerate(new.ids):
        if trained.item_names.row(name) is not None:
            raise InputError(
                "A new item is called as one of the dataset.",
                where=f"{path}, line {row + 1}",
                expected="items that are not in the dataset",
                found=name,
            )


def _vectors(
    trained: Trained,
    modality: str,
    new: ItemRecords,
    given: dict[int, np.ndarray],
    models: dict[str, str | None],
    path: Path,
) -> np.ndarray:
    """One modality of new items: what was given, or encoded; or zero."""
    known = trained.run.catalog.features[modality]
    out = np.zeros((len(new), known.dim), np.float32)
    for row, vector in given.items():
        if vector.shape != (known.dim,):
            raise InputError(
                f"The {modality} vector of a new item is of another width.",
                where=f"{path}, line {row + 1}",
                expected=known.dim,
                found=vector.size,
            )
        out[row] = vector
    rest = [
        row
        for row in range(len(new))
        if row not in given and _has(new, row, modality)
    ]
    if rest:
        out[rest] = encode_new(
            known,
            modality,
            trained.records,
            new.only(rest),
            models.get(modality),
        )
    return out


def _has(new: ItemRecords, row: int, modality: str) -> bool:
    if modality == "text":
        return bool(new.titles[row] or new.texts[row] or new.attributes[row])
    return modality == "image" and bool(new.images[row])


def _not_by_content(run: Run) -> InputError:
    return InputError(
        "This encoder knows items by their interactions alone.",
        where=f"config.encoder.name={run.config.encoder.name}",
        expected="for new items one that reads content: vbpr, freedom or mci",
        fix="train such a run, or leave --items out",
    )
