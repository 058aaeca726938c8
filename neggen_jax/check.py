"""Values of a config that no other room would refuse in time.

Unknown names and keywords are refused where parts are built; here stand the
bounds and the choices of values, so that a run that cannot work stops before
it computes anything.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from neggen_jax.catalog import Catalog
from neggen_jax.config import flatten
from neggen_jax.data import batches
from neggen_jax.errors import InputError, nearest
from neggen_jax.negatives import difficulty, process
from neggen_jax.partition import Partition

_METRICS = ("recall", "ndcg", "precision", "map", "mrr", "hitrate")


def check(config: ConfigDict, partition: Partition, catalog: Catalog) -> None:
    """Checks values that no other room would refuse in time.

    Raises:
      InputError: naming the key.
    """
    train = config.train
    _one_of(train.dtype, ("float32", "bfloat16"), "train.dtype")
    _one_of(config.data.pipeline, batches.PIPELINES, "data.pipeline")
    cutoffs = tuple(config.evaluate.cutoffs)
    _within("evaluate.cutoffs", 1, catalog.num_items, *(cutoffs or (0,)))
    metrics = [f"{name}@{k}" for name in _METRICS for k in cutoffs]
    _one_of(train.metric, metrics, "train.metric")
    for key in (
        "batch_size",
        "epochs",
        "steps_per_dispatch",
        "eval_every",
        "checkpoint_every",
        "keep",
    ):
        _within(f"train.{key}", 1, 2**31 - 1, train[key])
    _within("evaluate.block_size", 1, 2**31 - 1, config.evaluate.block_size)
    _within("seed", 0, 2**32 - 1, config.seed)
    _check_parts(config)
    # 1 would never let the average leave the first parameters.
    _within("train.ema", 0, 1 - 1e-9, train.ema)
    shards = partition.shards("batch")
    if train.batch_size % shards:
        raise InputError(
            "The batch does not cut evenly over the mesh.",
            where="config.train.batch_size",
            expected=f"a multiple of {shards}",
            found=train.batch_size,
        )


def _within(key: str, low: float, high: float, *values: float) -> None:
    for value in values:
        if not low <= value <= high:
            raise InputError(
                f"Bad value of {key!r}.",
                where=f"config.{key}",
                expected=f"from {low} to {high}",
                found=value,
            )


# Keys of encoders, sources and losses that only make sense within bounds.
_BOUNDS = {
    "dim": (1, 2**31 - 1),
    "layers": (0, 1000),
    "item_layers": (0, 1000),
    "neighbours": (1, 2**31 - 1),
    "count": (1, 2**31 - 1),
    "tries": (1, 1000),
    "exponent": (0.0, 100.0),
    "temperature": (1e-6, 1e6),
    "weight": (0.0, 1e30),
    "learning_rate": (0.0, 1e30),
    "weight_decay": (0.0, 1e30),
    "clip_norm": (0.0, 1e30),
    "warmup_steps": (0, 2**31 - 1),
    "samples": (1, 1000),
    "start": (0.0, 1e30),
    "rate": (0.0, 1000.0),
    "timesteps": (2, 1000),
    "clip": (0.0, 1e30),
    "hidden": (0, 2**31 - 1),
    "drop": (0.0, 1 / 3),
    "steps": (0, 1000),
    "eta": (0.0, 1.0),
    "bank": (0, 2**31 - 1),
    "observed": (1, 2**31 - 1),
}

# Keys that choose among words.
_CHOICES = {
    "levels": difficulty.LADDERS,
    "order": difficulty.ORDERS,
    "unit": difficulty.UNITS,
    "noise": process.SCHEDULES,
    "target": process.TARGETS,
    "criterion": process.CRITERIA,
}


def _check_parts(config: ConfigDict) -> None:
    for name, value in flatten(config).items():
        key = name.rpartition(".")[2]
        if key in _BOUNDS:
            _within(name, *_BOUNDS[key], value)
        if key in _CHOICES:
            _one_of(value, _CHOICES[key], name)
    reserved = {"loss", "gradient_norm", "update_norm"} & set(config.losses)
    if reserved:
        raise InputError(
            f"{min(reserved)!r} cannot name a loss: it is logged already.",
            where="config.losses",
            fix="choose another name",
        )


def _one_of(value: str, known: Any, key: str) -> None:
    if value not in known:
        raise InputError(
            f"Unknown value {value!r}.",
            where=f"config.{key}",
            fix=nearest(value, known),
        )
