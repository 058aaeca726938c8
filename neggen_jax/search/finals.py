"""The best trials again, over several seeds, beside the config as it was.

A trial may be the best by the luck of its seed. So the best few are made
again with other seeds, and the highest mean on valid is chosen; that may be
the config that nothing was changed in. Of what is chosen, and of that config,
test is read.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax import significance, trials
from neggen_jax.history import read_results
from neggen_jax.search.spec import Search, Value, setting
from neggen_jax.search.study import Tried, best

# The config as it is, with what is set for all.
DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Finalist:
    """A config, and its runs over the seeds.

    Attributes:
      name: such as "trial-007", or "default".
      params: config key -> value; none of the default.
      runs: one a seed.
    """

    name: str
    params: Mapping[str, Value]
    runs: tuple[trials.Trial, ...]

    def valid(self, metric: str) -> list[float]:
        """The metric of each run that is finished."""
        return [
            float(read_results(run.workdir)["valid"][metric])
            for run in self.runs
            if run.state == "finished"
        ]


def make(
    search: Search, data: str, output: Path, tried: list[Tried]
) -> list[Finalist]:
    """The best few, best first, and the default; none without seeds."""
    chosen: dict[str, Mapping[str, Value]] = {
        f"trial-{x.number:03}": x.params for x in best(tried)[: search.best]
    }
    if not search.seeds or not chosen:
        return []
    out = []
    for name, params in {**chosen, DEFAULT: {}}.items():
        runs = []
        for seed in search.seeds:
            here = f"{name}-seed-{seed}"
            values = [
                *search.values(data),
                *(setting(key, value) for key, value in params.items()),
                f"seed={seed}",
            ]
            fields = trials.describe(
                here, search.config, values, output / "seeds" / here
            )
            runs.append(trials.Trial(**fields))
        out.append(Finalist(name, params, tuple(runs)))
    return out


def run(
    finalists: Sequence[Finalist],
    trainer: Path,
    output: Path,
    say: trials.Say = print,
) -> list[str]:
    """Makes the runs that are not finished, seed by seed."""
    made = [
        run
        for runs in zip(*(x.runs for x in finalists), strict=True)
        for run in runs
    ]
    return trials.run(made, trainer, output, say)


def choose(search: Search, finalists: Sequence[Finalist]) -> Finalist | None:
    """The highest mean on valid; None until all runs are finished."""
    means = []
    for finalist in finalists:
        values = finalist.valid(search.metric)
        if len(values) < len(search.seeds):
            return None
        means.append(statistics.fmean(values))
    return finalists[means.index(max(means))] if means else None


def tested(
    search: Search, finalists: Sequence[Finalist], chosen: Finalist
) -> list[dict[str, Any]]:
    """Test of the default and of what was chosen; see `significance.rows`."""
    default = next(x for x in finalists if x.name == DEFAULT)
    both = [default] if chosen is default else [default, chosen]
    cutoff = search.metric.partition("@")[2]
    metrics = dict.fromkeys(
        (search.metric, f"recall@{cutoff}", f"ndcg@{cutoff}")
    )
    return significance.rows(
        [
            significance.read(
                x.name, [run.workdir for run in x.runs], list(metrics)
            )
            for x in both
        ]
    )
