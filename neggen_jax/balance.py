"""Modality balance: what a trained recommender loses without each modality.

Ranks as `run.py` does, with the same parameters, for a catalogue in which no
item has the modality: its features and its graph are empty, and of its texts
neither descriptions nor counterfactuals are known. A recommender that leans
on one modality alone loses nothing with the others, and much with that one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from neggen_jax import evaluate, metrics
from neggen_jax.catalog import Catalog, Features
from neggen_jax.data import inputs, rewritten
from neggen_jax.data.inputs import Needs, union
from neggen_jax.negatives.source import Source
from neggen_jax.run import Run, feature_dtype
from neggen_jax.step import State


def measure(
    run: Run,
    state: State,
    split: str = "test",
    heed: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The metric of one split without each modality.

    Costs one evaluation a modality, and the graphs that it needs.

    Args:
      run: composed.
      state: whose averaged or plain parameters rank.
      split: "valid" or "test".
      heed: see `Ranker`.

    Returns:
      Modality -> the metric of `metric`; empty if the ranking reads none.
    """
    names = modalities(run)
    if not names:
        return {}
    ranker = run.ranker(split)
    name, k = metric(run)
    found = {}
    for modality in names:
        ranked = ranker(*without(run, modality).encode(state.evaluated), heed)
        values = metrics.summarize(evaluate.accuracy(ranked, (k,)))
        found[modality] = values[name]
    return found


def metric(run: Run) -> tuple[str, int]:
    """The metric that `measure` takes, and its cut-off.

    Recall at 20; where that is no cut-off of the run's, at the longest that
    is shorter, or else at the shortest.
    """
    cutoffs = tuple(run.config.evaluate.cutoffs)
    short = [k for k in cutoffs if k <= evaluate.LIST_CUTOFF]
    k = max(short, default=min(cutoffs))
    return f"recall@{k}", k


def drops(full: float, without: Mapping[str, float]) -> dict[str, float]:
    """What is lost without each modality, and how evenly.

    - `modality_drop_<name>` (full - without) / full: 1 if nothing is found
      without the modality, 0 if it is not missed, below 0 if it does harm;
    - `modality_balance` the smallest drop over the largest: 1 if all are
      missed alike. It is 0 if one is missed and another is not, or does harm.

    Args:
      full: the metric with all modalities.
      without: modality -> the metric without it.

    Returns:
      Measure -> value. Drops are left out where there is nothing to lose,
      and the balance where there is a single modality, or none is missed.
    """
    if full <= 0:
        return {}
    lost = {name: (full - value) / full for name, value in without.items()}
    values = {f"modality_drop_{name}": drop for name, drop in lost.items()}
    least, most = min(lost.values(), default=0), max(lost.values(), default=0)
    if len(lost) > 1 and most > 0:
        values["modality_balance"] = max(least, 0.0) / most
    return values


def modalities(run: Run) -> tuple[str, ...]:
    """The modalities that a ranking depends on, in alphabetical order."""
    needs = _reading(run)
    names = {*inputs.contents(run.catalog, needs)}
    if needs.counterfactuals and run.catalog.counterfactuals is not None:
        names |= {*run.catalog.counterfactuals.modalities}
    return tuple(sorted(names))


def _reading(run: Run) -> Needs:
    """What is read to rank: not what only losses and negatives need."""
    model = run.program.recommender
    parts = [
        source.needs()
        for source in model.sources.values()
        if type(source).extend is not Source.extend
    ]
    return functools.reduce(union, parts, model.encoder.needs())


def without(run: Run, modality: str) -> Run:
    """The run on a catalogue in which no item has one of the modalities."""
    catalog = _bereft(run.catalog, modality)
    feed = run.config.data.counterfactuals.feed
    stream = run.stream
    if stream.item_tables:
        assert catalog.counterfactuals is not None
        tables = rewritten.columns(catalog.counterfactuals)
        stream = dataclasses.replace(stream, item_tables=tables)
    return dataclasses.replace(
        run,
        catalog=catalog,
        stream=stream,
        inputs=inputs.build(
            catalog,
            _reading(run),
            run.partition,
            feed,
            feature_dtype(run.config),
            {k: v for k, v in run.inputs.features.items() if k != modality},
        ),
    )


def _bereft(catalog: Catalog, modality: str) -> Catalog:
    features: dict[str, Features] = dict(catalog.features)
    if modality in features:
        features[modality] = _absent(features[modality], "values", "present")
    made = catalog.counterfactuals
    if made is not None and modality in made.modalities:
        # Vectors that are not described are not read.
        gone = _absent(made.modalities[modality], "described", "present")
        rest = {**made.modalities, modality: gone}
        made = dataclasses.replace(made, modalities=rest, verified="")
    return dataclasses.replace(
        catalog, features=features, counterfactuals=made, verified=""
    )


def _absent(part: Any, *fields: str) -> Any:
    """The same with zeros in some fields, which take no memory."""
    zeros = {}
    for field in fields:
        like = getattr(part, field)
        zeros[field] = np.broadcast_to(np.zeros((), like.dtype), like.shape)
    return dataclasses.replace(part, **zeros)
