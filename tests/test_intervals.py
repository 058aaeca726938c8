"""Intervals of means: their definition, and how often they hold."""

import numpy as np
import pytest

from neggen_jax import intervals
from neggen_jax.errors import InputError
from neggen_jax.intervals import bootstrap


def reference(column, confidence, resamples, seed):
    """One column, one user after the other."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = rng.integers(len(column), size=len(column))
        means.append(sum(float(column[user]) for user in drawn) / len(column))
    means.sort()

    def quantile(share):
        at = share * (resamples - 1)
        low = int(at)
        high = min(low + 1, resamples - 1)
        return means[low] + (at - low) * (means[high] - means[low])

    return quantile((1 - confidence) / 2), quantile((1 + confidence) / 2)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_each_column_is_resampled_as_the_reference_does(confidence):
    values = np.random.default_rng(3).random((37, 2))
    options = {"confidence": confidence, "resamples": 101, "seed": 5}
    ends = np.stack(bootstrap(values, **options), axis=1)
    for column, got in zip(values.T, ends, strict=True):
        want = reference(column, **options)
        # Sums in another order: some ulps.
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_intervals_hold_the_mean_as_often_as_they_say():
    """Skewed values, as recall has: most are 0, some 1/2, some 1."""
    chances, values = [0.7, 0.1, 0.2], np.array([0.0, 0.5, 1.0])
    true = float(np.dot(chances, values))
    # One column of 200 users is one study; the same draws serve them all,
    # which makes no single interval any less one.
    users = np.random.default_rng(0).choice(values, (200, 2000), p=chances)
    low, high = bootstrap(users, resamples=500, seed=1)
    held = ((low <= true) & (true <= high)).mean()
    # Percentile intervals hold a little less often than 0.95 (the known bias
    # of order 1/n); 0.925 is 5 standard errors of 2,000 studies below.
    assert 0.925 < held < 0.965
    assert (high < true).mean() < 0.05
    assert (low > true).mean() < 0.05


def test_many_users_have_the_limit_of_the_bootstrap(monkeypatch):
    values = np.random.default_rng(2).random((2_000, 3))
    drawn = np.stack(bootstrap(values, resamples=4_000))
    monkeypatch.setattr(intervals, "MANY", 1_000)
    limit = np.stack(bootstrap(values))
    # The ends are quantiles of 4,000 draws: a standard error of about 0.04
    # of the mean's own, 0.29 / sqrt(2000).
    np.testing.assert_allclose(drawn, limit, atol=5 * 0.04 * 0.29 / 2_000**0.5)


def test_the_same_seed_gives_the_same_and_nobody_is_an_error():
    values = np.random.default_rng(1).random((20, 1))
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)
    constant = bootstrap(np.full((9, 1), 0.25))
    assert constant == (0.25, 0.25)
    for shape in ((0, 2), (4,)):
        with pytest.raises(InputError, match="nobody to draw"):
            bootstrap(np.zeros(shape))
