"""Values of a config that no other room would refuse in time.

Unknown names and keywords are refused where parts are built; here stand the
bounds and the choices of values, so that a run that cannot work stops before
it computes anything.
"""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from neggen_jax.catalog import Catalog
from neggen_jax.config import flatten
from neggen_jax.data import batches
from neggen_jax.errors import InputError, nearest
from neggen_jax.metrics import NAMES
from neggen_jax.negatives import (
    SOURCES,
    difficulty,
    hard,
    in_batch,
    process,
    source,
)
from neggen_jax.negatives.diffusion import Diffusion
from neggen_jax.partition import Partition


def check(config: ConfigDict, partition: Partition, catalog: Catalog) -> None:
    """Checks values that no other room would refuse in time.

    Raises:
      InputError: naming the key.
    """
    train = config.train
    dtypes = "float32", "bfloat16"
    _one_of(train.dtype, dtypes, "train.dtype")
    features = config.data.get("feature_dtype", "float32")
    _one_of(features, dtypes, "data.feature_dtype")
    _one_of(config.data.pipeline, batches.PIPELINES, "data.pipeline")
    cutoffs = tuple(config.evaluate.cutoffs)
    longest = max((k for k in cutoffs if isinstance(k, int)), default=0)
    if longest > catalog.num_items:
        raise InputError(
            "Lists are to be longer than the catalogue.",
            where="config.evaluate.cutoffs",
            expected=f"cut-offs from 1 to {catalog.num_items}, its items",
            found=longest,
            fix="such as --config.evaluate.cutoffs=10,20; one of them has to "
            f"be that of config.train.metric, {config.train.metric}",
        )
    _within("evaluate.cutoffs", 1, catalog.num_items, *(cutoffs or (0,)))
    metrics = [f"{name}@{k}" for name in NAMES for k in cutoffs]
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
    # Runs of earlier versions do not have these keys.
    seconds = train.get("checkpoint_seconds", 0.0)
    _within("train.checkpoint_seconds", 0.0, 1e9, seconds)
    several = train.get("batches_per_step", 1)
    _within("train.batches_per_step", 1, 2**31 - 1, several)
    _within("evaluate.block_size", 1, 2**31 - 1, config.evaluate.block_size)
    target = config.evaluate.get("recall_target", 1.0)
    _within("evaluate.recall_target", 0.01, 1.0, target)
    _within("seed", 0, 2**32 - 1, config.seed)
    check_parts(config, catalog)
    # 1 would never let the average leave the first parameters.
    _within("train.ema", 0.0, 1 - 1e-9, train.ema)
    shards = partition.shards("batch")
    if train.batch_size % shards:
        raise InputError(
            "The batch does not cut evenly over the mesh.",
            where="config.train.batch_size",
            expected=f"a multiple of {shards}",
            found=train.batch_size,
            fix="have fewer devices share a batch, with --config.mesh.model=, "
            "or choose another batch size, in a new workdir",
        )


def doubts(negatives: ConfigDict, epochs: int, epoch_steps: int) -> list[str]:
    """What may be meant, and mostly is not: a line each.

    A run may be made longer, so that nothing here is refused.

    Args:
      negatives: `config.negatives`.
      epochs: of the run.
      epoch_steps: steps of an epoch.
    """
    found = []
    length = {"epochs": epochs, "steps": epochs * epoch_steps}
    for name, part in negatives.items():
        kind = SOURCES.get(part.get("name", ""))
        if not hasattr(kind, "rate") or not hasattr(kind, "start"):
            continue
        unit, start = (part.get(k, getattr(kind, k)) for k in ("unit", "start"))
        if start >= length.get(unit, math.inf):
            found.append(
                f"negatives.{name} are let in from {start:g} {unit} on (start),"
                f" and the run has {length[unit]}: it trains without them"
            )
    return found


def _within(key: str, low: float, high: float, *values: float) -> None:
    kinds = int if isinstance(low, int) else (int, float)
    for value in values:
        if not isinstance(value, kinds) or not low <= value <= high:
            whole = "a whole number " if kinds is int else ""
            raise InputError(
                f"Bad value of {key!r}.",
                where=f"config.{key}",
                expected=f"{whole}from {low} to {high}",
                found=repr(value),
            )


# Keys of encoders, losses and optimisers that only make sense within bounds.
_BOUNDS = {
    "dim": (1, 2**31 - 1),
    "layers": (0, 1000),
    "item_layers": (0, 1000),
    "neighbours": (1, 2**31 - 1),
    # 1 would leave nothing.
    "dropout": (0.0, 1 - 1e-9),
    "temperature": (1e-6, 1e6),
    "weight": (0.0, 1e30),
    "learning_rate": (0.0, 1e30),
    "weight_decay": (0.0, 1e30),
    "clip_norm": (0.0, 1e30),
    "warmup_steps": (0, 2**31 - 1),
}

# The same for sources of negatives, of which others may bring their own.
_OF_SOURCES = {
    "count": (1, 2**31 - 1),
    "tries": (1, 1000),
    "exponent": (0.0, 100.0),
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
    "candidates": (1, 2**31 - 1),
    "top": (1, 2**31 - 1),
    "alpha": (-1e30, 1e30),
    "beta": (0.0, 1e30),
    "power": (-100.0, 100.0),
    "floor": (-1e30, 1e30),
    "most": (0.0, 1.0),
    "relevance": (0.0, 1.0),
    "warmup": (0.0, 1e30),
    "weight": (0.0, 1e30),
    "correction": (0.0, 100.0),
    "items": (0, 2**31 - 1),
}

