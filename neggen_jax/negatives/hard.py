"""Hard negatives: items that are chosen by their scores from several drawn.

Candidates are uniform over the user's non-positives, so that none of these
ever gives a user one of their own train positives. No gradient goes through
the choice.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.catalogue import at_items, uniform
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source

SIMILARITIES = ("product", "cosine")


def candidates(
    key: jax.Array, inputs: Inputs, users: jax.Array, count: int, several: int
) -> jax.Array:
    """Uniform non-positives to choose from, int32 `[B, K, N]`.

    Args:
      key: of the draw.
      inputs: with the positives.
      users: int32 `[B]`.
      count: K.
      several: N.
    """
    shape = len(users), count, several
    asked = jnp.broadcast_to(users[:, None, None], shape)
    return uniform(key, inputs.positives, asked)


def pick(several: jax.Array, place: jax.Array) -> jax.Array:
    """Of `[B, K, N]` the one at a place int `[B, K]`, `[B, K]`."""
    return jnp.take_along_axis(several, place[..., None], axis=-1)[..., 0]


def scores(users: jax.Array, items: jax.Array) -> jax.Array:
    """Inner products of `[B, d]` with `[B, K, N, d]`, `[B, K, N]`."""
    return jnp.einsum("bd,bknd->bkn", users, items)


class _Chosen(Source):
    """Draws candidates, scores them, and takes one of each set.

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform draws for each.
    """

    with_positives: ClassVar[bool] = True

    count: int = 1
    candidates: int = 8

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Draws `[B, K]` items."""
        key = self.make_rng("negatives")
        users = batch["users"]
        drawn = candidates(key, inputs, users, self.count, self.candidates)
        # Which one is chosen is no function that could be differentiated.
        fixed = jax.lax.stop_gradient(encoded)
        place = self._place(
            fixed.take(fixed.users, users),
            fixed.take(fixed.items, drawn),
            fixed,
            batch,
        )
        return at_items(encoded, pick(drawn, place), batch)

    def _place(
        self, users: jax.Array, items: jax.Array, fixed: Encoded, batch: Batch
    ) -> jax.Array:
        """Which candidate is taken, int `[B, K]`.

        Args:
          users: `[B, d]`.
          items: of the candidates, `[B, K, N, d]`.
          fixed: what both were taken from.
          batch: positive pairs.
        """
        raise NotImplementedError


class DNS(_Chosen):
    """Dynamic negative sampling (Zhang et al., SIGIR 2013).

    Of the candidates, the one that the user scores highest at the moment.

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform draws for each.
    """

    def _place(
        self, users: jax.Array, items: jax.Array, fixed: Encoded, batch: Batch
    ) -> jax.Array:
        return jnp.argmax(scores(users, items), axis=-1)


class TopOfDNS(_Chosen):
    """DNS(M, N): a uniform draw from the M hardest of N candidates.

    Shi et al., "On the theories behind hard negative sampling for
    recommendation", WWW 2023. With BPR it estimates the one-way partial AUC
    whose range of false positive rates ends at M / N: the shorter the lists
    that are to be good, the smaller that is best. M = 1 is DNS, M = N uniform.

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform draws for each.
      top: M, of which each is as likely.
    """

    candidates: int = 32
    top: int = 4

    def _place(
        self, users: jax.Array, items: jax.Array, fixed: Encoded, batch: Batch
    ) -> jax.Array:
        _, best = jax.lax.top_k(scores(users, items), self.top)
        key = self.make_rng("negatives")
        which = jax.random.randint(key, best.shape[:-1], 0, self.top)
        return pick(best, which)


class AHNS(_Chosen):
    """Adaptive hardness: the easier, the higher the positive is scored.

    Lai et al., "Adaptive hardness negative sampling for collaborative
    filtering", AAAI 2024. Of the candidates, the one that is nearest to the
    hardness that is wanted, `argmin |s_uj - beta (s_ui + alpha) ** (p + 1)|`,
    where `s_ui` is the positive's score: as a share of the positive's,
    `beta (s_ui + alpha) ** p`, that falls as the positive's score rises, for
    p < 0. Defaults are those of the released code, which are meant to be
    chosen for each catalogue.

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform draws for each.
      alpha: added to the positive's score.
      beta: factor on the hardness.
      power: p; at 0 the hardness is a fixed share of the positive's score.
      similarity: what scores are, "product" (as released), or "cosine", of
        which all are of the same size from the beginning to the end.
      floor: the least that `s_ui + alpha` counts as. Of a positive that is
        scored below -alpha, the power changes its sign, or is none: the
        easiest negative would be taken where the hardest is meant. With
        -1e30, as released, it is (power has to be whole then).
    """

    candidates: int = 32
    alpha: float = 1.0
    beta: float = 0.1
    power: float = -2.0
    similarity: str = "product"
    floor: float = 1e-3

    def _place(
        self, users: jax.Array, items: jax.Array, fixed: Encoded, batch: Batch
    ) -> jax.Array:
        positives = fixed.take(fixed.items, batch["items"])
        if self.similarity == "cosine":
            users, items, positives = map(_unit, (users, items, positives))
        score = (users * positives).sum(-1)[:, None, None]
        base = jnp.maximum(score + self.alpha, self.floor)
        wanted = self.beta * base ** (self.power + 1)
        return jnp.argmin(jnp.abs(scores(users, items) - wanted), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    size = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(size, 1e-12)
