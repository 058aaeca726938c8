"""Methods compared over several seeds, with paired tests.

Reads what runs leave in their workdirs: `results.json`, and every test user's
own metrics in `per_user_test.npz`. Metrics that belong to no user, such as
coverage and modality balance, are tested over seeds alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from neggen_jax import storage
from neggen_jax.config import RESUMABLE, flatten
from neggen_jax.errors import InputError, nearest
from neggen_jax.history import read_results, read_users
from neggen_jax.metrics import paired_test
from neggen_jax.storage import Workdir

METRICS = ("recall@20", "ndcg@20")


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one method, one for each seed.

    Attributes:
      name: of the method.
      dataset: that was trained and evaluated on.
      config: dotted keys, without the seed and where the runs ran.
      users: int `[U]`, evaluated users.
      seeds: of the runs, rising.
      values: metric -> float64 `[seeds, U]`; `[seeds, 1]` if no user has it.
    """

    name: str
    dataset: dict[str, Any]
    config: dict[str, Any]
    users: np.ndarray
    seeds: tuple[int, ...]
    values: dict[str, np.ndarray]


def read(
    name: str, workdirs: Sequence[Workdir], metrics: Sequence[str] = METRICS
) -> Group:
    """Reads the runs of one method.

    Raises:
      InputError: a run is not finished, two have the same seed or differ in
        more than the seed, or they were not evaluated on the same users.
    """
    if not workdirs:
        raise InputError(
            "A method has no runs.",
            where=name,
            expected="workdirs of finished runs, one for each seed",
            fix="check the pattern",
        )
    runs: dict[int, dict[str, Any]] = {}
    for workdir in workdirs:
        run = _read_run(storage.path(workdir), metrics)
        seed = run["config"].pop("seed")
        if seed in runs:
            raise InputError(
                f"Two runs of one method have the seed {seed}.",
                where=f"{runs[seed]['workdir']}, {workdir}",
            )
        runs[seed] = run
    first, *others = (runs[seed] for seed in sorted(runs))
    for other in others:
        _check_alike(first, other)
    return Group(
        name,
        first["dataset"],
        first["config"],
        first["users"],
        tuple(sorted(runs)),
        {
            key: np.stack([run[key] for run in (first, *others)])
            for key in metrics
        },
    )


def _read_run(workdir: epath.Path, metrics: Sequence[str]) -> dict[str, Any]:
    results = read_results(workdir)
    known = read_users(workdir, "test")
    values = {"users": known.pop("users")}
    known.pop("lists", None)
    # Of all users together, where nothing is each one's own.
    known = {k: np.array([v]) for k, v in results["test"].items()} | known
    for key in metrics:
        if key not in known:
            raise InputError(
                f"A run does not tell {key!r}.",
                where=workdir,
                fix=nearest(key, known)
                + "; more: --config.evaluate.cutoffs and .category",
            )
        values[key] = known[key]
    config = {
        key: value
        for key, value in flatten(results["config"]).items()
        # Where a run ran is no difference, nor how often it was saved; how
        # long it ran, is.
        if key not in RESUMABLE | {"train.checkpoint_every"}
        or key in ("train.epochs", "train.patience")
    }
    if config.get("train.start_from"):
        # Each seed has its own.
        config["train.start_from"] = "a trained encoder"
    return {
        **values,
        "workdir": workdir,
        "config": config,
        "dataset": results["dataset"],
    }


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    a, b = one["config"], other["config"]
    differing = [
        f"{key}: {a.get(key)!r}, {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
    if one["dataset"] != other["dataset"]:
        differing.append("the dataset")
    if not np.array_equal(one["users"], other["users"]):
        differing.append("the evaluated users")
    if differing:
        raise InputError(
            "The runs of one method differ in more than their seed.",
            where=f"{one['workdir']}, {other['workdir']}",
            found="; ".join(differing),
        )


def compare(baseline: Group, other: Group) -> dict[str, dict[str, float]]:
    """Tests each metric, `other - baseline`, over the seeds that both have.

    Each user's values are averaged over these seeds first, and pairs are
    users; "seed_p" is that of a paired t-test over the seeds.

    Returns:
      Metric -> what `metrics.paired_test` gives, and "seed_p" (NaN below two
      common seeds). Of a metric that no user has, all else is NaN but
      "mean_difference".

    Raises:
      InputError: the two were trained on other data or evaluated on other
        users, or have no seed in common.
    """
    same = np.array_equal(baseline.users, other.users)
    if baseline.dataset != other.dataset or not same:
        raise InputError(
            "Two methods were not evaluated on the same users and data.",
            where=f"{baseline.name}, {other.name}",
            fix="compare runs on one dataset",
        )
    common = sorted(set(baseline.seeds) & set(other.seeds))
    if not common:
        raise InputError(
            "Two methods have no seed in common.",
            where=f"{baseline.name}, {other.name}",
            found=f"{baseline.seeds}, {other.seeds}",
        )
    out = {}
    for key in other.values:
        after, before = (
            group.values[key][[group.seeds.index(seed) for seed in common]]
            for group in (other, baseline)
        )
        if after.shape[1] > 1:
            out[key] = paired_test(after.mean(axis=0), before.mean(axis=0))
        else:
            nothing = dict.fromkeys(("t_p", "ci_low", "ci_high"), math.nan)
            out[key] = nothing | {
                "mean_difference": float((after - before).mean())
            }
        out[key]["seed_p"] = (
            paired_test(after.mean(axis=1), before.mean(axis=1))["t_p"]
            if len(common) > 1
            else math.nan
        )
    return out


def caveats(groups: Sequence[Group]) -> list[str]:
    """What makes the first method and another unequal beside the method."""
    first, *others = groups
    out = []
    for other in others:
        if other.seeds != first.seeds:
            common = sorted(set(first.seeds) & set(other.seeds))
            out.append(
                f"{other.name}: its difference is over the seeds {common} alone"
            )
        for key, value in sorted(other.config.items()):
            before = first.config.get(key)
            if key.startswith("train.") and value != before:
                here, there = (
                    "none" if x in ("", None) else x for x in (value, before)
                )
                out.append(f"{other.name}: {key} is {here}, not {there}")
    return out


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a method, the first being what the others are compared with."""
    out = []
    for group in groups:
        row: dict[str, Any] = {"method": group.name, "seeds": len(group.seeds)}
        against = compare(groups[0], group) if group is not groups[0] else {}
        for key, values in group.values.items():
            means = values.mean(axis=1)
            spread = means.std(ddof=1) if len(means) > 1 else float("nan")
            row[key] = {
                "mean": float(means.mean()),
                "std": float(spread),
                **against.get(key, {}),
            }
        out.append(row)
    return out


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    metrics = [key for key in table[0] if key not in ("method", "seeds")]
    header = ["method", "seeds"]
    for key in metrics:
        header += [key, "difference", "p (users)", "p (seeds)"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in table:
        cells = [row["method"], str(row["seeds"])]
        for key in metrics:
            value = row[key]
            spread = value["std"]
            cells.append(
                f"{value['mean']:.4f}"
                + (f" ± {spread:.4f}" if not math.isnan(spread) else "")
            )
            if "t_p" not in value:
                cells += ["", "", ""]
                continue
            between = f" [{value['ci_low']:+.4f}, {value['ci_high']:+.4f}]"
            tested = not math.isnan(value["t_p"])
            cells += [
                f"{value['mean_difference']:+.4f}" + between * tested,
                *(
                    f"{p:.2g}" if not math.isnan(p) else ""
                    for p in (value["t_p"], value["seed_p"])
                ),
            ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
