"""The project's own timings, on catalogues of known sizes.

Each experiment trains a few epochs just as `launch/train.py` would, in a
process of its own, so that its peak memory is its own too. Medians over
epochs; compilation is told apart.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
from typing import Any

import ml_collections

from neggen_jax import config as configs
from neggen_jax.data.bazaar import Bazaar, make
from neggen_jax.errors import InputError, nearest

# Name -> bazaar of that size.
SIZES = {
    "demo": Bazaar(features="direct"),
    "baby": Bazaar.baby(),
}

COLUMNS = (
    ("examples_per_second", "examples/s", ",.0f"),
    ("seconds_per_epoch", "s/epoch", ".3f"),
    ("evaluation_seconds", "evaluation s", ".3f"),
    ("compile_seconds", "compile s", ".2f"),
    ("peak_memory_mib", "peak MiB", ",.0f"),
)


def measure(spec: str, size: str, epochs: int) -> dict[str, Any]:
    """Times one experiment in a new process.

    Args:
      spec: config file, with its argument after a colon, and what differs
        after plus signs: "FILE.py:ARGUMENT+key=value+key=value".
      size: key of `SIZES`.
      epochs: to train; evaluations are timed from the second on.

    Returns:
      The "timing" of `results.json`, with "parameters" and "devices".

    Raises:
      InputError: for an unknown size, and whatever the experiment raises.
    """
    if size not in SIZES:
        raise InputError(
            f"Unknown size {size!r}.", where="--size", fix=nearest(size, SIZES)
        )
    file, *changes = re.split(r"\+(?=[a-z_]+\.)", spec)
    config = configs.load(file)
    configs.override(config, changes)
    with config.unlocked():
        config.train.epochs, config.train.patience = epochs, 0
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_train, (config.to_dict(), size))


def _train(config: dict[str, Any], size: str) -> dict[str, Any]:
    from neggen_jax.train import train_and_evaluate

    catalog, _ = make(SIZES[size])
    with tempfile.TemporaryDirectory() as workdir:
        results = train_and_evaluate(
            ml_collections.ConfigDict(config), workdir, catalog
        )
    return {key: results[key] for key in ("parameters", "devices")} | results[
        "timing"
    ]


def table(rows: dict[str, dict[str, Any]], title: str) -> Any:
    """The timings as a `rich.table.Table`, one row an experiment."""
    from rich.table import Table

    out = Table(title=title)
    out.add_column("experiment", overflow="fold")
    for _, label, _ in COLUMNS:
        out.add_column(label, justify="right")
    for name, row in rows.items():
        cells = (
            "-" if row[key] is None else format(row[key], form)
            for key, _, form in COLUMNS
        )
        out.add_row(name.removeprefix("configs/").replace(".py", ""), *cells)
    return out
