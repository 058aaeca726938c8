"""From easy to hard: levels of difficulty, and when each is let in.

GDNSM (Ma et al., SIGIR 2025): the more of an item a generated negative is
conditioned on, the closer to the item it comes. Training begins with none of
them and lets the harder ones in as it goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.catalogue import Uniform
from neggen_jax.negatives.source import Batch, Clock, Negatives

LADDERS = ("ladder", "single", "joint")
ORDERS = ("rising", "falling", "random")

# XLA divides by a constant as a product with its rounded reciprocal: a time
# that stands on a border may come out some roundings short of it, and would
# be a step late. More than all of them together; a million steps later, a
# border is met a step early instead.
_REACHED = 1 + 2**-20


@dataclasses.dataclass(frozen=True)
class Level:
    """What negatives of one difficulty are conditioned on.

    Attributes:
      modalities: that it keeps; the user is always kept.
      branches: (modalities kept, weight), the sum that guidance takes.
    """

    modalities: tuple[str, ...]
    branches: tuple[tuple[tuple[str, ...], float], ...]

    @property
    def name(self) -> str:
        """Such as "text+image"."""
        return "+".join(self.modalities) or "user"


def guided(modalities: tuple[str, ...], scales: Mapping[str, float]) -> Level:
    """A level with classifier-free guidance for each of its modalities.

    They are added one after another, each from what came before it:
    `e0 + s_t (e_t - e0) + s_v (e_tv - e_t)`, with `e0` that of the user alone
    (Ho and Salimans, 2021; Brooks et al., CVPR 2023, eq. 3).

    Args:
      modalities: in the order in which they are added.
      scales: modality -> s; 1 where it is left out.
    """
    weights: dict[tuple[str, ...], float] = {(): 1.0}
    for count, name in enumerate(modalities, 1):
        scale = scales.get(name, 1.0)
        weights[modalities[: count - 1]] -= scale
        weights[modalities[:count]] = scale
    branches = tuple((kept, w) for kept, w in weights.items() if w)
    return Level(modalities, branches)


def ladder(
    kind: str,
    modalities: tuple[str, ...],
    scales: Mapping[str, float],
    first: tuple[str, ...] = (),
) -> tuple[Level, ...]:
    """The levels of a catalogue, from easy to hard.

    Args:
      kind: "single", each modality alone; "joint", all of them together;
        "ladder", the one and then the other. With one modality alone, the
        step below it is the user without any.
      modalities: of the catalogue, in the order in which guidance adds them.
      scales: of guidance.
      first: modalities whose own levels come first; the others follow in
        their order.
    """
    rest = [name for name in modalities if name not in first]
    begin = [name for name in first if name in modalities]
    alone: list[tuple[str, ...]] = [(name,) for name in (*begin, *rest)]
    together = modalities
    if kind == "ladder" and len(modalities) == 1:
        alone = [()]
    kept = {
        "single": alone,
        "joint": [together],
        "ladder": [*alone, together],
    }[kind]
    return tuple(guided(names, scales) for names in kept)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """How many negatives are let in: `int((time / start) ** rate * M)`.

    None before `start`, then M, and more as time goes on.

    Attributes:
      start: S; 0 lets all in from the beginning.
      rate: exponent.
      unit: of S, one of `UNITS`; "run" counts the whole run as 1.
    """

    start: float
    rate: float
    unit: str

    def admitted(self, clock: Clock, samples: int, most: int) -> jax.Array:
        """How many negatives are let in, an int32 scalar.

        Args:
          clock: how far the run is.
          samples: M, negatives of one level.
          most: negatives of all levels.
        """
        if not self.start:
            return jnp.int32(most)
        time = clock.time(self.unit) / self.start * _REACHED
        # The power is held below what int32 can hold.
        count = jnp.minimum(time**self.rate * samples, most)
        return jnp.where(time < 1, 0, count.astype(jnp.int32))


class RampedUniform(Uniform):
    """Uniform negatives, let in as GDNSM lets generated ones in.

    What is left of GDNSM when the diffusion model is taken away.

    Attributes:
      samples: M, those that are let in first; `count` are let in at last.
      start, rate, unit: see `Ramp`.
    """

    samples: int = 2
    start: float = 30.0
    rate: float = 1.0
    unit: str = "epochs"

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Draws `[B, K]` items, of which the first few count."""
        drawn = super().__call__(encoded, inputs, batch, clock)
        ramp = Ramp(self.start, self.rate, self.unit)
        count = ramp.admitted(clock, self.samples, self.count)
        return dataclasses.replace(
            drawn,
            weights=drawn.weights * (jnp.arange(self.count) < count),
            metrics={"admitted": count.astype(jnp.float32)},
        )
