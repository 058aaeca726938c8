"""Counterfactuals on their way to the devices.

`Catalog.counterfactuals` holds vectors of each item's texts as they are and
as they were rewritten. They reach a step in one of two ways: as tables beside
the other inputs, or as columns of the batch, gathered by the input pipeline
(`data/batches.py`) from memory-mapped files that no device ever holds whole.
`rows` reads either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.data import counterfactuals
from neggen_jax.data.moments import moments
from neggen_jax.errors import InputError
from neggen_jax.ops import wide
from neggen_jax.partition import Partition

# How they reach a step.
FEEDS = ("tables", "batches")
_FIELDS = ("factual", "described", "counterfactual", "present")


@flax.struct.dataclass
class Rewritten:
    """One modality of some items, `n` of them, as vectors.

    Attributes:
      factual: `[n, f]`.
      described: bool `[n]`, whether there is a factual vector.
      counterfactual: `[n, K, f]`.
      present: bool `[n, K]`, whether there is that counterfactual.
    """

    factual: jax.Array
    described: jax.Array
    counterfactual: jax.Array
    present: jax.Array


@flax.struct.dataclass
class Counterfactuals:
    """What stands still while a run trains.

    Attributes:
      tables: modality -> all items, `item_rows` of them, standardised; empty
        where batches bring their own rows.
      mean: modality -> float32 `[f]`, of the factual vectors.
      factor: modality -> float32 scalar, by which centred vectors are
        multiplied: one over the root of their mean square.
      dtype: of standardised vectors.
    """

    tables: dict[str, Rewritten]
    mean: dict[str, jax.Array]
    factor: dict[str, jax.Array]
    dtype: str = flax.struct.field(pytree_node=False, default="float32")


def place(
    known: counterfactuals.Counterfactuals,
    item_rows: int,
    feed: str,
    mesh: Partition,
    dtype: str = "float32",
) -> Counterfactuals:
    """Puts on the devices what all steps share.

    Args:
      known: of the catalogue.
      item_rows: rows of the tables, padding included.
      feed: one of `FEEDS`.
      mesh: where.
      dtype: of standardised vectors.
    """
    tables, mean, factor = {}, {}, {}
    for name, made in known.modalities.items():
        centre, scale = moments(name, made.factual, made.described)
        # Unlike a division, a product is the same on the host and anywhere.
        by = centre, np.float32(1 / scale)
        mean[name], factor[name] = map(mesh.put, by)
        if feed == "tables":
            tables[name] = _table(made, by, item_rows, mesh, dtype)
    return Counterfactuals(tables, mean, factor, dtype)


def abstract(
    known: counterfactuals.Counterfactuals,
    item_rows: int,
    feed: str,
    mesh: Partition,
    dtype: str = "float32",
) -> Counterfactuals:
    """The shapes of what `place` makes; only those of `known` are read."""
    tables, mean, factor = {}, {}, {}
    for name, made in known.modalities.items():
        mean[name] = mesh.abstract((made.dim,), np.float32)
        factor[name] = mesh.abstract((), np.float32)
        if feed == "tables":
            parts: dict[str, Any] = {}
            for field in _FIELDS:
                column = getattr(made, field)
                rest = column.shape[1:]
                parts[field] = mesh.abstract(
                    (item_rows, *rest),
                    column.dtype if column.dtype == bool else dtype,
                    "item",
                )
            tables[name] = Rewritten(**parts)
    return Counterfactuals(tables, mean, factor, dtype)


def _table(
    made: counterfactuals.Rewritten,
    by: tuple[np.ndarray, np.float32],
    item_rows: int,
    mesh: Partition,
    dtype: str,
) -> Rewritten:
    rows, (mean, factor) = mesh.mine(item_rows, "item"), by

    def own(column: np.ndarray) -> np.ndarray:
        return mesh.own(column, item_rows, "item")

    def centred(column: np.ndarray, there: np.ndarray) -> np.ndarray:
        # As `_standardised` does on the devices, to the bit.
        values = own(column).astype(np.float32, copy=False)
        values -= mean
        values *= factor
        values[~there] = 0
        return values.astype(jnp.dtype(dtype), copy=False)

    described, present = own(made.described), own(made.present)
    columns = (
        centred(made.factual, described),
        described,
        centred(made.counterfactual, present),
        present,
    )
    return Rewritten(*(mesh.join(c, rows, item_rows, "item") for c in columns))


def columns(known: counterfactuals.Counterfactuals) -> dict[str, np.ndarray]:
    """The tables as a pipeline wants them: column -> `[num_items, ...]`."""
    return {
        f"{name}/{field}": getattr(made, field)
        for name, made in known.modalities.items()
        for field in _FIELDS
    }


def block(
    tables: Mapping[str, np.ndarray], start: int, size: int, mesh: Partition
) -> dict[str, Rewritten]:
    """Some of what `columns` gave, on the devices: modality -> rows."""
    some = slice(start, start + size)
    names = sorted({column.rpartition("/")[0] for column in tables})
    return {
        name: Rewritten(
            **{f: mesh.put(tables[f"{name}/{f}"][some]) for f in _FIELDS}
        )
        for name in names
    }


def rows(
    known: Counterfactuals,
    batch: Mapping[str, jax.Array],
    items: jax.Array | None,
    picked: bool = False,
) -> dict[str, Rewritten]:
    """The counterfactuals of some items, standardised.

    Vectors are centred by the mean of the factual ones and scaled to a mean
    square of one, both of them alike: what they differ by is
    what the rewriting changed, and nothing else.

    Args:
      known: of the catalogue.
      batch: whose positive items are meant if there are no tables.
      items: int32 `[n]`, indices into the tables; None takes all items.
      picked: leaves the vectors of tables where they are, as `wide.Picked`.

    Returns:
      Modality -> rows, in `known.dtype`.

    Raises:
      InputError: if neither tables nor batch hold them.
    """

    def take(x: jax.Array, items: jax.Array) -> Any:
        wanted = picked and jnp.issubdtype(x.dtype, jnp.floating)
        return wide.Picked(x, items) if wanted else wide.take(x, items)

    out = {}
    for name in known.mean:
        if name in known.tables:
            found = known.tables[name]
            if items is not None:
                found = jax.tree.map(lambda x: take(x, items), found)
        elif f"{name}/factual" in batch:
            found = Rewritten(**{f: batch[f"{name}/{f}"] for f in _FIELDS})
            found = _standardised(known, name, found)
        else:
            raise InputError(
                "Counterfactuals are read that are not on the devices.",
                where="config.data.counterfactuals.feed",
                expected="'tables', for what reads more than a batch",
                found="batches",
            )
        out[name] = found
    return out


def standardised(
    known: Counterfactuals, tables: Mapping[str, Rewritten]
) -> dict[str, Rewritten]:
    """Tables of vectors as they were made, as `rows` reads them.

    Args:
      known: of the catalogue.
      tables: modality -> items.
    """
    return {name: _standardised(known, name, t) for name, t in tables.items()}


def _standardised(
    known: Counterfactuals, name: str, found: Rewritten
) -> Rewritten:
    mean, factor = known.mean[name], known.factor[name]

    def centred(x: jax.Array, there: jax.Array) -> jax.Array:
        x = (x.astype(jnp.float32) - mean) * factor
        return jnp.where(there[..., None], x, 0.0).astype(known.dtype)

    return dataclasses.replace(
        found,
        factual=centred(found.factual, found.described),
        counterfactual=centred(found.counterfactual, found.present),
    )
