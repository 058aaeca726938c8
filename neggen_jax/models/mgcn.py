"""MGCN.

Yu et al., "Multi-view graph convolutional network for multimedia
recommendation", ACM MM 2023: free vectors of items, gated by their modalities
(eq. 1-2), are smoothed over an item-item graph for each (eq. 6-9) and handed
to users (eq. 10); users' and items' behaviour, from the user-item graph (eq.
3-5), tells how much of each modality counts (eq. 11-15). An `infonce` between
the views "side" and "content" aligns the two (eq. 16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, ItemGraph, Needs
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.models.lazy import Lazy, RowWise, Table, added, product
from neggen_jax.models.lightgcn import layered, mean
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
        layers = layered(inputs.user_item, *ego, self.layers, product)
        content = mean(layers)
        names = tuple(sorted(self.modalities or inputs.features))
        items = []
        for name in names:
            matrix = inputs.features[name]
            project = Projection(self.dim, name=f"embed_{name}")
            embedded = project((matrix.values,)).whole()
            items.append(
                smoothed(
                    inputs.item_item[name],
                    purified(ego[1], embedded, matrix.present, f"gate_{name}"),
                    self.item_layers,
                )
            )
        # Of all modalities in one product.
        joined = jnp.concatenate(items, axis=1)
        present = [inputs.features[name].present for name in names]
        there = jnp.stack(present, axis=1).astype(joined.dtype)
        fuse = Fuser(self.dim, names, self.form, name="fuser")()
        side = (
            fuse(content[0], product(inputs.user_item, joined)),
            fuse(content[1], joined, there),
        )
        return Encoded(
            added((content[0], side[0])),
            added((content[1], side[1])),
            {"ego": ego, "content": content, "side": side},
        )


@flax.struct.dataclass
class Fused(RowWise):
    """What modalities share, and what is their own, gated by behaviour.

    Attributes:
      parts: behaviour `[n, d]`, all modalities side by side `[n, m d]`, and,
        but where all have all of them, 1 or 0 for each that is there `[n, m]`.
      weights: of `Fuser`.
      names: the modalities.
      form: one of `FORMS`.
    """

    parts: tuple[Table, ...]
    weights: dict[str, dict[str, jax.Array]]
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    form: str = flax.struct.field(pytree_node=False)

    def of(self, parts: Iterable[Any]) -> Any:
        """Fuses the modalities of some rows, `[..., d]`."""
        behaviour, joined, *rest = parts
        split = jnp.split(joined, len(self.names), axis=-1)
        sides = dict(zip(self.names, split, strict=True))
        there = {}
        if rest:
            columns = jnp.moveaxis(rest[0] > 0, -1, 0)
            there = dict(zip(self.names, columns, strict=True))
        logits = {
            name: self._dense("query", nn.tanh(self._dense("attend", side)))
            for name, side in sides.items()
        }
        shares = attention({k: v[..., 0] for k, v in logits.items()}, there)
        shared = sum(shares[name][..., None] * sides[name] for name in sides)
        own = jnp.zeros_like(behaviour)
        for name, side in sides.items():
            prefers = nn.sigmoid(self._dense(f"prefer_{name}", behaviour))
            apart = prefers * (side - shared)
            if name in there:
                apart = jnp.where(there[name][..., None], apart, 0)
            own += apart
        if self.form == "released":
            return (shared + own) / (len(sides) + 1)
        return shared + own / len(sides)

    def _dense(self, name: str, x: jax.Array) -> jax.Array:
        layer = self.weights[name]
        return x @ layer["kernel"] + layer.get("bias", 0)


class Fuser(nn.Module):
    """The parameters of `Fused`, those of users and items alike.

    Attributes:
      dim: d.
      names: the modalities.
      form: one of `FORMS`.
    """

    dim: int
    names: tuple[str, ...]
    form: str

    @nn.compact
    def __call__(self) -> Callable[..., Table]:
        """Returns what makes a table of the parts of one.

        An array of arrays alone.
        """
        weights = {
            "attend": Layer(self.dim, name="attend")(self.dim),
            "query": Layer(1, use_bias=False, name="query")(self.dim),
        }
        for modality in self.names:
            name = f"prefer_{modality}"
            weights[name] = Layer(self.dim, name=name)(self.dim)

        def fuse(*parts: Table) -> Table:
            made = Fused(parts, weights, self.names, self.form)
            some = any(isinstance(part, Lazy) for part in parts)
            return made if some else made.whole()

        return fuse


class Layer(nn.Module):
    """The parameters of an `nn.Dense`, for rows that are not there yet.

    Attributes:
      features: that it makes.
      use_bias: whether it has a bias.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, width: int) -> dict[str, jax.Array]:
        """Returns them, for inputs `[..., width]`."""
        init = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
        out = {"kernel": self.param("kernel", init[0], (width, self.features))}
        if self.use_bias:
            out["bias"] = self.param("bias", init[1], (self.features,))
        return out


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
      logits: modality -> `[...]`.
      there: modality -> bool `[...]`; one that is not named is all there.

    Returns:
      Modality -> `[...]`; of a row without any, all alike.
    """
    masked = [
        jnp.where(there[name], value, jnp.finfo(value.dtype).min)
        if name in there
        else value
        for name, value in logits.items()
    ]
    shares = nn.softmax(jnp.stack(masked), axis=0)
    return dict(zip(logits, shares, strict=True))
