"""Least squares with a penalty, of more rows than are held at a time."""

from __future__ import annotations

import numpy as np

# Of the penalty: as much as so many rows say.
STRENGTH = 1.0


class Ridge:
    """Finds `given @ matrix + constant` that is nearest to what is wanted."""

    def __init__(self, given: int, wanted: int):
        """Starts without a row.

        Args:
          given: numbers that a row is foreseen from.
          wanted: numbers that are foreseen.
        """
        self._square = STRENGTH * np.eye(given + 1)
        self._product = np.zeros((given + 1, wanted))

    def add(self, given: np.ndarray, wanted: np.ndarray) -> None:
        """Learns from rows, `[n, given]` and `[n, wanted]`."""
        wide = np.pad(np.asarray(given, np.float64), ((0, 0), (0, 1)))
        wide[:, -1] = 1
        self._square += wide.T @ wide
        self._product += wide.T @ np.asarray(wanted, np.float64)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """The matrix and the constant, in float32."""
        solved = np.linalg.solve(self._square, self._product)
        solved = solved.astype(np.float32)
        return solved[:-1], solved[-1]
