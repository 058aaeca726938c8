"""Mean and scale of vectors that may be too many for memory."""

from __future__ import annotations

import numpy as np

from neggen_jax import hosts

_BLOCK = 2**21  # numbers that are read at a time


def moments(
    name: str, values: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the rows that are there, and root mean square about it.

    Process 0 reads them all, by blocks, and tells the others.

    Args:
      name: of the vectors, for the error if process 0 does not come.
      values: float32 `[n, f]`; it may be mapped from disk.
      present: bool `[n]`.

    Returns:
      float32 `[f]`, and a float32 scalar: the root of the mean square over
      all entries, or 1 where that is zero.
    """
    told = hosts.lead(f"moments of {name}", lambda: _read(values, present))
    return np.asarray(told[0], np.float32), np.asarray(told[1], np.float32)


def _read(values: np.ndarray, present: np.ndarray) -> tuple[list[float], float]:
    count, width = max(int(present.sum()), 1), values.shape[1]
    mean, square = np.zeros(width), 0.0
    rows = max(1, _BLOCK // width)
    parts = [slice(n, n + rows) for n in range(0, len(values), rows)]
    for some in parts:
        here = values[some][present[some]]
        mean += here.sum(axis=0, dtype=np.float64) / count
    for some in parts:
        here = values[some][present[some]] - mean
        square += float(np.square(here).sum()) / (count * width)
    return mean.tolist(), float(np.sqrt(square)) or 1.0
