"""NegGen: negatives that are the item itself, rewritten.

Ji et al., "Generating negative samples for multi-modal recommendation", ACM
MM 2025. A language model has described each item and then changed its key
attributes (`neggen_jax/generation/`). The causal module learns what the two
differ by, and items are ranked by their embedding plus that effect.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from neggen_jax.data import rewritten
from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.models.causal import CausalEffect, Effect
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source

SCORES = ("symmetric", "paper")


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
      everywhere: compute the effect of all items in every step, so that all
        losses and sources see embeddings with it; otherwise they see those
        of the encoder, and only the positives' effects are computed.
    """

    strength: float = 0.4
    score: str = "symmetric"
    modalities: tuple[str, ...] = ()
    heads: int = 8
    everywhere: bool = False

    def needs(self) -> Needs:
        """The counterfactuals."""
        return Needs(counterfactuals=True)

    def setup(self) -> None:  # noqa: D102
        self.effect = CausalEffect(self.heads, self.modalities)

    def extend(
        self, encoded: Encoded, inputs: Inputs, training: bool
    ) -> Encoded:
        """Adds the causal effect to all items.

        Where it is batches that bring counterfactuals, there are no tables to
        read it from, and whoever ranks brings them block by block.
        """
        skipped = training and not self.everywhere
        if skipped or not inputs.counterfactuals.tables:
            return encoded
        rows = rewritten.rows(inputs.counterfactuals, {}, None)
        effect = self.effect(rows, encoded.items.shape[1])
        return dataclasses.replace(
            encoded,
            items=encoded.items + self.strength * effect.factual,
            added=encoded.added | {str(self.name): (encoded.items, effect)},
        )

    def __call__(
        self, encoded: Encoded, inputs: Inputs, batch: Batch, clock: Clock
    ) -> Negatives:
        """Gives each positive its counterfactuals, `[B, K, d]`."""
        items = batch["items"]
        if self.everywhere:
            table, effects = encoded.added[str(self.name)]
            base = table[items]
            effect: Effect = jax.tree.map(lambda x: x[items], effects)
        else:
            base = encoded.items[items]
            rows = rewritten.rows(inputs.counterfactuals, batch, items)
            effect = self.effect(rows, base.shape[1])
        vectors = effect.counterfactual
        if self.score == "symmetric":
            vectors = base[:, None] + self.strength * vectors
        weights = effect.present.astype(jnp.float32)
        return Negatives(
            vectors,
            weights,
            positives=base + self.strength * effect.factual,
            effect=effect,
        )
