"""A recommender is a composition: an encoder, sources of negatives, losses.

`build` makes one from a config; nothing here knows any method by name.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from neggen_jax.data.inputs import Inputs, Needs, Sizes, union
from neggen_jax.errors import InputError, nearest
from neggen_jax.losses import LOSSES
from neggen_jax.models import ENCODERS
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.models.projected import Projected
from neggen_jax.negatives import SOURCES
from neggen_jax.negatives.source import Batch, Clock, Source
from neggen_jax.ops.lookup import Spread

Loss = Callable[..., jax.Array]

# Parameters of encoders, sources and losses that no config gives.
_GIVEN = {"sizes", "parent", "name", "encoded", "batch", "negatives", "key"}


class Recommender(nn.Module):
    """Everything that is trained.

    Attributes:
      encoder: ids, graphs and features to embeddings.
      sources: name -> where negatives come from.
      losses: name -> (weight, loss).
    """

    encoder: Encoder
    sources: Mapping[str, Source]
    losses: Mapping[str, tuple[float, Loss]]

    def needs(self) -> Needs:
        """What the encoder and the sources read, together."""
        needs = [
            self.encoder.needs(),
            *(s.needs() for s in self.sources.values()),
        ]
        return functools.reduce(union, needs)

    def encode(self, inputs: Inputs) -> Encoded:
        """Embeds every user and item, as they are ranked."""
        return self.extend(self.encoder(inputs).whole(), inputs)

    def extend(self, encoded: Encoded, inputs: Inputs) -> Encoded:
        """Adds to the items what sources have learnt of them."""
        for source in self.sources.values():
            encoded = source.extend(encoded, inputs)
        return encoded

    def prepare(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """The inputs of one training epoch; pure."""
        if self.scope is None:
            # Modules are named when they are bound, and sources file what
            # they prepare under their names.
            prepared: Any = self.apply({}, inputs, key, method="prepare")
            return prepared
        modules = [self.encoder, *self.sources.values()]
        for number, module in enumerate(modules):
            inputs = module.prepare(inputs, jax.random.fold_in(key, number))
        return inputs

    def __call__(
        self, inputs: Inputs, batch: Batch, clock: Clock
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one batch; see `loss`."""
        # Two items of each example are read, or more. On a mesh each device
        # computes its own rows of a table, and only these travel.
        rows = 2 * len(batch["items"])
        whole = inputs.positives.mesh.size > 1 or rows >= len(inputs.popularity)
        encoded = self.embed(inputs, whole)
        return self.loss(encoded, inputs, batch, clock)

    def embed(self, inputs: Inputs, whole: bool = True) -> Encoded:
        """Embeds every user and item, as losses read them.

        Args:
          inputs: as prepared for the epoch.
          whole: whether all tables are to be arrays; a `Projected` otherwise
            stays one.
        """
        encoded = self.encoder(inputs)
        if whole:
            encoded = encoded.whole()
        # Rows are gathered from float32 tables, so that gradients of a row
        # that occurs many times are summed in float32 too.
        encoded = jax.tree.map(
            lambda x: (
                x.in_float32()
                if isinstance(x, Projected)
                else x.astype(jnp.float32)
            ),
            encoded,
            is_leaf=lambda x: isinstance(x, Projected),
        )
        spread = Spread(inputs.positives.mesh, inputs.positives.axis)
        return dataclasses.replace(encoded, spread=spread)

    def loss(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one batch, of what has been embedded.

        It reads no parameters of the encoder.

        Args:
          encoded: by `embed`.
          inputs: as prepared for the epoch.
          batch: positive pairs, int32 `[B]` each.
          clock: how far the run is.

        Returns:
          The total, and every term and metric by name.
        """
        encoded = dataclasses.replace(encoded, taken={})
        drawn = {
            name: source(encoded, inputs, batch, clock)
            for name, source in self.sources.items()
        }
        total, terms = jnp.zeros(()), {}
        for name, (weight, loss) in self.losses.items():
            asked = {}
            if "key" in inspect.signature(loss).parameters:
                asked["key"] = self.make_rng("dropout")
            terms[name] = loss(encoded, batch, drawn, **asked)
            total += weight * terms[name]
        for name, negatives in drawn.items():
            for key, value in negatives.losses.items():
                terms[f"{name}/{key}"] = value
                total += value
            for key, value in negatives.metrics.items():
                terms[f"{name}/{key}"] = jax.lax.stop_gradient(value)
        return total, {"loss": total, **terms}


def build(config: ConfigDict, sizes: Sizes) -> Recommender:
    """Makes the recommender that a config describes.

    Args:
      config: with `encoder`, `negatives` and `losses`; each part has a
        `name` that stands in a registry, and the keywords of what it names.
      sizes: of the catalogue over the mesh.

    Raises:
      InputError: for unknown names and keywords, with the nearest known.
    """
    sources = {
        name: _make(SOURCES, part, f"config.negatives.{name}")
        for name, part in config.negatives.items()
    }
    losses = {}
    for name, part in config.losses.items():
        where = f"config.losses.{name}"
        loss, keywords = _lookup(LOSSES, part, where, ("weight",))
        weight = keywords.pop("weight")
        losses[name] = (weight, functools.partial(loss, **keywords))
    return Recommender(
        encoder=_make(ENCODERS, config.encoder, "config.encoder", sizes=sizes),
        sources=sources,
        losses=losses,
    )


def _make(registry: Mapping[str, Any], part: Any, where: str, **given: Any):
    target, keywords = _lookup(registry, part, where)
    return target(**given, **keywords)


def _lookup(
    registry: Mapping[str, Any], part: Any, where: str, more: tuple = ()
) -> tuple[Any, dict[str, Any]]:
    """What a part names, and its keywords; `more` must stand there too."""
    name = part.get("name", None)
    if name not in registry:
        raise InputError(
            f"Unknown name {name!r}.",
            where=f"{where}.name",
            fix=nearest(str(name), registry),
        )
    parameters = {
        key: parameter.default
        for key, parameter in inspect.signature(
            registry[name]
        ).parameters.items()
        if key not in _GIVEN
    }
    parameters |= dict.fromkeys(more, inspect.Parameter.empty)
    given = {key: _frozen(part[key]) for key in part if key != "name"}
    for key in given:
        if key not in parameters:
            raise InputError(
                f"{name!r} takes no {key!r}.",
                where=f"{where}.{key}",
                fix=nearest(key, parameters),
            )
    for key, default in parameters.items():
        if default is inspect.Parameter.empty and key not in given:
            raise InputError(f"{name!r} needs {key!r}.", where=f"{where}.{key}")
    return registry[name], given


def _frozen(value: Any) -> Any:
    """Hashable forms, as Flax modules want their attributes."""
    if isinstance(value, ConfigDict):
        return nn.FrozenDict(value.to_dict())
    return tuple(value) if isinstance(value, list) else value
