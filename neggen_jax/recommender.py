"""A recommender is a composition: an encoder, sources of negatives, losses.

`build` makes one from a config; nothing here knows any method by name.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
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
from neggen_jax.models import ENCODERS, lazy
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.negatives import SOURCES
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source
from neggen_jax.ops.lookup import Spread

Loss = Callable[..., jax.Array]

# Parameters of encoders, sources and losses that no config gives.
GIVEN = {"sizes", "parent", "name", "encoded", "batch", "negatives", "key"}


class Objective(nn.Module):
    """What is learned of embeddings, whoever makes them.

    Attributes:
      sources: name -> where negatives come from.
      losses: name -> (weight, loss).
    """

    sources: Mapping[str, Source]
    losses: Mapping[str, tuple[float, Loss]]

    def needs(self) -> Needs:
        """What all parts read, together."""
        needs = [part.needs() for part in self._parts().values()]
        return functools.reduce(union, needs, Needs())

    def prepare(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """The inputs of one training epoch; pure."""
        if self.scope is None:
            # Modules are named when they are bound, and sources file what
            # they prepare under their names.
            prepared: Any = self.apply({}, inputs, key, method="prepare")
            return prepared
        for number, part in self._parts().items():
            inputs = part.prepare(inputs, jax.random.fold_in(key, number))
        return inputs

    def extend(self, encoded: Encoded, inputs: Inputs) -> Encoded:
        """Adds to the items what sources have learnt of them."""
        for source in self.sources.values():
            encoded = source.extend(encoded, inputs)
        return encoded

    def draw(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> dict[str, Negatives]:
        """The negatives of one batch, by source.

        Args:
          encoded: float32; `spread` and `taken` are set.
          inputs: as prepared for the epoch.
          batch: positive pairs, int32 `[B]` each.
          clock: how far the run is.
        """
        # Of rows that are read in one go, gradients are added up before they
        # go back to the table; else one table of them is added to another.
        sources = self.sources.items()
        order = sorted(sources, key=lambda item: not item[1].with_positives)
        drawn = {
            name: source(encoded, inputs, batch, clock)
            for name, source in order
        }
        # Losses are added up in the order that sources are named in.
        return {name: drawn[name] for name in self.sources}

    def loss(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one batch, of what has been embedded; see `draw`.

        It reads no parameters of an encoder.

        Returns:
          The total, and every term and metric by name.
        """
        encoded = dataclasses.replace(encoded, taken={})
        drawn = self.draw(encoded, inputs, batch, clock)

        def make_key() -> jax.Array:
            return self.make_rng("dropout")

        return total(self.losses, encoded, batch, drawn, make_key)

    def _parts(self) -> dict[int, Encoder | Source]:
        """Modules by the number that their keys are made with."""
        return dict(enumerate(self.sources.values(), 1))


class Recommender(Objective):
    """Everything that is trained.

    Attributes:
      encoder: ids, graphs and features to embeddings.
    """

    encoder: Encoder

    def encode(self, inputs: Inputs) -> Encoded:
        """Embeds every user and item, as they are ranked."""
        return self.extend(self.encoder(inputs).whole(), inputs)

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
          whole: whether all tables are to be arrays; rows of a `Lazy` one
            are otherwise computed as they are read.
        """
        encoded = self.encoder(inputs)
        if whole:
            encoded = encoded.whole()
        return placed(encoded, inputs)

    def _parts(self) -> dict[int, Encoder | Source]:
        return {0: self.encoder, **super()._parts()}


def placed(encoded: Encoded, inputs: Inputs) -> Encoded:
    """Embeddings as losses read them: in float32, and told where they lie."""
    # Rows are gathered from float32 tables, so that gradients of a row that
    # occurs many times are summed in float32 too.
    encoded = lazy.in_float32(encoded)
    spread = Spread(inputs.positives.mesh, inputs.positives.axis)
    return dataclasses.replace(encoded, spread=spread)


def total(
    losses: Mapping[str, tuple[float, Loss]],
    encoded: Encoded,
    batch: Batch,
    drawn: Mapping[str, Negatives],
    make_key: Callable[[], jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Adds up losses, and what sources have of their own.

    Args:
      losses: name -> (weight, loss).
      encoded: what they read.
      batch: positive pairs.
      drawn: negatives, by source.
      make_key: gives a new key to each loss that asks for one.

    Returns:
      The total, and every term and metric by name.
    """
    out, terms = jnp.zeros(()), {}
    for name, (weight, loss) in losses.items():
        asked = {}
        if "key" in inspect.signature(loss).parameters:
            asked["key"] = make_key()
        terms[name] = loss(encoded, batch, drawn, **asked)
        out += weight * terms[name]
    for name, negatives in drawn.items():
        for key, value in negatives.losses.items():
            terms[f"{name}/{key}"] = value
            out += value
        for key, value in negatives.metrics.items():
            terms[f"{name}/{key}"] = jax.lax.stop_gradient(value)
    return out, {"loss": out, **terms}


