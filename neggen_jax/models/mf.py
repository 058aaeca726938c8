"""Matrix factorisation.

Koren, Bell and Volinsky, "Matrix factorization techniques for recommender
systems", IEEE Computer 2009; trained pairwise as in Rendle et al., "BPR",
UAI 2009.
"""

from __future__ import annotations

import flax.linen as nn

from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded, Encoder


class MF(Encoder):
    """One free vector for every user and item."""

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns the tables themselves."""
        users, items = self.user_table(), self.item_table()
        return Encoded(users, items, {"ego": (users, items)})
