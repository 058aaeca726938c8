"""NegGen's causal module: what of an item its counterfactual lacks.

Ji et al., "Generating negative samples for multi-modal recommendation", ACM
MM 2025. The modalities of an item attend to one another, as they are and as
they were rewritten; the causal effect is what differs between the two.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from neggen_jax.data.rewritten import Rewritten
from neggen_jax.errors import InputError
from neggen_jax.ops import wide
from neggen_jax.ops.attention import attend

# What the effect is read off.
EFFECTS = ("difference", "content")


@flax.struct.dataclass
class Effect:
    """What the causal module says of `n` items.

    Attributes:
      factual: c, `[n, d]`, of the item as it is; 0 where it is not known.
      known: bool `[n]`, whether it is.
      counterfactual: c~, `[n, K, d]`, of each counterfactual.
      present: bool `[n, K]`, whether there is that counterfactual.
    """

    factual: jax.Array
    known: jax.Array
    counterfactual: jax.Array
    present: jax.Array


class CausalEffect(nn.Module):
    """Attention over an item's modalities, and a projection of what differs.

    The released code attends over one token, which is a linear map; here, as
    the paper means it, over one token for each modality.

    Attributes:
      heads: of the attention; they divide the width of embeddings.
      modalities: whose counterfactuals count; the others' tokens stay
        factual in both. () takes all.
      effect: "difference", c = P(h - h~), the mean over an item's
        counterfactuals, as the paper has it; or "content", c = P(h), which
        an item without counterfactuals has too. c~ = P(h~) in both. A
        difference and a content come out of the same P, which can tell them
        apart by their sizes alone: against c~, a content has to tell what
        was changed.
    """

    heads: int = 8
    modalities: tuple[str, ...] = ()
    effect: str = "difference"

    @nn.compact
    def __call__(self, rows: dict[str, Rewritten], dim: int) -> Effect:
        """Computes the effect of `n` items.

        Args:
          rows: modality -> vectors.
          dim: d, of the encoder's embeddings.
        """
        if self.effect not in EFFECTS:
            raise InputError(
                "Unknown kind of causal effect.",
                where="effect",
                expected=f"one of {', '.join(EFFECTS)}",
                found=self.effect,
            )
        inner = wide.Dense(dim, name="project_in")
        outer = wide.Dense(dim, name="project_out")

        def project(x: jax.Array) -> jax.Array:
            return outer(nn.relu(inner(x)))

        tokens, described, changed = [], [], []
        for name, row in sorted(rows.items()):
            embed = wide.Dense(dim, name=f"embed_{name}")
            factual = embed(row.factual)[:, None]
            here = row.present & row.described[:, None]
            if self.modalities and name not in self.modalities:
                here = jnp.zeros_like(here)
            # A modality that was not rewritten is as it was.
            other = embed(row.counterfactual)
            other = jnp.where(here[..., None], other, factual)
            # The item as it is stands beside its counterfactuals.
            tokens.append(jnp.concatenate([factual, other], axis=1))
            described.append(row.described)
            changed.append(here)
        attention = Attention(self.heads, name="attention")
        there = jnp.stack(described)
        mixed = attention(jnp.stack(tokens), there)
        present = jnp.any(jnp.stack(changed), axis=0)
        if self.effect == "content":
            known = jnp.any(there, axis=0)
            every = project(mixed)
            own = jnp.where(known[:, None], every[:, 0], 0.0)
            return Effect(own, known, every[:, 1:], present)
        known = jnp.any(present, axis=1)
        weights = present / jnp.maximum(present.sum(1, keepdims=True), 1)
        effects = project(mixed[:, :1] - mixed[:, 1:])
        own = jnp.einsum("nkd,nk->nd", effects, weights)
        return Effect(own, known, project(mixed[:, 1:]), present)


class Attention(nn.Module):
    """What a few tokens attend to, averaged over those that are there.

    Attributes:
      heads: h; they divide the width of tokens.
    """

    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array, there: jax.Array) -> jax.Array:
        """Attends.

        Args:
          tokens: `[m, n, ..., d]`.
          there: bool `[m, n]`, which are.

        Returns:
          `[n, ..., d]`; zeros where none is.
        """
        dim = tokens.shape[-1]
        if dim % self.heads:
            raise InputError(
                "The heads of the attention do not divide its width.",
                where="config.negatives, heads of the counterfactual source",
                expected=f"a divisor of {dim}, config.encoder.dim",
                found=self.heads,
            )
        mapped = wide.Dense(3 * dim, name="query_key_value")(tokens)
        shares = there / jnp.maximum(there.sum(0), 1)
        # The mean before the last layer, which is linear, is that after.
        mean = attend(mapped, shares, self.heads)
        out = wide.Dense(dim, name="out")(mean)
        some = there.any(0).reshape(-1, *[1] * (out.ndim - 1))
        return jnp.where(some, out, 0)
