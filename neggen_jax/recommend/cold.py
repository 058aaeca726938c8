"""Vectors of items that were not there in training.

An encoder's `cold` makes of an item's content what it can. Known items have
more: free embeddings, and what propagation brings from their users; without
it, new items would be shorter than known ones, and hardly ever shown. So what
is missing is foreseen: known items are embedded as if they were new, and a
ridge regression over them says what their final vectors have beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.data import new_items
from neggen_jax.recommend.ridge import Ridge
from neggen_jax.run import Run

# Known items that the regression learns from.
_SAMPLE = 2**14


def embed(
    run: Run, params: Any, items: jax.Array, vectors: Mapping[str, np.ndarray]
) -> jax.Array | None:
    """Embeds new items by their content.

    Args:
      run: composed.
      params: of the recommender.
      items: final vectors of the known items.
      vectors: modality -> float32 `[n, f]`, as the catalogue's; a zero row
        is an item without.

    Returns:
      float32 `[n, d]`; None if the encoder cannot tell items by their content.
    """
    cold = by_content(run, params, vectors)
    if cold is None:
        return None
    known = _sample(run, vectors)
    contents = {
        name: np.asarray(run.catalog.features[name].values[known])
        for name in vectors
    }
    as_new = by_content(run, params, contents, known)
    assert as_new is not None
    whole = np.asarray(items[jnp.asarray(known)], np.float32)
    ridge = Ridge(cold.shape[1], whole.shape[1])
    ridge.add(as_new, whole - as_new)
    matrix, constant = ridge.solve()
    return jnp.asarray(cold + cold @ matrix + constant)


def by_content(
    run: Run,
    params: Any,
    vectors: Mapping[str, np.ndarray],
    rows: np.ndarray | None = None,
) -> np.ndarray | None:
    """What the encoder makes of items' content alone, float32 `[n, d]`.

    Args:
      run: composed.
      params: of the recommender.
      vectors: see `embed`.
      rows: which known items they are, if known ones are to be seen as new.

    Returns:
      None if the encoder cannot tell items by their content.
    """
    encoder = run.program.recommender.encoder
    placed = new_items.place(
        run.catalog, encoder.needs(), vectors, run.partition, rows
    )
    found = jax.jit(encoder.cold)(params["encoder"], run.inputs, placed)
    return None if found is None else np.asarray(found, np.float32)


def _sample(run: Run, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Known items that somebody has in train, and with content."""
    there = np.zeros(run.catalog.num_items, bool)
    for name in vectors:
        there |= run.catalog.features[name].present
    some = np.flatnonzero(there & (run.catalog.popularity() > 0))
    if len(some) > _SAMPLE:
        drawn = np.random.default_rng(run.config.seed).permutation(some)
        some = np.sort(drawn[:_SAMPLE])
    return some
