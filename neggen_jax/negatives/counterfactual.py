"""NegGen: negatives that are the item itself, rewritten.

Ji et al., "Generating negative samples for multi-modal recommendation", ACM
MM 2025. A language model has described each item and then changed its key
attributes (`neggen_jax/generation/`). The causal module learns what the two
differ by, and items are ranked by their embedding plus that effect.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from neggen_jax.data import rewritten
from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.errors import InputError
from neggen_jax.models.causal import CausalEffect, Effect
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source

SCORES = ("symmetric", "paper")
LENGTHS = ("free", "embedding")


class Counterfactual(Source):
    """Each positive's own counterfactuals, and the causal effect.

    An item without counterfactuals has no effect, and no negatives.

    Attributes:
      strength: lambda; items are scored, and ranked, by their embedding plus
        lambda times their causal effect c.
      score: what a counterfactual is scored by: "symmetric", the embedding
        plus lambda c~, or "paper", c~ alone, as the authors' code has it.
      modalities: whose counterfactuals count; () takes all.
      heads: of the attention over modalities.
      effect: what c is, "difference" or "content"; see `CausalEffect`.
      length: that of effects where they are added to embeddings: "free", as
        the module gives it, or "embedding", that of the item's embedding.
        L_align compares directions alone, and leaves lengths to chance.
      contrast: whether counterfactuals are negatives. If not, they count for
        nothing in any loss, and "content" does not read them at all.
    """

    strength: float = 0.4
    score: str = "symmetric"
    modalities: tuple[str, ...] = ()
    heads: int = 8
    effect: str = "difference"
    length: str = "free"
    contrast: bool = True

    def needs(self) -> Needs:
        """The counterfactuals."""
        return Needs(counterfactuals=True)

    def setup(self) -> None:  # noqa: D102
        for name, known in (("score", SCORES), ("length", LENGTHS)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"Unknown {name} of counterfactuals.",
                    where=f"config.negatives.{self.name}.{name}",
                    expected=" or ".join(known),
                    found=getattr(self, name),
                )
        self.causal = CausalEffect(self.heads, self.modalities, self.effect)

    def extend(self, encoded: Encoded, inputs: Inputs) -> Encoded:
        """Adds the causal effect to all items.

        Where it is batches that bring counterfactuals, there are no tables to
        read it from, and whoever ranks brings them block by block.
        """
        if not inputs.counterfactuals.tables:
            return encoded
        rows = rewritten.rows(inputs.counterfactuals, {}, None)
        effect = self.causal(rows, encoded.items.shape[1])
        table: Any = encoded.items
        items = self.moved(table, effect.factual)
        return dataclasses.replace(encoded, items=items)

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Gives each positive its counterfactuals, `[B, K, d]`."""
        items = batch["items"]
        base = encoded.take(encoded.items, items)
        known = inputs.counterfactuals
        rows = rewritten.rows(known, batch, items, picked=True)
        effect: Effect = self.causal(rows, base.shape[1])
        vectors = effect.counterfactual
        if self.score == "symmetric":
            vectors = self.moved(base[:, None], vectors)
        if not self.contrast:
            effect = dataclasses.replace(
                effect, present=jnp.zeros_like(effect.present)
            )
        weights = effect.present.astype(jnp.float32)
        return Negatives(
            vectors,
            weights,
            positives=self.moved(base, effect.factual),
            effect=effect,
        )

    def moved(self, items: jax.Array, effects: jax.Array) -> jax.Array:
        """Embeddings plus lambda times effects `[..., d]`."""
        if self.length == "embedding":
            effects = _as_long(effects, jax.lax.stop_gradient(items))
        return items + self.strength * effects


def _as_long(x: jax.Array, other: jax.Array) -> jax.Array:
    """Vectors at the lengths of others."""
    # As rows: over the last of [n, 1, d], sums take six times as long on CPU.
    rows = x.reshape(-1, x.shape[-1])
    others = jnp.broadcast_to(other, x.shape).reshape(rows.shape)
    return (rows * (_length(others) / _length(rows))).reshape(x.shape)


def _length(rows: jax.Array) -> jax.Array:
    # The floor keeps the gradient of a zero row finite.
    square = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return jnp.sqrt(square + 1e-12)
