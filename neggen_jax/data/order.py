"""Which interactions stand where in endless streams of them.

`data/batches.py` cuts these streams into batches. Everything here is a pure
function of positions and keys, the same in NumPy and in C++ to the last bit.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np

from neggen_jax.ops.library import load

# Interactions are cut into so many parts at most,
_PARTS = 256
# and into none smaller than this: a batch has as many of each part.
_PART = 65_536

_ROUNDS = 6
# What the newest interaction weighs, where they weigh by age; the oldest, 1.
_NEWEST = 2**20

# Odd multipliers, as hash finalisers use them; products wrap at 2^32.
_MULTIPLY = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)


def _mix(x, key):
    """Scrambles uint32 `x` under a uint32 key."""
    x = (x ^ key) * _MULTIPLY[0]
    x = (x ^ x >> 15) * _MULTIPLY[1]
    x = (x ^ x >> 13) * _MULTIPLY[2]
    return x ^ x >> 16


def _encipher(x, key, half: int):
    """A Feistel network: a keyed bijection of `[0, 4**half)`, int64."""
    mask = np.uint32(2**half - 1)
    left, right = _wrapped(x >> half), _wrapped(x) & mask
    for _ in range(_ROUNDS):
        key = key + _MULTIPLY[0]
        left, right = right, left ^ (_mix(right, key) & mask)
    return left.astype(np.int64) << half | right


def permute(index, key, size):
    """Maps indices through a keyed permutation of `[0, size)`.

    Indices that leave the range are enciphered again until they return
    (cycle walking), which keeps the map a bijection of the range.

    Args:
      index: int64, in `[0, size)`.
      key: uint32, of the same shape.
      size: length of the range; or one for each index, none much smaller
        than another.
    """
    half = _half_bits(int(np.max(size)))
    index, key, size = np.broadcast_arrays(index, key, size)
    if (library := load()) is not None:
        return _permute_natively(library, index, key, size, half)
    shape, key, size = index.shape, key.ravel(), size.ravel()
    x = _encipher(index.ravel(), key, half)
    # Only those that are still outside: after a few rounds hardly any.
    out = np.flatnonzero(x >= size)
    while out.size:
        x[out] = _encipher(x[out], key[out], half)
        out = out[x[out] >= size[out]]
    return x.reshape(shape)


def _permute_natively(library: ctypes.CDLL, index, key, size, half: int):
    """The same by `ops/cc/permute.h`, which lets other threads run."""
    kinds = np.int64, np.uint32, np.int64
    given = map(np.ascontiguousarray, (index, key, size), kinds)
    out = np.empty(index.shape, np.int64)
    *read, made = (x.ctypes.data_as(ctypes.c_void_p) for x in (*given, out))
    count, half_bits = map(ctypes.c_int64, (index.size, half))
    library.neggen_permute(*read, count, half_bits, made)
    return out


def _half_bits(size: int) -> int:
    return max(1, math.ceil((size - 1).bit_length() / 2))


def stream_order(start, offsets, seed: int, size, part=0, parts=1):
    """The interactions at some positions of endless streams.

    Args:
      start: int64, first position.
      offsets: int64, any shape, added to it.
      seed: in `[0, 2**32)`.
      size: number of interactions in the stream of each offset.
      part: number of the stream of each offset.
      parts: how many streams there are.

    Returns:
      int64 indices of interactions of the streams, in the shape of `offsets`.
    """
    position = start + offsets
    passes = _wrapped(position // size * parts + part)
    # Mixed twice: passes ^ seed alone would give seed 1 the passes of seed 0,
    # two by two exchanged.
    key = _mix(_mix(passes, 0), seed)
    return permute(position % size, key, size)


def hashed(start, offsets, seed: int, part):
    """Random numbers for some positions of endless streams.

    Args:
      start: int64, first position.
      offsets: int64, any shape, added to it.
      seed: in `[0, 2**32)`.
      part: number of the stream of each offset.

    Returns:
      int64 in `[0, 2**62)`, in the shape of `offsets`.
    """
    position = start + offsets
    low, high = _wrapped(position), _wrapped(position >> 32)
    key = _mix(high, _mix(_mix(_wrapped(part + 0 * offsets), 0), seed))
    first = _mix(low, key).astype(np.int64)
    second = _mix(low, key + _MULTIPLY[0]).astype(np.int64)
    return first * 2**30 + (second >> 2)


def _wrapped(x):
    """As uint32, modulo 2^32."""
    return np.asarray(x).astype(np.uint32)


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
