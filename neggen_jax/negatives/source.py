"""The contract of a source of negatives.

A source is a Flax module that gives each positive pair of a batch `K`
negatives, as catalogue items or as vectors that belong to no item. It may
have parameters and losses of its own, and may prepare something once an
epoch. Losses read what it gives under the name that the config gave it.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax

from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.models.causal import Effect
from neggen_jax.models.encoder import Encoded

# users and items: int32 [B]; more columns where sources want them.
Batch = dict[str, jax.Array]

# What a schedule may count.
UNITS = ("epochs", "steps", "run")


@flax.struct.dataclass
class Clock:
    """How far a run is, for schedules; each a scalar.

    Attributes:
      step: int32, steps done.
      epoch: float32, epochs done.
      share: float32, share of the run's epochs done.
    """

    step: jax.Array
    epoch: jax.Array
    share: jax.Array

    @classmethod
    def at(cls, step: jax.Array, steps_per_epoch: int, epochs: int) -> Clock:
        """How far a run of some epochs is after `step` steps."""
        epoch = step / steps_per_epoch
        return cls(step, epoch, epoch / epochs)

    def time(self, unit: str) -> jax.Array:
        """How far, in one of `UNITS`; the whole "run" counts as 1."""
        times = {"epochs": self.epoch, "steps": self.step, "run": self.share}
        return times[unit]


@flax.struct.dataclass
class Shared:
    """Items that are negatives of all pairs of a batch.

    Attributes:
      items: int32 `[M]`; they may repeat.
      left_out: bool `[B, M]`, those that are no negatives of a pair.
      offsets: `[M]`, added to the logits of these items.
      own: `[B]`, added to the logits of the positives.
    """

    items: jax.Array
    left_out: jax.Array
    offsets: jax.Array
    own: jax.Array


@flax.struct.dataclass
class Negatives:
    """Negatives of one batch.

    Attributes:
      vectors: `[B, K, d]`, scored as `<user, vector>`.
      weights: `[B, K]`; 0 leaves one out.
      items: int32 `[B, K]`, catalogue items that they are, or that they were
        made of: what losses read that look them up in a view; else None.
      positives: `[B, d]`, what the positives are scored by beside these
        negatives; None for the items' embeddings.
      shared: negatives of all pairs, beside the K of each.
      effect: causal effects of the positives, where the source has them.
      losses: the source's own losses, added to the total as they are.
      metrics: scalars worth logging; NaN where there was nothing to measure.
    """

    vectors: jax.Array
    weights: jax.Array
    items: jax.Array | None = None
    positives: jax.Array | None = None
    shared: Shared | None = None
    effect: Effect | None = None
    losses: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


class Source(nn.Module):
    """Base of all sources.

    Random numbers come from `self.make_rng("negatives")`; the key is a
    function of the run's seed and the step. What must last from step to step
    beside parameters is a `self.variable` of a collection of its own: it is
    carried, checkpointed and restored with the rest.

    Attributes:
      with_positives: whether it reads its negatives from the items' table,
        and the positives with them (`Encoded.take_together`). Such a source
        is asked before others, which then find the positives read.
    """

    with_positives: ClassVar[bool] = False

    def needs(self) -> Needs:
        """What it reads from `Inputs` beside what the encoder does."""
        return Needs()

    def prepare(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """Adds to `inputs.prepared` what one epoch needs; pure."""
        del key
        return inputs

    def extend(self, encoded: Encoded, inputs: Inputs) -> Encoded:
        """Adds what it has learnt of all items to what is ranked.

        Losses see embeddings as the encoder gives them, and what a source
        hands out in `Negatives`.

        Args:
          encoded: of all users and items.
          inputs: as built.
        """
        del inputs
        return encoded

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Gives the batch its negatives.

        Args:
          encoded: of all users and items.
          inputs: as prepared for the epoch.
          batch: positive pairs.
          clock: how far the run is, for schedules.
        """
        raise NotImplementedError
