"""VBPR.

He and McAuley, "VBPR: visual Bayesian personalized ranking from implicit
feedback", AAAI 2016, eq. 4, without its bias terms, and with the features of
all modalities side by side in the place of the visual ones.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.data.new_items import NewItems
from neggen_jax.models.encoder import Encoded, Encoder, Params
from neggen_jax.models.projected import Projected, Projection


class VBPR(Encoder):
    """Free vectors beside a linear projection of the items' features.

    Attributes:
      modalities: which ones to read; () reads all.
    """

    modalities: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """The feature matrices."""
        return Needs(features=True, modalities=tuple(self.modalities))

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns vectors of width `2 dim`: free half, content half."""
        users = self.user_table(dim=2 * self.dim)
        free = self.item_table()
        names = sorted(self.modalities or inputs.features)
        features = tuple(inputs.features[name].values for name in names)
        projection = Projection(
            self.dim, nn.initializers.xavier_normal(), name="projection"
        )
        items = projection(features, free)
        return Encoded(users, items, {"ego": (users, items)})

    def cold(self, params: Params, inputs: Inputs, new: NewItems) -> jax.Array:
        """The content half; the free half is zero."""
        names = sorted(self.modalities or inputs.features)
        features = tuple(new.features[name] for name in names)
        free = jnp.zeros((len(features[0]), self.dim))
        projection = params["projection"]
        return Projected(
            features, projection["kernel"], projection["bias"], free
        ).whole()
