"""What a run left behind, read for its reports.

Stands behind `train.py` on the way of the data and reads only what that
leaves in a workdir: `metrics.jsonl`, one JSON object a line with "step",
"epoch" and any of "train/<term>" and "valid/<metric>"; `results.json`, the
metrics of the chosen checkpoint; and `per_user_<split>.npz`, each user's own.
`plots.py`, `plots_negatives.py` and `reporting/` take it from here.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from neggen_jax import storage
from neggen_jax.errors import InputError
from neggen_jax.storage import Workdir

# What was logged, one dict a step.
History = Sequence[Mapping[str, Any]]

CHOSEN_BY = "recall@20"


def read_metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """What was logged while training, one dict a step, by rising step.

    A run that was killed and resumed logs some steps twice, and may have
    cut its last line short: of repeated values the later one counts, and a
    broken last line is left out.

    Raises:
      InputError: there is no `metrics.jsonl`, or another line is broken.
    """
    path = storage.path(workdir) / "metrics.jsonl"
    lines = _read(path).splitlines()
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(
                "A line of the training log cannot be read.",
                where=f"{path}, line {number}",
                expected='a JSON object with a "step"',
                found=line[:80],
                fix="remove the line",
            ) from error
        steps.setdefault(step, {}).update(entry)
    return [steps[step] for step in sorted(steps)]


def read_results(workdir: Workdir) -> dict[str, Any]:
    """The contents of `results.json`.

    Raises:
      InputError: there is none, or it does not hold a JSON object.
    """
    path = storage.path(workdir) / "results.json"
    text = _read(path)
    try:
        results = json.loads(text)
    except ValueError as error:
        results = error
    if not isinstance(results, dict):
        raise InputError(
            "The results of a run cannot be read.",
            where=path,
            expected="a JSON object",
            found=results,
            fix="take it away and run launch/train.py on the workdir again",
        )
    return results


def read_users(workdir: Workdir, split: str) -> dict[str, np.ndarray]:
    """Each user's own metrics and recommendations: `per_user_<split>.npz`.

    Returns:
      "users" int32 `[U]`, "lists" int32 `[U, k]` (not in workdirs of earlier
      versions), and "<metric>@<k>" float64 `[U]`.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    path = storage.path(workdir) / f"per_user_{split}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes())) as columns:
            found = {key: columns[key] for key in columns.files}
        return {"users": found["users"], **found}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            "A run does not tell each user's own metrics.",
            where=path,
            found=error,
            fix="train it again",
        ) from error


def series(
    log: History, key: str, by: str = "step"
) -> tuple[list[float], list[float]]:
    """Every value of `key` that was logged, as (steps or epochs, values)."""
    points = [(e[by], e[key]) for e in log if key in e and by in e]
    return [x for x, _ in points], [y for _, y in points]


def by_epoch(log: History, key: str) -> tuple[list[int], list[float]]:
    """Means over the lines of each epoch, as (epochs counted from 1, means).

    A line stands for the steps before it: one at epoch 1.5 belongs to the
    second epoch, one at 2.0 as well. Epochs without a value are left out.
    """
    values: dict[int, list[float]] = {}
    for at, value in zip(*series(log, key, by="epoch"), strict=True):
        values.setdefault(math.ceil(at), []).append(value)
    epochs = sorted(values)
    return epochs, [statistics.fmean(values[epoch]) for epoch in epochs]


def best_step(log: History) -> int | None:
    """The first step with the highest `CHOSEN_BY` on valid, if any."""
    steps, values = series(log, f"valid/{CHOSEN_BY}")
    return int(steps[values.index(max(values))]) if values else None


def names(workdirs: Sequence[Workdir]) -> list[str]:
    """Last part of each path, or as many parts as tell the runs apart."""
    paths = [
        storage.path(w) if storage.remote(w) else Path(w).resolve()
        for w in workdirs
    ]
    depth = 1
    while len({p.parts[-depth:] for p in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(p.parts[-depth:]) for p in paths]


def label(value: object) -> str:
    """A short name for a part of a config: what it, or each entry, names."""
    if isinstance(value, Mapping):
        return label(value.get("name", list(value.values())))
    if isinstance(value, list | tuple):
        return " + ".join(map(label, value)) or "-"
    return "-" if value is None else str(value)


def _read(path: epath.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"The workdir has no {path.name}.",
            where=path.parent,
            fix="run launch/train.py on it first, or check --workdir",
        ) from error
