"""SMORE.

Ong and Khong, "Spectrum-based modality representation fusion graph
convolutional network for multimodal recommendation", WSDM 2025: modalities
are filtered, and fused by multiplication, in the frequency domain (eq. 1-7);
free vectors of items, gated by each modality and by the fusion, are smoothed
over item-item graphs (eq. 8-13) and handed to users (eq. 14); attention, and
gates of the behaviour on the user-item graph (eq. 15-16), say how much of
each counts (eq. 17-21). An `infonce` between the views "side" and "content"
aligns the two (eq. 22).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.data.inputs import Inputs, ItemGraph, Needs
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.models.lightgcn import propagate
from neggen_jax.models.mgcn import (
    Sides,
    attention,
    check_form,
    handed,
    purified,
    smoothed,
)
from neggen_jax.models.projected import Projection

# Real and imaginary part of each frequency, [..., d // 2 + 1].
Spectrum = tuple[jax.Array, jax.Array]

# The view of all modalities together; also the name of its graph.
_FUSED = "fused"


class SMORE(Encoder):
    """Behaviour, plus modalities and their fusion, denoised by frequency.

    A modality that an item lacks is left out of its fusion, of the attention
    over modalities and of what is added up.

    Attributes:
      layers: propagation steps on the user-item graph.
      item_layers: propagation steps on each item-item graph.
      neighbours: nearest items kept for each item, itself included; of all
        modalities, where the authors choose for each.
      dropout: share of the gates' entries left out while training.
      form: "paper" weighs modalities by a softmax over them, and adds the
        fusion to their mean (eq. 17-21); "released" takes the softmax over
        the entries of a vector, for each modality, and the mean with the
        fusion among them, so that single modalities hardly count.
      modalities: which ones to read; () reads all. Features stay as they
        are; the authors' code trains them, too.
    """

    layers: int = 3
    item_layers: int = 1
    neighbours: int = 10
    dropout: float = 0.0
    form: str = "paper"
    modalities: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """User-item graph, features, their item graphs and the maximum."""
        modalities = tuple(self.modalities)
        graph = ItemGraph(self.neighbours, "cosine", modalities, pool=True)
        return Needs(
            user_item=True,
            features=True,
            item_item=graph,
            modalities=modalities,
        )

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns content + side; views hold the two apart."""
        check_form(self.form)
        ego = self.user_table(), self.item_table()
        content = propagate(inputs.user_item, *ego, self.layers)
        names = sorted(self.modalities or inputs.features)
        there = {name: inputs.features[name].present for name in names}
        filtered = self._filtered(inputs, there)
        there[_FUSED] = functools.reduce(jnp.logical_or, there.values())
        items = {
            name: smoothed(
                inputs.item_item[name],
                purified(ego[1], signal, there[name], f"gate_{name}"),
                self.item_layers,
            )
            for name, signal in filtered.items()
        }
        users = handed(inputs.user_item, items)
        balance = Balance(self.form, self.dropout, name="balance")
        side = balance(content[0], users, {}), balance(content[1], items, there)
        return Encoded(
            content[0] + side[0],
            content[1] + side[1],
            {"ego": ego, "content": content, "side": side},
        )

    def _filtered(
        self, inputs: Inputs, there: Mapping[str, jax.Array]
    ) -> Sides:
        """Each modality, and their product, after a filter (eq. 1-7)."""
        waves, products = {}, []
        for name, present in there.items():
            project = Projection(self.dim, name=f"embed_{name}")
            values = inputs.features[name].values
            wave = spectrum(project((values,)).whole())
            waves[name] = wave
            # To multiply by 1 is to be left out.
            real = jnp.where(present[:, None], wave[0], 1)
            imaginary = jnp.where(present[:, None], wave[1], 0)
            products.append((real, imaginary))
        waves[_FUSED] = functools.reduce(times, products)
        init = nn.initializers.normal(1.0)
        shape = 2, self.dim // 2 + 1
        out = {}
        for name, wave in waves.items():
            real, imaginary = self.param(f"filter_{name}", init, shape)
            out[name] = signal(times(wave, (real, imaginary)), self.dim)
        return out


class Balance(nn.Module):
    """Modalities and their fusion, weighed and gated (eq. 17-21).

    Attributes:
      form: as of `SMORE`.
      dropout: share of the gates' entries left out, where there is a key.
    """

    form: str
    dropout: float

    @nn.compact
    def __call__(
        self, behaviour: jax.Array, sides: Sides, there: Mapping[str, jax.Array]
    ) -> jax.Array:
        """Weighs; parameters are those of users and items alike.

        Args:
          behaviour: `[n, d]`.
          sides: modality, or "fused" -> `[n, d]`.
          there: the same -> bool `[n]`; one that is not named is all there.

        Returns:
          `[n, d]`.
        """
        dim = behaviour.shape[1]
        names = [name for name in sides if name != _FUSED]
        width = dim if self.form == "released" else 1
        logits = {}
        for name in names:
            hidden = nn.Dense(dim, name=f"attend_{name}")
            query = nn.Dense(width, use_bias=False, name=f"query_{name}")
            logits[name] = query(nn.tanh(hidden(sides[_FUSED])))
        if self.form == "released":
            shares = {k: nn.softmax(x, axis=1) for k, x in logits.items()}
        else:
            flat = {k: x[:, 0] for k, x in logits.items()}
            shares = {k: x[:, None] for k, x in attention(flat, there).items()}
        # Whoever evaluates gives no key.
        drop = nn.Dropout(
            self.dropout, deterministic=not self.has_rng("dropout")
        )
        gated = {
            name: side
            * drop(nn.sigmoid(nn.Dense(dim, name=f"prefer_{name}")(behaviour)))
            for name, side in sides.items()
        }
        single = sum(shares[name] * gated[name] for name in names)
        if self.form == "released":
            return (single + gated[_FUSED]) / len(sides)
        return single / len(names) + gated[_FUSED]


def _waves(dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines and sines `[d, d // 2 + 1]`, and how often each counts."""
    frequencies = np.arange(dim // 2 + 1)
    angles = 2 * np.pi * np.outer(np.arange(dim), frequencies) / dim
    # All but the first, and the last of an even number, stand for two.
    twice = (frequencies > 0) & (2 * frequencies != dim)
    scale = np.sqrt(dim)
    return np.cos(angles) / scale, np.sin(angles) / scale, 1.0 + twice


def spectrum(x: jax.Array) -> Spectrum:
    """The orthonormal Fourier transform of rows of reals `[n, d]`.

    By products with matrices: they are fast for rows this short, and stay
    spread over a mesh, for which compilers gather the table of an FFT.
    """
    cosines, sines, _ = _waves(x.shape[1])
    return x @ cosines.astype(x.dtype), -x @ sines.astype(x.dtype)


def signal(wave: Spectrum, dim: int) -> jax.Array:
    """The inverse of `spectrum`, `[n, d]`."""
    cosines, sines, counts = _waves(dim)
    real, imaginary = wave
    back = (counts * cosines).T, (counts * sines).T
    kind = real.dtype
    return real @ back[0].astype(kind) - imaginary @ back[1].astype(kind)


def times(one: Spectrum, other: Spectrum) -> Spectrum:
    """The product of complex numbers, entry by entry."""
    (a, b), (c, d) = one, other
    return a * c - b * d, a * d + b * c
