"""Items that were not there in training, known by their content alone.

A shop's newest items come as a file, are encoded as those of the dataset
were, and reach an encoder (`Encoder.cold`) as `NewItems`: what `data/inputs.py`
has of known items, for these.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.catalog import Catalog
from neggen_jax.data import graphs
from neggen_jax.data.inputs import Needs, modalities
from neggen_jax.data.moments import moments
from neggen_jax.partition import Partition


@flax.struct.dataclass
class Near:
    """Rows of an item-item graph, of items that are not in it.

    Attributes:
      items: int32 `[n, k]`, known items.
      weights: float32 `[n, k]`; 0 where there is no neighbour.
    """

    items: jax.Array
    weights: jax.Array

    def of(self, table: jax.Array) -> jax.Array:
        """The rows times a table of the known items, `[n, d]`."""
        return jnp.einsum("nk,nkd->nd", self.weights, table[self.items])


@flax.struct.dataclass
class NewItems:
    """What an encoder reads of new items.

    Attributes:
      features: modality -> float32 `[n, f]`, standardised like those known.
      item_item: modality (or "fused") -> their rows of the graph.
    """

    features: dict[str, jax.Array]
    item_item: dict[str, Near]


def place(
    catalog: Catalog,
    needs: Needs,
    vectors: Mapping[str, np.ndarray],
    partition: Partition,
    rows: np.ndarray | None = None,
) -> NewItems:
    """Makes what an encoder needs of new items.

    Args:
      catalog: of the known ones.
      needs: of the encoder.
      vectors: modality -> float32 `[n, f]`, as the catalogue's; a zero row
        is an item without.
      partition: devices that search for neighbours.
      rows: which known items they are, if known ones are to be seen as new.
    """
    features, near = {}, {}
    if needs.features:
        for name in modalities(catalog, needs):
            known = catalog.features[name]
            mean, scale = moments(name, *known.learned)
            here = vectors[name].any(axis=1, keepdims=True)
            values = np.where(here, (vectors[name] - mean) / scale, 0)
            features[name] = partition.put(values.astype(np.float32))
    if (graph := needs.item_item) is not None:
        for name in modalities(catalog, graph):
            near[name] = graphs.near_known(
                catalog.features[name],
                vectors[name],
                graph.neighbours,
                graph.values,
                partition,
                rows,
            )
        if graph.fuse is not None:
            shares = graphs.shares(near, graph.fuse)
            items = np.hstack([near[name][0] for name in near])
            weights = np.hstack([near[name][1] * shares[name] for name in near])
            near = {"fused": (items, weights)}
    return NewItems(
        features,
        {
            name: Near(*(partition.put(x) for x in row))
            for name, row in near.items()
        },
    )
