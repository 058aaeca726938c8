"""The project's own timings, on catalogues of known sizes.

Each experiment trains a few epochs just as `launch/train.py` would, in a
process of its own, so that its peak memory is its own too. Medians over
epochs; compilation is told apart.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import tempfile
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from neggen_jax import config as configs
from neggen_jax.catalog import Catalog, Counterfactuals, Rewritten
from neggen_jax.data import store
from neggen_jax.data.bazaar.make import Bazaar, make
from neggen_jax.errors import InputError, nearest
from neggen_jax.storage import first_line

# As wide as what the usual encoders of texts and pictures give.
_WIDE = {"text_width": 384, "image_width": 4096}
# Name -> bazaar of that size.
SIZES = {
    "demo": Bazaar(features="direct"),
    "baby": Bazaar.baby(**_WIDE),
    "sports": Bazaar.sports(**_WIDE),
    "electronics": Bazaar.electronics(**_WIDE),
    "million": Bazaar(
        num_users=1_000_000,
        num_items=200_000,
        interactions_per_user=10.0,
        features="direct",
        text_width=384,
        image_width=512,
    ),
}

COLUMNS = (
    ("examples_per_second", "examples/s", ",.0f"),
    ("seconds_per_epoch", "s/epoch", ".3f"),
    ("input_share", "input", ".1%"),
    ("evaluation_seconds", "evaluation s", ".3f"),
    ("compile_seconds", "compile s", ".2f"),
    ("peak_memory_mib", "peak MiB", ",.0f"),
)
_QUALITY = "valid/recall@20"
_TO_QUALITY = "valid", "seconds_per_epoch", "evaluation_seconds"
# Of another program's over ours.
RATIOS = (
    ("seconds_per_epoch", "epoch x"),
    ("evaluation_seconds", "evaluation x"),
    ("peak_memory_mib", "memory x"),
)


def write(size: str, directory: Path) -> None:
    """Writes the dataset directory of a size, unless it is there.

    In a process of its own, whose memory is not counted as ours.

    Raises:
      InputError: for an unknown size, or for a directory with another dataset.
    """
    bazaar = of_size(size)
    made = directory / "catalog.json"
    if not made.exists():
        with _new_process() as pool:
            pool.apply(_write, (bazaar, str(directory)))
        return
    want = _source(bazaar)
    try:
        found = json.loads(made.read_text())["source"]
    except (ValueError, KeyError, TypeError) as error:
        found = first_line(error)
    if found != want:
        raise InputError(
            "The dataset is not the catalogue that is to be timed.",
            where=str(directory),
            expected=f"{want}, as --size={size} has",
            found=found,
            fix="name a directory that is not there yet, and it is made",
        )


def _write(bazaar: Bazaar, directory: str) -> None:
    catalog, _ = make(bazaar)
    store.save(catalog, directory, source=_source(bazaar))


def _source(bazaar: Bazaar) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(bazaar)))
    return {"source": "bazaar", **told}


def _new_process() -> Any:
    return multiprocessing.get_context("spawn").Pool(1)


def measure(spec: str, directory: Path, epochs: int) -> dict[str, Any]:
    """Times one experiment in a new process.

    Args:
      spec: config file, with its argument after a colon, and what differs
        after plus signs: "FILE.py:ARGUMENT+key=value+key=value".
      directory: of the dataset.
      epochs: to train; evaluations are timed from the second on.

    Returns:
      The "timing" of `results.json`, with "parameters" and "devices", and
      "valid", pairs of an epoch and recall@20 after it.

    Raises:
      InputError: whatever the experiment raises.
    """
    file, *changes = re.split(r"\+(?=[a-z_]+\.)", spec)
    config = configs.load(file)
    configs.override(config, changes)
    with config.unlocked():
        config.train.epochs, config.train.patience = epochs, 0
        config.data.path = str(directory)
    with _new_process() as pool:
        return pool.apply(_train, (config.to_dict(),))


def of_size(name: str) -> Bazaar:
    """The catalogue of a size.

    Raises:
      InputError: for an unknown one.
    """
    if name not in SIZES:
        raise InputError(
            f"Unknown size {name!r}.", where="--size", fix=nearest(name, SIZES)
        )
    return SIZES[name]


def _train(config: dict[str, Any]) -> dict[str, Any]:
    from neggen_jax.train import train_and_evaluate

    catalog = None
    if config["data"]["counterfactuals"]["name"]:
        catalog = _rewritten(store.load(config["data"]["path"]))
    with tempfile.TemporaryDirectory() as workdir:
        results = train_and_evaluate(
            ml_collections.ConfigDict(config), workdir, catalog
        )
        written = Path(workdir, "metrics.jsonl").read_text().splitlines()
    lines = map(json.loads, written)
    valid = [
        [line["epoch"], line[_QUALITY]] for line in lines if _QUALITY in line
    ]
    kept = {key: results[key] for key in ("parameters", "devices")}
    return kept | results["timing"] | {"valid": valid}


def _rewritten(catalog: Catalog) -> Catalog:
    """With counterfactuals of the usual shape, which mean nothing.

    What they cost does not depend on what they say.
    """
    rng = np.random.default_rng(0)
    shape = catalog.num_items, _WIDE["text_width"]
    there = np.ones(catalog.num_items, bool)

    def draw() -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    parts = {
        modality: Rewritten(draw(), there, draw()[:, None], there[:, None])
        for modality in catalog.features
    }
    made = Counterfactuals("drawn", parts)
    return dataclasses.replace(catalog, counterfactuals=made)


def read_beside(path: str, size: str) -> dict[str, dict[str, Any]]:
    """Another program's timings.

    Args:
      path: JSON with "size" and "rows": our experiment -> some of the keys
        of `RATIOS`, in our units.
      size: that they have to be of.

    Raises:
      InputError: if they are not there, or of another size.
    """
    try:
        said = json.loads(Path(path).read_text())
        found, rows = said["size"], dict(said["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "There are no timings of another program.",
            where=f"--beside={path}",
            expected='{"size": ..., "rows": {EXPERIMENT: {...}}}',
            found=first_line(error),
        ) from error
    if found != size:
        raise InputError(
            "Another program was timed on a catalogue of another size.",
            where=f"--beside={path}",
            expected=size,
            found=found,
        )
    return rows


def quality_ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """How many times our time theirs takes to the same recall@20 on valid.

    To the highest that both have reached; evaluations count too.

    Args:
      ours: from `measure`.
      theirs: alike.

    Returns:
      None if one of them does not say what it reached.
    """
    if not all(row.get(key) for row in (ours, theirs) for key in _TO_QUALITY):
        return None
    tops = [max(value for _, value in row["valid"]) for row in (ours, theirs)]
    each = []
    for row in (theirs, ours):
        evaluated = [epoch for epoch, value in row["valid"]]
        done = next(
            n for n, (_, v) in enumerate(row["valid"]) if v >= min(tops)
        )
        each.append(
            evaluated[done] * row["seconds_per_epoch"]
            + (done + 1) * row["evaluation_seconds"]
        )
    return each[0] / each[1]


def table(
    rows: dict[str, dict[str, Any]],
    title: str,
    beside: dict[str, dict[str, Any]] | None = None,
) -> Any:
    """The timings as a `rich.table.Table`, one row an experiment.

    Args:
      rows: experiment -> what `measure` returned.
      title: of the table.
      beside: experiment -> another program's timings, if there are any; how
        many times ours they are stands behind ours.
    """
    from rich.table import Table

    out = Table(title=title)
    out.add_column("experiment", overflow="fold")
    for _, label, _ in COLUMNS:
        out.add_column(label, justify="right")
    for label in [label for _, label in RATIOS] + ["quality x"]:
        if beside:
            out.add_column(label, justify="right")
    for name, row in rows.items():
        cells = [
            "-" if row[key] is None else format(row[key], form)
            for key, _, form in COLUMNS
        ]
        theirs = (beside or {}).get(name, {})
        ratios = [
            theirs[key] / row[key] if theirs.get(key) and row[key] else None
            for key, _ in RATIOS
        ] + [quality_ratio(row, theirs)]
        if beside:
            cells += ["-" if x is None else format(x, ".1f") for x in ratios]
        out.add_row(name.removeprefix("configs/").replace(".py", ""), *cells)
    return out
