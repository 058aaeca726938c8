"""MGCN.

Yu et al., "Multi-view graph convolutional network for multimedia
recommendation", ACM MM 2023: free vectors of items, gated by their modalities
(eq. 1-2), are smoothed over an item-item graph for each (eq. 6-9) and handed
to users (eq. 10); users' and items' behaviour, from the user-item graph (eq.
3-5), tells how much of each modality counts (eq. 11-15). An `infonce` between
the views "side" and "content" aligns the two (eq. 16).
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, ItemGraph, Needs
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.models.lightgcn import propagate
from neggen_jax.models.projected import Projection
from neggen_jax.ops.sparse import Graph, multiply

# Where papers and what their authors released differ, one may be chosen.
FORMS = ("paper", "released")

Sides = dict[str, jax.Array]


class MGCN(Encoder):
    """Behaviour, plus modalities that are purified and fused by it.

    An item's absent modalities count for nothing: neither in the attention
    over modalities nor in what is added up.

    Attributes:
      layers: propagation steps on the user-item graph.
      item_layers: propagation steps on each item-item graph.
      neighbours: nearest items kept for each item, itself included.
      form: "paper" adds what modalities share to the mean of what is their
        own (eq. 15); "released" takes the mean of all of these, so that with
        two modalities each counts for a third.
      modalities: which ones to read; () reads all. Features stay as they
        are; the authors' code trains them, too.
    """

    layers: int = 2
    item_layers: int = 1
    neighbours: int = 10
    form: str = "paper"
    modalities: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """The user-item graph; features and an item-item graph of each."""
        modalities = tuple(self.modalities)
        return Needs(
            user_item=True,
            features=True,
            item_item=ItemGraph(self.neighbours, "cosine", modalities),
            modalities=modalities,
        )

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns content + side; views hold the two apart."""
        check_form(self.form)
        ego = self.user_table(), self.item_table()
        content = propagate(inputs.user_item, *ego, self.layers)
        items, there = {}, {}
        for name in sorted(self.modalities or inputs.features):
            matrix = inputs.features[name]
            project = Projection(self.dim, name=f"embed_{name}")
            embedded = project((matrix.values,)).whole()
            items[name] = smoothed(
                inputs.item_item[name],
                purified(ego[1], embedded, matrix.present, f"gate_{name}"),
                self.item_layers,
            )
            there[name] = matrix.present
        users = handed(inputs.user_item, items)
        fuse = Fuser(self.form, name="fuser")
        side = fuse(content[0], users, {}), fuse(content[1], items, there)
        return Encoded(
            content[0] + side[0],
            content[1] + side[1],
            {"ego": ego, "content": content, "side": side},
        )


class Fuser(nn.Module):
    """What modalities share, and what is their own, gated by behaviour.

    Attributes:
      form: one of `FORMS`.
    """

    form: str

    @nn.compact
    def __call__(
        self, behaviour: jax.Array, sides: Sides, there: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Fuses; parameters are those of users and items alike.

        Args:
          behaviour: `[n, d]`.
          sides: modality -> `[n, d]`.
          there: modality -> bool `[n]`; one that is not named is all there.

        Returns:
          `[n, d]`.
        """
        dim = behaviour.shape[1]
        hidden = nn.Dense(dim, name="attend")
        query = nn.Dense(1, use_bias=False, name="query")
        logits = {
            name: query(nn.tanh(hidden(side)))[:, 0]
            for name, side in sides.items()
        }
        shares = attention(logits, there)
        shared = sum(shares[name][:, None] * sides[name] for name in sides)
        own = jnp.zeros_like(behaviour)
        for name, side in sides.items():
            prefers = nn.sigmoid(
                nn.Dense(dim, name=f"prefer_{name}")(behaviour)
            )
            apart = prefers * (side - shared)
            if name in there:
                apart = jnp.where(there[name][:, None], apart, 0)
            own += apart
        if self.form == "released":
            return (shared + own) / (len(sides) + 1)
        return shared + own / len(sides)


def check_form(form: str) -> None:
    """Refuses an unknown form.

    Raises:
      InputError: unless it is one of `FORMS`.
    """
    if form not in FORMS:
        raise InputError(
            "Unknown form of an encoder.",
            where="config.encoder.form",
            expected=" or ".join(FORMS),
            found=repr(form),
        )


def purified(
    items: jax.Array, embedded: jax.Array, present: jax.Array, name: str
) -> jax.Array:
    """Free vectors of items, gated by what their content tells.

    To be called by a module, whose parameters it makes.

    Args:
      items: `[item_rows, d]`.
      embedded: content, `[item_rows, d]`.
      present: bool `[item_rows]`; rows of the others are 0.
      name: of the gate.
    """
    gate = nn.sigmoid(nn.Dense(items.shape[1], name=name)(embedded))
    return jnp.where(present[:, None], items * gate, 0)


def smoothed(graph: Graph, items: jax.Array, layers: int) -> jax.Array:
    """Items after some steps of propagation on a graph over items."""
    for _ in range(layers):
        items = multiply(graph, items)
    return items


def handed(user_item: Graph, items: Sides) -> Sides:
    """What users get of their items, of all views in one product."""
    joined = multiply(user_item, jnp.concatenate([*items.values()], axis=1))
    parts = jnp.split(joined, len(items), axis=1)
    return dict(zip(items, parts, strict=True))


def attention(
    logits: Mapping[str, jax.Array], there: Mapping[str, jax.Array]
) -> Sides:
    """Softmax over those modalities that a row has.

    Args:
      logits: modality -> `[n]`.
      there: modality -> bool `[n]`; one that is not named is all there.

    Returns:
      Modality -> `[n]`; of a row without any, all alike.
    """
    masked = [
        jnp.where(there[name], value, jnp.finfo(value.dtype).min)
        if name in there
        else value
        for name, value in logits.items()
    ]
    shares = nn.softmax(jnp.stack(masked), axis=0)
    return dict(zip(logits, shares, strict=True))
