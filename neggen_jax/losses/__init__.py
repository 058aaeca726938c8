"""Losses: pure functions of what was encoded, the batch and its negatives.

Each takes `(encoded, batch, negatives)` and keywords from the config, and
returns a scalar. `negatives` maps the names that the config gave its sources
to what they drew. A loss that draws random numbers asks for a `key`, which is
one of the step's. All means are over the batch, in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from neggen_jax.losses.bootstrapped import bootstrap, content_bootstrap
from neggen_jax.losses.contrast import alignment, infonce
from neggen_jax.losses.ranking import bpr, content_bpr, l2, softmax

LOSSES: dict[str, Callable[..., jax.Array]] = {
    "alignment": alignment,
    "bootstrap": bootstrap,
    "bpr": bpr,
    "content_bootstrap": content_bootstrap,
    "content_bpr": content_bpr,
    "infonce": infonce,
    "l2": l2,
    "softmax": softmax,
}