def build(config: ConfigDict, sizes: Sizes) -> Recommender:
    """Makes the recommender that a config describes.

    Args:
      config: with `encoder`, `negatives` and `losses`; each part has a
        `name` that stands in a registry, or is the "MODULE:NAME" of somebody's
        own, and the keywords of what it names.
      sizes: of the catalogue over the mesh.

    Raises:
      InputError: for unknown names and keywords, with the nearest known.
    """
    where, part = "config.encoder", config.encoder
    return Recommender(
        encoder=_make(Encoder, ENCODERS, part, where, sizes=sizes),
        **_aims(config),
    )


def build_objective(config: ConfigDict) -> Objective:
    """The same without an encoder; of `config`, `negatives` and `losses`."""
    return Objective(**_aims(config))


def _aims(config: ConfigDict) -> dict[str, Any]:
    sources = {
        name: _make(Source, SOURCES, part, f"config.negatives.{name}")
        for name, part in config.negatives.items()
    }
    losses = {}
    for name, part in config.losses.items():
        where = f"config.losses.{name}"
        loss, keywords = _lookup(LOSSES, part, where, ("weight",))
        weight = keywords.pop("weight")
        losses[name] = (weight, functools.partial(loss, **keywords))
    return {"sources": sources, "losses": losses}


def _make(
    kind: type, registry: Mapping[str, Any], part: Any, where: str, **given: Any
) -> Any:
    target, keywords = _lookup(registry, part, where, kind=kind)
    return target(**given, **keywords)


def _named(registry: Mapping[str, Any], name: object, where: str) -> Any:
    """What a registry has by a name; or a module, as "MODULE:NAME"."""
    module, _, attribute = str(name).partition(":")
    if not attribute:
        if name in registry:
            return registry[str(name)]
        raise InputError(
            f"Unknown name {name!r}.",
            where=where,
            fix=nearest(str(name), registry),
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            "A part of the recommender cannot be imported.",
            where=where,
            expected="MODULE:NAME, of a module that Python finds",
            found=f"{name}: {error}",
            fix="name the directory of the module in PYTHONPATH",
        ) from error


def _lookup(
    registry: Mapping[str, Any],
    part: Any,
    where: str,
    more: tuple = (),
    kind: type | None = None,
) -> tuple[Any, dict[str, Any]]:
    """What a part names, and its keywords; `more` must stand there too.

    What is named is a subclass of `kind`, where there is one.
    """
    name = part.get("name", None)
    target = _named(registry, name, f"{where}.name")
    if kind and not (isinstance(target, type) and issubclass(target, kind)):
        raise InputError(
            f"A name is not that of a class of {kind.__name__.lower()}s.",
            where=f"{where}.name",
            expected=f"a subclass of {kind.__module__}.{kind.__name__}",
            found=name,
        )
    parameters = {
        key: parameter.default
        for key, parameter in inspect.signature(target).parameters.items()
        if key not in GIVEN
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
    return target, given


def _frozen(value: Any) -> Any:
    """Hashable forms, as Flax modules want their attributes."""
    if isinstance(value, ConfigDict):
        return nn.FrozenDict(value.to_dict())
    return tuple(value) if isinstance(value, list) else value
