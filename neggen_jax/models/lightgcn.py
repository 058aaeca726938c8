"""LightGCN.

He et al., "LightGCN: simplifying and powering graph convolution network for
recommendation", SIGIR 2020: linear propagation over the user-item graph
(eq. 3), mean over the layers (eq. 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.models.encoder import Encoded, Encoder, Params, Received
from neggen_jax.models.lazy import added, product
from neggen_jax.ops.sparse import Graph, multiply


def layered(
    graph: Graph,
    users: jax.Array,
    items: jax.Array,
    layers: int,
    last: Callable[[Graph, jax.Array], Any] = multiply,
) -> tuple[tuple[Any, Any], ...]:
    """Layers `0..L` of propagation on a bipartite graph.

    Args:
      graph: normalised, `[user_rows, item_rows]`.
      users: `[user_rows, d]`, layer 0.
      items: `[item_rows, d]`, layer 0.
      layers: L.
      last: gives layer L; `lazy.product` where only some rows of it are read.

    Returns:
      Users and items of each layer, in the shapes they came in.
    """
    out = [(users, items)]
    for layer in range(1, layers + 1):
        times = last if layer == layers else multiply
        users, items = times(graph, items), times(graph.transpose, users)
        out.append((users, items))
    return tuple(out)


def mean(layers: tuple[tuple[Any, Any], ...]) -> tuple[Any, Any]:
    """The mean over layers, of users and of items."""
    users, items = (added(x, len(layers)) for x in zip(*layers, strict=True))
    return users, items


def propagate(
    graph: Graph, users: jax.Array, items: jax.Array, layers: int
) -> tuple[jax.Array, jax.Array]:
    """The mean of `layered`, in the shapes that came in."""
    return mean(layered(graph, users, items, layers))


def received(
    graph: Graph, users: jax.Array, items: jax.Array, layers: int
) -> jax.Array:
    """What each item hands to its users in `propagate`, `[item_rows, d]`.

    A user of layer l is the sum over their items of layer l - 1, so that of
    the mean over the layers all is known but layer 0, the user's own:

        1 / (L + 1) sum over l < L of the items of layer l.

    Args:
      graph: normalised, `[user_rows, item_rows]`.
      users: `[user_rows, d]`, layer 0.
      items: `[item_rows, d]`, layer 0.
      layers: L.
    """
    if layers == 0:
        return jnp.zeros_like(items)
    _, mean = propagate(graph, users, items, layers - 1)
    return mean * (layers / (layers + 1))


class LightGCN(Encoder):
    """Free vectors, smoothed over the user-item graph.

    Attributes:
      layers: propagation steps.
    """

    layers: int = 2

    def needs(self) -> Needs:
        """The user-item graph."""
        return Needs(user_item=True)

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Propagates the tables."""
        ego = self.user_table(), self.item_table()
        # Who reads the layers apart reads all of each.
        last = multiply if inputs.layers else product
        layers = layered(inputs.user_item, *ego, self.layers, last)
        kept = layers if inputs.layers else ()
        return Encoded(*mean(layers), {"ego": ego}, layers=kept)

    def received(self, params: Params, inputs: Inputs) -> Received:
        """Layers 1 to L."""
        ego = params["users"], params["items"]
        return Received(received(inputs.user_item, *ego, self.layers))
