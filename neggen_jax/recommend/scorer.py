"""The ranking of a run as a program that needs nothing of this package.

`jax.export` serialises it as StableHLO, for CPUs, TPUs and NVIDIA's GPUs, and
for any number of users. It ranks in the tiles of `ops/ranking.py`: on CPU the
lists are those of an evaluation, ties included; with more than 512 entries a
vector, up to the rounding of scores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from neggen_jax.ops import ranking

PLATFORMS = ("cpu", "tpu", "cuda")
_TILE = ranking.TILE_QUERIES


class _Plain:
    """Chooses by what every platform has."""

    def choose(self, scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        values, columns = jax.lax.top_k(scores, k)
        return values, columns

    merge = choose


class _Sorting:
    """Sorts, where `top_k` as JAX writes it is not understood."""

    def choose(self, scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        columns = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        # Stable: of equal scores the first stays first.
        down, columns = jax.lax.sort((-scores, columns), num_keys=1)
        return -down[:, :k], columns[:, :k]

    merge = choose


def scorer(
    num_items: int, k: int, chooser: _Plain | _Sorting | None = None
) -> Callable[..., Any]:
    """The program.

    Args:
      num_items: to rank.
      k: length of the lists.
      chooser: how it finds the highest; by `top_k` if None.

    Returns:
      A function of queries float32 `[b, d]`, items float32 `[num_items, d]`
      and seen int32 `[b, m]`, items that each query leaves out, -1 for none.
      It gives scores float32 `[b, k]`, descending, and items int32 `[b, k]`;
      -inf and -1 where fewer than k remain. Of equal scores the item with the
      lower number comes first.
    """
    tiles = -(-num_items // ranking.TILE_ITEMS)
    chunks = -(-tiles // ranking.TILES_AT_ONCE)
    width = -(-tiles // chunks) * ranking.TILE_ITEMS

    def score(
        queries: jax.Array, items: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        count, dim = queries.shape
        # Written so that the count may be unknown.
        room = (count + _TILE - 1) // _TILE * _TILE
        padded = jnp.zeros((room, dim), jnp.float32).at[:count].set(queries)
        table = jnp.pad(items, ((0, chunks * width - num_items), (0, 0)))
        rows = jax.lax.broadcasted_iota(jnp.int32, seen.shape, 0)
        # Items past the end are in no chunk.
        gone = jnp.where(seen < 0, chunks * width, seen)
        scores, found = ranking.tile_top_k(
            padded,
            table.reshape(chunks, width, dim),
            ranking.Excluded(rows.reshape(-1), gone.reshape(-1)),
            k,
            num_items,
            chooser or _Plain(),
        )
        scores, found = scores[:count], found[:count]
        return scores, jnp.where(scores == -jnp.inf, -1, found)

    return score


def serialised(num_items: int, dim: int, k: int) -> bytes:
    """The program as bytes, which `jax.export.deserialize` reads."""
    queries, seen = export.symbolic_args_specs(
        (
            jax.ShapeDtypeStruct((1, dim), jnp.float32),
            jax.ShapeDtypeStruct((1, 1), jnp.int32),
        ),
        ("b, ...", "b, m"),
    )
    items = jax.ShapeDtypeStruct((num_items, dim), jnp.float32)
    program = jax.jit(scorer(num_items, k))
    with _nowhere():
        exported = export.export(program, platforms=PLATFORMS)(
            queries, items, seen
        )
    return bytes(exported.serialize())


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    """Leaves out where in this machine's files a program comes from."""
    name = "jax_traceback_in_locations_limit"
    usual = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, usual)


def save_model(directory: str, items: Any, k: int) -> None:
    """Saves the program with its items as a SavedModel of TensorFlow.

    Args:
      directory: to be made.
      items: float32 `[num_items, d]`.
      k: length of the lists.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    # GPUs are TensorFlow's "cuda"; TPUs it reaches by other ways. Its StableHLO
    # is older than JAX's, and lacks the operation that `top_k` has become.
    converted = jax2tf.convert(
        scorer(len(items), k, _Sorting()),
        polymorphic_shapes=["(b, _)", None, "(b, m)"],
        native_serialization_platforms=("cpu", "cuda"),
        with_gradient=False,
    )
    module = tf.Module()
    module.items = tf.Variable(items, trainable=False)
    shape = tf.TensorSpec((None, items.shape[1]), tf.float32, "queries")

    @tf.function(
        autograph=False,
        input_signature=[shape, tf.TensorSpec((None, None), tf.int32, "seen")],
    )
    def score(queries: Any, seen: Any) -> Any:
        scores, found = converted(queries, module.items, seen)
        return {"scores": scores, "items": found}

    module.score = score
    tf.saved_model.save(
        module, directory, signatures={"serving_default": score}
    )
