"""Confidence intervals of means over users, by the bootstrap.

Stands beside `metrics.py` on the way of the data: what that gives each user,
is resampled here.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from neggen_jax.errors import InputError

RESAMPLES = 1000
# Above as many users, means of resamples are as good as normal, and drawing
# them costs more than it tells.
MANY = 30_000


def bootstrap(
    values: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap interval of the mean of each column.

    A resample is n users drawn with replacement, the same ones for every
    column; the interval lies between the quantiles of its means (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Of more
    than `MANY` users it is the limit that this has: mean -+ z s / sqrt(n),
    with s^2 = sum (x - mean)^2 / n.

    Args:
      values: float `[n, m]`, a row a user.
      confidence: level of the interval.
      resamples: how many are drawn.
      seed: of the draws.

    Returns:
      float64 `[m]` and `[m]`: where the intervals begin and end.

    Raises:
      InputError: if there is no user.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if values.ndim != 2 or not n:
        raise InputError(
            "There is nobody to draw from.",
            expected="values of shape [n, m], n >= 1",
            found=f"shape {values.shape}",
        )
    tail = (1 - confidence) / 2
    if n > MANY:
        mean = values.mean(axis=0)
        reach = stats.norm.isf(tail) * values.std(axis=0) / np.sqrt(n)
        return mean - reach, mean + reach
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for number in range(resamples):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        means[number] = times @ values / n
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high
