"""BM3.

Zhou et al., "Bootstrap latent representations for multi-modal
recommendation", WWW 2023. It learns without negatives: what a predictor makes
of a user is to be where the item is that they chose, and the reverse (eq.
7-8, the loss `bootstrap`), and what it makes of an item's text or image where
the item is, and the text or image itself (eq. 10-11, `content_bootstrap`).
What is met has no gradient, and some of it is dropped.
"""

from __future__ import annotations

import flax.linen as nn

from neggen_jax.data.inputs import Inputs, Needs
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.models.lightgcn import propagate
from neggen_jax.models.projected import Projection


class BM3(Encoder):
    """LightGCN with a residual for items, seen through a linear predictor.

    Features stay as they are; the authors' code trains them, too.

    Attributes:
      layers: propagation steps on the user-item graph.
      modalities: which ones to read; () reads all.
    """

    layers: int = 1
    modalities: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """The user-item graph and the feature matrices."""
        return Needs(
            user_item=True,
            features=True,
            modalities=tuple(self.modalities),
        )

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        """Returns what the predictor makes of users and items.

        The view "target" holds them before it. Each modality has a view of
        its own, the projected features after the predictor, and one with
        `_target` at the end of its name, these before it.
        """
        ego = self.user_table(), self.item_table()
        users, items = propagate(inputs.user_item, *ego, self.layers)
        items += ego[1]
        xavier = nn.initializers.xavier_normal()
        predictor = Projection(self.dim, xavier, name="predictor")
        predicted_users = predictor((users,))
        online = predicted_users.whole(), predictor((items,)).whole()
        views = {"ego": ego, "target": (users, items)}
        present = {}
        for name in sorted(self.modalities or inputs.features):
            matrix = inputs.features[name]
            project = Projection(self.dim, xavier, name=f"embed_{name}")
            content = project((matrix.values,))
            views[name] = online[0], content.then(predicted_users)
            views[f"{name}_target"] = users, content
            present[name] = matrix.present.astype(users.dtype)[:, None]
        return Encoded(*online, views, present=present)