# Their keys that choose among words.
_CHOICES = {
    "levels": difficulty.LADDERS,
    "order": difficulty.ORDERS,
    "unit": source.UNITS,
    "noise": process.SCHEDULES,
    "target": process.TARGETS,
    "criterion": process.CRITERIA,
    "similarity": hard.SIMILARITIES,
    "corrected": in_batch.CORRECTED,
}


def check_parts(config: ConfigDict, catalog: Catalog) -> None:
    """Checks the values of encoder, negatives, losses and optimiser.

    Args:
      config: with `negatives` and `losses`, and any of the others.
      catalog: the dataset.

    Raises:
      InputError: naming the key.
    """
    values = flatten(config)
    sources = tuple(f"negatives.{name}." for name in config.negatives)
    for name, value in values.items():
        key = name.rpartition(".")[2]
        if key in _BOUNDS and not name.startswith(sources):
            _within(name, *_BOUNDS[key], value)
    for name, part in config.negatives.items():
        kind = SOURCES.get(part.get("name", ""))
        if kind is not None and kind.__module__.startswith("neggen_jax."):
            _check_source(f"negatives.{name}", part, catalog)
            if part.name == "counterfactual":
                _check_rewritten(f"negatives.{name}", part, catalog)
    reserved = {"loss", "gradient_norm", "update_norm"} & set(config.losses)
    if reserved:
        raise InputError(
            f"{min(reserved)!r} cannot name a loss: it is logged already.",
            where="config.losses",
            fix="choose another name",
        )


def _check_source(where: str, part: ConfigDict, catalog: Catalog) -> None:
    for key, value in part.items():
        if key in _OF_SOURCES:
            _within(f"{where}.{key}", *_OF_SOURCES[key], value)
        if key in _CHOICES:
            _one_of(value, _CHOICES[key], f"{where}.{key}")
    # In epochs a run may be made longer; of its own length it never is.
    if part.get("unit") == "run" and part.get("start", 0) >= 1:
        raise InputError(
            "No negative would be let in before the run ends.",
            where=f"config.{where}.start",
            expected="less than 1, as a share of the run",
            found=part.start,
        )
    if part.name == "dns_mn":
        several = part.get("candidates", hard.TopOfDNS.candidates)
        _within(f"{where}.top", 1, several, part.get("top", hard.TopOfDNS.top))
    if part.name == "diffusion":
        _check_modalities(where, part, catalog)
        _check_process(where, part)


def _check_rewritten(where: str, part: ConfigDict, catalog: Catalog) -> None:
    # Without any, the inputs say how to make them.
    known = catalog.counterfactuals
    named = tuple(part.get("modalities", ()))
    if known is not None and set(named) - set(known.modalities):
        raise InputError(
            "Counterfactuals are wanted of a modality that has none.",
            where=f"config.{where}.modalities",
            expected=f"some of {', '.join(sorted(known.modalities))}",
            found=", ".join(named),
            fix=f"of the set {known.name!r}; () takes all that it has",
        )


def _check_modalities(where: str, part: ConfigDict, catalog: Catalog) -> None:
    named = tuple(part.get("modalities", ()))
    if set(named) - set(catalog.features) or len(set(named)) < len(named):
        raise InputError(
            "Bad modalities of a source of negatives.",
            where=f"config.{where}.modalities",
            expected=f"some of {', '.join(sorted(catalog.features))}, once",
            found=named,
        )
    # Configs name the usual ones, also for catalogues that lack them.
    known = sorted({"text", "image", *catalog.features})
    for key in ("first", "scales"):
        given = part.get(key, ())
        if isinstance(given, str):
            raise InputError(
                "A list of modalities is a string.",
                where=f"config.{where}.{key}",
                expected=f"({given!r},)",
                found=repr(given),
            )
        for name in given:
            _one_of(name, known, f"{where}.{key}")
    for name, scale in part.get("scales", {}).items():
        _within(f"{where}.scales.{name}", 0.0, 1000.0, scale)


def _check_process(where: str, part: ConfigDict) -> None:
    timesteps = part.get("timesteps", Diffusion.timesteps)
    if part.get("steps", 0) > timesteps:
        raise InputError(
            "Sampling takes more steps than the process has.",
            where=f"config.{where}.steps",
            expected=f"at most timesteps, {timesteps}",
            found=part.steps,
        )
    noisy = part.get("target") == "noise" and part.get("noise") == "cosine"
    if noisy and not part.get("clip", 0.0):
        raise InputError(
            "The last step of the cosine schedule leaves so little signal "
            "that a denoiser of noise, unclipped, multiplies its errors.",
            where=f"config.{where}.clip",
            expected="more than 0, such as 4.0; or target 'x0'",
            found=0.0,
        )
    guided = any(scale != 1 for scale in part.get("scales", {}).values())
    if part.get("drop") == 0 and (guided or part.get("levels") != "joint"):
        raise InputError(
            "Conditions are left out in sampling, but never in training.",
            where=f"config.{where}.drop",
            expected="more than 0, as 0.05",
            found=0.0,
        )


def _one_of(value: str, known: Any, key: str) -> None:
    if value not in known:
        raise InputError(
            f"Unknown value {value!r}.",
            where=f"config.{key}",
            fix=nearest(value, known),
        )
