"""What the tests of counterfactuals in training share."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from conftest import ABSENT, ITEMS, make_catalog
from ml_collections import ConfigDict
from training import make_config

from neggen_jax.catalog import Catalog, Counterfactuals, Rewritten
from neggen_jax.data.rewritten import Rewritten as Rows
from neggen_jax.data.rewritten import columns

NEGGEN = pathlib.Path(__file__).parents[1] / "configs" / "neggen.py"
KINDS, WIDTH = 2, 6


def make_counterfactuals(kinds: int = KINDS, seed: int = 0) -> Counterfactuals:
    """Of the catalogue of `conftest`; some items lack one, some all."""
    rng = np.random.default_rng(seed)
    parts = {}
    for number, (name, absent) in enumerate(ABSENT.items()):
        described = ~np.isin(np.arange(ITEMS), absent)
        present = rng.random((ITEMS, kinds)) < 0.8
        # Nothing was accepted of some, in one modality or in both.
        present[[2, 11 + number]] = False
        present &= described[:, None]
        # Far from the origin and wide, as if nobody had standardised them.
        factual = 3 + 2 * rng.normal(size=(ITEMS, WIDTH))
        other = factual[:, None] + rng.normal(size=(ITEMS, kinds, WIDTH))
        parts[name] = Rewritten(
            (factual * described[:, None]).astype(np.float32),
            described,
            (other * present[..., None]).astype(np.float32),
            present,
        )
    return Counterfactuals("attributes", parts).validate(ITEMS)


def make_rewritten(kinds: int = KINDS) -> Catalog:
    """The catalogue of `conftest`, with counterfactuals."""
    return dataclasses.replace(
        make_catalog(), counterfactuals=make_counterfactuals(kinds)
    )


def make_neggen(argument: str, **changes: Any) -> ConfigDict:
    """A small version of an experiment of configs/neggen.py."""
    return make_config(argument, NEGGEN, **changes)


def standardised(known: Counterfactuals) -> dict[str, Rows]:
    """All rows in float64: centred by the factual ones, and scaled alike."""
    out = {}
    for name, part in known.modalities.items():
        there = part.factual[part.described].astype(np.float64)
        mean = there.mean(axis=0)
        scale = np.sqrt(np.square(there - mean).mean())
        out[name] = Rows(
            (part.factual - mean) / scale * part.described[:, None],
            part.described,
            (part.counterfactual - mean) / scale * part.present[..., None],
            part.present,
        )
    return out


def batch_columns(known: Counterfactuals, items: np.ndarray) -> dict:
    """What a pipeline adds to a batch of those items."""
    return {name: table[items] for name, table in columns(known).items()}
