"""Negatives chosen by which of their factors matter to the user."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.hard import candidates, pick
from neggen_jax.negatives.mixed import layers
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source
from neggen_jax.ops import wide


@flax.struct.dataclass
class Factors:
    """Embeddings in two parts, of the same shape, that add up to them.

    Attributes:
      relevant: what drives the user's choice.
      irrelevant: the rest.
    """

    relevant: jax.Array
    irrelevant: jax.Array


class Gates(nn.Module):
    """The hierarchical gating of DENS: four linear layers, two sigmoids.

    `p_r = p * sigmoid(W_p p + W_u u + b)` are the factors of the positive
    that matter to the user; `n_r = n * sigmoid(W_n n + W_r p_r + b)` those of
    a negative that matter beside these.

    Attributes:
      dim: d.
    """

    dim: int

    def setup(self) -> None:  # noqa: D102
        self.user_gate = wide.Dense(self.dim)
        self.item_gate = wide.Dense(self.dim)
        self.positive_gate = wide.Dense(self.dim)
        self.negative_gate = wide.Dense(self.dim)

    def positive(self, users: jax.Array, items: jax.Array) -> Factors:
        """Of positives `[B, d]`, for users `[B, d]`."""
        gate = nn.sigmoid(self.item_gate(items) + self.user_gate(users))
        return Factors(items * gate, items * (1 - gate))

    def negative(self, positive: Factors, items: jax.Array) -> Factors:
        """Of negatives `[B, ..., d]`, beside positives `[B, d]`."""
        beside = self.positive_gate(positive.relevant)
        between = (1,) * (items.ndim - 2)
        beside = beside.reshape(len(beside), *between, self.dim)
        gate = nn.sigmoid(self.negative_gate(items) + beside)
        return Factors(items * gate, items * (1 - gate))


class DENS(Source):
    """Disentangled negative sampling.

    Lai et al., "Disentangled negative sampling for collaborative filtering",
    WSDM 2023. Gates part positives and negatives into factors that matter to
    the user and others. Of the candidates, the one is taken whose relevant
    factors the user scores low and whose irrelevant ones they score high,
    `argmax (1 - w) <u, n_ir> - w <u, n_r>`, with w rising from 0 to
    `relevance` over the warm-up: so it comes to differ from the positive in
    what matters, and in that alone. The gates learn from four contrastive
    tasks, each a BPR: `p_r` over `p_ir`, `n_ir` over `n_r`, `p_r` over `n_r`,
    `n_ir` over `p_ir`; their gradient goes to the embeddings too, as in the
    released code, and none through the choice.

    As there, layers of propagation are gated and chosen apart, by the same
    gates and the user's own layer, and the negative is the mean of what is
    chosen; MF and VBPR have one layer. `items` are those of layer 0.

    Attributes:
      count: K, negatives per positive.
      candidates: N, uniform non-positives for each.
      by_layer: whether layers are gated apart; if not, final embeddings are.
      relevance: w at the end of the warm-up.
      warmup: its length; 0 has none. The released code's is 100 epochs,
        longer than many of the runs here.
      unit: of `warmup`, one of `UNITS`.
      weight: gamma, of the mean of the four tasks, which is this source's own
        loss, "contrast".
    """

    count: int = 1
    candidates: int = 8
    by_layer: bool = True
    relevance: float = 1.0
    warmup: float = 100.0
    unit: str = "epochs"
    weight: float = 0.3

    def needs(self) -> Needs:
        """The layers, where there are any."""
        return Needs(layers=self.by_layer)

    @nn.compact
    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Chooses `[B, K]` items in each layer."""
        key = self.make_rng("negatives")
        drawn = candidates(
            key, inputs, batch["users"], self.count, self.candidates
        )
        gates = Gates(encoded.items.shape[1], name="gates")
        fixed = jax.lax.stop_gradient(encoded)
        vectors, chosen, positives, negatives = [], [], [], []
        for (users, items), still in zip(
            layers(encoded, self.by_layer),
            layers(fixed, self.by_layer),
            strict=True,
        ):
            place = self._place(gates, fixed, still, drawn, batch, clock)
            chosen.append(pick(drawn, place))
            vectors.append(encoded.take(items, chosen[-1]))
            positives.append(
                gates.positive(
                    encoded.take(users, batch["users"]),
                    encoded.take(items, batch["items"]),
                )
            )
            negatives.append(gates.negative(positives[-1], vectors[-1]))
        loss = contrast(
            encoded.take(encoded.users, batch["users"]),
            _mean(positives),
            _mean(negatives),
        )
        weights = jnp.ones(chosen[0].shape, vectors[0].dtype)
        return Negatives(
            _mean(vectors),
            weights,
            chosen[0],
            losses={"contrast": self.weight * loss},
        )

    def _place(
        self,
        gates: Gates,
        fixed: Encoded,
        layer: tuple,
        drawn: jax.Array,
        batch: Batch,
        clock: Clock,
    ) -> jax.Array:
        """Which candidate is taken in a layer, int `[B, K]`."""
        share: jax.Array | float = self.relevance
        if self.warmup:
            time = clock.time(self.unit) / self.warmup
            share = self.relevance * jnp.minimum(time, 1.0)
        users, items = layer
        by_whom = fixed.take(users, batch["users"])
        positive = gates.positive(by_whom, fixed.take(items, batch["items"]))
        parts = gates.negative(positive, fixed.take(items, drawn))
        both = (1 - share) * parts.irrelevant - share * parts.relevant
        return jnp.argmax(jnp.einsum("bd,bknd->bkn", by_whom, both), axis=-1)


def contrast(
    users: jax.Array, positive: Factors, negative: Factors
) -> jax.Array:
    """The mean of DENS's four contrastive tasks, a scalar.

    Args:
      users: `[B, d]`.
      positive: `[B, d]`.
      negative: `[B, K, d]`.
    """

    def score(x: jax.Array) -> jax.Array:
        return jnp.einsum("bd,bkd->bk", users, x)

    def over(better: jax.Array, worse: jax.Array) -> jax.Array:
        return jax.nn.softplus(worse - better).mean()

    ours, theirs = (
        score(x[:, None]) for x in (positive.relevant, positive.irrelevant)
    )
    relevant, irrelevant = score(negative.relevant), score(negative.irrelevant)
    tasks = (
        over(ours, theirs),
        over(irrelevant, relevant),
        over(ours, relevant),
        over(irrelevant, theirs),
    )
    return jnp.stack(tasks).mean()


def _mean(parts: list) -> Any:
    """The mean of several trees."""
    return jax.tree.map(lambda *x: sum(x) / len(x), *parts)
