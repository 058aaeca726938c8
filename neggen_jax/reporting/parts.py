"""Parts of reports beside metrics: modalities, negatives, config, time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from neggen_jax import config as configs
from neggen_jax import plots_balance, plots_negatives
from neggen_jax.history import series
from neggen_jax.plots import BY_MODALITY
from neggen_jax.plots_negatives import Logged, summed
from neggen_jax.reporting import metrics
from neggen_jax.reporting.document import (
    Block,
    Cell,
    Code,
    Facts,
    Folded,
    Plot,
    Plots,
    Table,
    Words,
)
from neggen_jax.reporting.metrics import UNKNOWN, number
from neggen_jax.reporting.told import Told


def modalities(told: Told, file: str) -> tuple[Block, ...]:
    """What is lost without each modality, and its gradients.

    Args:
      told: the run.
      file: of the plot.
    """
    drops = plots_balance.drops_of(told.test)
    norms = plots_balance.norms_of(told.log)
    if not drops and not norms:
        return ()
    without = told.results.get("without_modality", {})
    metric: str = next(iter(without), "recall")
    values: dict[str, float] = without.get(metric, {})
    rows = []
    for name in sorted({*drops, *norms}):
        row = [
            Cell(name),
            Cell(number(values.get(name))),
            lost(drops.get(name)),
        ]
        if norms:
            row.append(Cell(number(_at(told, BY_MODALITY + name))))
        rows.append(tuple(row))
    header = ["modality", f"{metric} without", "share lost"]
    if norms:
        header.append("gradient norm at the best step")
    table = Table("Without each modality", tuple(header), tuple(rows))
    said = (
        "The whole test split is ranked again by the same parameters, with "
        "one modality taken from every item: its features, its graph and its "
        "counterfactuals are empty."
    )
    if (even := told.test.get("modality_balance")) is not None:
        said += (
            f" The smallest loss over the largest, their balance: {even:.2f}."
        )
    figure, drawn = plots_balance.gradients(told.log, told.step), []
    if figure is not None:
        (axes,) = figure.axes
        drawn.append(Plot(axes.get_title(loc="left"), figure))
        # The page says it beside the drawing.
        axes.set_title("", loc="left")
    plots = Plots(tuple(drawn), "modality balance", file)
    return table, Words(said, "faint"), plots


def lost(drop: float | None) -> Cell:
    """A share that is lost; the bar is full where all of it is."""
    if drop is None:
        return Cell(UNKNOWN)
    return Cell(f"{metrics.signed(100 * drop, 1)} %", bar=drop)


def _at(told: Told, key: str) -> float | None:
    """What was logged last at or before the best step."""
    x, y = series(told.log, key)
    until = [value for at, value in zip(x, y, strict=True) if at <= told.step]
    return until[-1] if until else None


def negatives(told: Told, file: str) -> tuple[Block, ...]:
    """How hard generated negatives are, level by level.

    Args:
      told: the run.
      file: of a source's plot, with {} for its name.
    """
    blocks: list[Block] = []
    for source in plots_negatives.sources(told.log):
        logged = Logged.of(told.log, source, told.step)
        if logged.levels:
            blocks.append(_levels(logged, source))
        panels = plots_negatives.panels(told.log, source, told.step)
        drawn = tuple(
            Plot(f"{source}: {title}", figure)
            for title, figure in panels.items()
        )
        blocks.append(
            Plots(drawn, f"negatives {source!r}", file.format(source))
        )
    if blocks:
        blocks.append(
            Words(
                "Hardness is 0 where a negative scores no more than a uniform "
                "one of the same user, and 1 where it scores as much as the "
                "positive. A false negative lies nearer than a cosine distance "
                "of 0.1 to a train positive of the user.",
                "faint",
            )
        )
    return tuple(blocks)


def _levels(logged: Logged, source: str) -> Table:
    measures = [m for m in logged.measures if m != "score"]
    epochs, _ = summed(logged)
    columns = {m: summed(logged, m)[1] for m in measures}
    hardest = max(
        (abs(v) for v in columns.get("hardness", []) if v is not None),
        default=1,
    )
    rows = []
    for place, level in enumerate(logged.levels):
        cells = [Cell(level)]
        for measure, values in columns.items():
            value = values[place]
            bar = None
            if measure == "hardness" and value is not None:
                bar = value / max(hardest, 1e-12)
            cells.append(Cell(number(value), bar=bar))
        rows.append(tuple(cells))
    span = (
        f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    )
    return Table(
        f"{source}: by level, means of epochs {span}",
        ("level", *(measure.replace("_", " ") for measure in measures)),
        tuple(rows),
    )


def timing(told: Told) -> Facts:
    """How long things took, and on what."""
    known = told.results.get("timing", {})
    rows = [
        ("seconds an epoch", known.get("seconds_per_epoch")),
        ("examples a second", known.get("examples_per_second")),
        ("seconds an evaluation", known.get("evaluation_seconds")),
        ("seconds of compilation", known.get("compile_seconds")),
        ("peak memory, MiB", known.get("peak_memory_mib")),
    ]
    pairs = [(name, number(value)) for name, value in rows if value is not None]
    if parameters := told.results.get("parameters"):
        pairs.append(("parameters", f"{parameters:,}"))
    if devices := told.results.get("devices"):
        pairs.append(("devices", f"{len(devices)} x {devices[0]}"))
    if versions := told.results.get("versions"):
        pairs.append(
            ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()))
        )
    return Facts(tuple(pairs))


def config(told: Told) -> tuple[Block, ...]:
    """What of the config is not the default, and all of it, folded."""
    usual = configs.flatten(configs.base())
    own = configs.flatten(told.config)
    rows = [
        (
            Cell(key),
            Cell(_said(value)),
            Cell(_said(usual[key]) if key in usual else UNKNOWN),
        )
        for key, value in sorted(own.items())
        if key not in usual or _said(usual[key]) != _said(value)
    ]
    text = json.dumps(told.config, indent=2, sort_keys=True)
    return (
        Table(
            "Keys that are not at their default, or have none",
            ("key", "value", "default"),
            tuple(rows),
        ),
        Folded("The whole config", (Code(text),)),
    )


def changed(one: Told, other: Told) -> Table | None:
    """In what two configs differ."""
    a, b = configs.flatten(one.config), configs.flatten(other.config)
    rows = [
        (Cell(key), Cell(_key(a, key)), Cell(_key(b, key)))
        for key in sorted(a.keys() | b.keys())
        if _key(a, key) != _key(b, key)
    ]
    if not rows:
        return None
    header = ("key", one.name, other.name)
    return Table("Keys that differ", header, tuple(rows))


def _key(config: Mapping[str, Any], key: str) -> str:
    return _said(config[key]) if key in config else UNKNOWN


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value not in ("", {}) else "none"


def command(told: Told) -> Code:
    """What trains the same run again, in another workdir."""
    spec = f"configs/rerun.py:{told.workdir}"
    return Code(
        "python launch/train.py \\\n"
        f"    --config={shlex.quote(spec)} \\\n"
        "    --workdir=NEW"
    )
