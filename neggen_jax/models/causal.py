"""NegGen's causal module: what of an item its counterfactual lacks.

Ji et al., "Generating negative samples for multi-modal recommendation", ACM
MM 2025. The modalities of an item attend to one another, as they are and as
they were rewritten; the causal effect is what differs between the two.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.data.rewritten import Rewritten
from neggen_jax.errors import InputError
from neggen_jax.ops import wide

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
        mixed = attention(jnp.stack(tokens), there[..., None])
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

    Multi-head scaled dot-product attention (Vaswani et al., 2017). As it is
    usually computed, these are very many products of tiny matrices, over
    which CPUs take several times as long: here all entries of a pair of
    tokens are multiplied, and added up head by head.

    Attributes:
      heads: h; they divide the width of tokens.
    """

    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array, there: jax.Array) -> jax.Array:
        """Attends.

        Args:
          tokens: `[m, ..., d]`.
          there: bool, broadcasts to `[m, ...]`: which are.

        Returns:
          `[..., d]`; zeros where none is.
        """
        dim = tokens.shape[-1]
        if dim % self.heads:
            raise InputError(
                "The heads of the attention do not divide its width.",
                where="config.negatives, heads of the counterfactual source",
                expected=f"a divisor of {dim}, config.encoder.dim",
                found=self.heads,
            )
        width = dim // self.heads
        mapped = wide.Dense(3 * dim, name="query_key_value")(tokens)
        queries, keys, values = jnp.split(mapped, 3, axis=-1)
        # Which entries are of which head, `[d, h]`.
        heads = np.repeat(np.eye(self.heads, dtype=tokens.dtype), width, axis=0)
        shares = there / jnp.maximum(there.sum(0), 1)
        mean = jnp.zeros(())
        for query, share in zip(queries, shares, strict=True):
            logits = []
            for key, known in zip(keys, there, strict=True):
                logit = (query * key) @ heads / math.sqrt(width)
                never = jnp.finfo(logit.dtype).min
                logits.append(jnp.where(known[..., None], logit, never))
            top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
            exps = [jnp.exp(logit - top) for logit in logits]
            # The mean before the last layer, which is linear, is that after.
            scale = share[..., None] / functools.reduce(jnp.add, exps)
            for exp, value in zip(exps, values, strict=True):
                mean += (exp * scale) @ heads.T * value
        out = wide.Dense(dim, name="out")(mean)
        return jnp.where(there.any(0)[..., None], out, 0)
