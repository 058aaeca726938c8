"""Which interactions stand where in endless streams of them.

`data/batches.py` cuts these streams into batches. Everything here is a pure
function of positions and keys, on the host in NumPy and in tf.data the same to
the last bit.
"""

from __future__ import annotations

import math

import numpy as np

# Interactions are cut into so many parts at most,
_PARTS = 256
# and into none smaller than this: a batch has as many of each part.
_PART = 65_536

_ROUNDS = 6
# What the newest interaction weighs, where they weigh by age; the oldest, 1.
_NEWEST = 2**20

# Odd multipliers, as hash finalisers use them; products wrap at 2^32.
_MULTIPLY = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)


class NumPy:
    """What NumPy and TensorFlow do differently."""

    shift = staticmethod(np.right_shift)
    searchsorted = staticmethod(np.searchsorted)

    @staticmethod
    def cast(x, dtype):
        """Another type; what does not fit wraps."""
        return np.asarray(x).astype(dtype)

    @staticmethod
    def walk(encipher, index, key, size):
        """Enciphers until all are in range again; see `permute`."""
        x, key, size = np.broadcast_arrays(encipher(index, key), key, size)
        shape, x, key, size = x.shape, x.flatten(), key.ravel(), size.ravel()
        # Only those that are still outside: after a few rounds hardly any.
        out = np.flatnonzero(x >= size)
        while out.size:
            x[out] = encipher(x[out], key[out])
            out = out[x[out] >= size[out]]
        return x.reshape(shape)


class TensorFlow:
    """The same of tensors."""

    def __init__(self):
        import tensorflow as tf

        self.shift, self.cast = tf.bitwise.right_shift, tf.cast

        def searchsorted(ordered, values, side):
            found = tf.searchsorted(
                ordered, tf.reshape(values, [-1]), side, tf.int64
            )
            return tf.reshape(found, tf.shape(values))

        self.searchsorted = searchsorted

        def walk(encipher, index, key, size):
            return tf.while_loop(
                lambda x: tf.reduce_any(x >= size),
                lambda x: (tf.where(x >= size, encipher(x, key), x),),
                (encipher(index, key),),
            )[0]

        self.walk = walk


def _mix(xp, x, key):
    """Scrambles uint32 `x` under a uint32 key."""
    x = (x ^ key) * _MULTIPLY[0]
    x = (x ^ xp.shift(x, 15)) * _MULTIPLY[1]
    x = (x ^ xp.shift(x, 13)) * _MULTIPLY[2]
    return x ^ xp.shift(x, 16)


def _encipher(xp, x, key, half: int):
    """A Feistel network: a keyed bijection of `[0, 4**half)`, int64."""
    mask = 2**half - 1
    left = xp.cast(xp.shift(x, half), "uint32")
    right = xp.cast(x & mask, "uint32")
    for _ in range(_ROUNDS):
        key = key + _MULTIPLY[0]
        left, right = right, left ^ (_mix(xp, right, key) & mask)
    return xp.cast(left, "int64") * 2**half + xp.cast(right, "int64")


def permute(index, key, size: int, xp=NumPy):
    """Maps indices through a keyed permutation of `[0, size)`.

    Indices that leave the range are enciphered again until they return
    (cycle walking), which keeps the map a bijection of the range.

    Args:
      index: int64, in `[0, size)`.
      key: uint32, of the same shape.
      size: length of the range; or one for each index, none much smaller
        than another.
      xp: NumPy, or TensorFlow.
    """
    half = _half_bits(int(np.max(size)))
    return xp.walk(lambda x, key: _encipher(xp, x, key, half), index, key, size)


def _half_bits(size: int) -> int:
    return max(1, math.ceil((size - 1).bit_length() / 2))


def stream_order(start, offsets, seed: int, size, part=0, parts=1, xp=NumPy):
    """The interactions at some positions of endless streams.

    Args:
      start: int64, first position.
      offsets: int64, any shape, added to it.
      seed: in `[0, 2**32)`.
      size: number of interactions in the stream of each offset.
      part: number of the stream of each offset.
      parts: how many streams there are.
      xp: NumPy, or TensorFlow.

    Returns:
      int64 indices of interactions of the streams, in the shape of `offsets`.
    """
    position = start + offsets
    passes = xp.cast(position // size * parts + part, "uint32")
    # Mixed twice: passes ^ seed alone would give seed 1 the passes of seed 0,
    # two by two exchanged.
    key = _mix(xp, _mix(xp, passes, 0), seed)
    return permute(position % size, key, size, xp)


def hashed(start, offsets, seed: int, part, xp=NumPy):
    """Random numbers for some positions of endless streams.

    Args:
      start: int64, first position.
      offsets: int64, any shape, added to it.
      seed: in `[0, 2**32)`.
      part: number of the stream of each offset.
      xp: NumPy, or TensorFlow.

    Returns:
      int64 in `[0, 2**62)`, in the shape of `offsets`.
    """
    position = start + offsets
    low = xp.cast(position & (2**32 - 1), "uint32")
    high = xp.cast(xp.shift(position, 32), "uint32")
    part = xp.cast(part + 0 * offsets, "uint32")
    key = _mix(xp, high, _mix(xp, _mix(xp, part, 0), seed))
    first = xp.cast(_mix(xp, low, key), "int64")
    second = xp.cast(_mix(xp, low, key + _MULTIPLY[0]), "int64")
    return first * 2**30 + xp.shift(second, 2)


def by_age(times: np.ndarray, half_life: float) -> np.ndarray:
    """What interactions weigh that count for half as much at some age.

    Args:
      times: int64 `[n]`.
      half_life: in their unit.

    Returns:
      int64 `[n]`, at least 1.
    """
    age = (times.max() - times).astype(np.float64)
    weights = _NEWEST * np.exp2(-age / half_life)
    return np.maximum(np.rint(weights).astype(np.int64), 1)


def count_parts(interactions: int, batch: int) -> int:
    """How many parts the interactions are cut into.

    A power of two that divides the batch, whatever the number of hosts.

    Args:
      interactions: in all.
      batch: examples of one step.
    """
    parts = math.gcd(batch, _PARTS)
    while parts > 1 and interactions < parts * _PART:
        parts //= 2
    return parts


def cuts(
    parts: int, interactions: int, cumulative: np.ndarray | None
) -> np.ndarray:
    """Where parts begin and end, `[parts + 1]`: of equal size, or weight."""
    if cumulative is None:
        return interactions * np.arange(parts + 1) // parts
    inside = cumulative[-1] // parts * np.arange(1, parts)
    inner = np.searchsorted(cumulative, inside, "left") + 1
    return np.concatenate([[0], inner, [interactions]])
