"""What a run left in its workdir, read once for a report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from neggen_jax import history, storage
from neggen_jax.errors import InputError
from neggen_jax.history import Workdir

# In the order of tables; those of single users.
ACCURACY = ("recall", "ndcg", "precision", "map", "mrr", "hitrate")
SPLITS = ("test", "valid")


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """One run.

    Attributes:
      workdir: as it was given.
      directory: the same as a path.
      name: that tells it from other runs of the report.
      results: of `results.json`.
      log: of `metrics.jsonl`.
      users: split -> columns of `history.read_users`; {} where a run of an
        earlier version has none.
    """

    workdir: str
    directory: epath.Path
    name: str
    results: dict[str, Any]
    log: list[dict[str, Any]]
    users: Mapping[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, workdir: Workdir, name: str = "") -> Told:
        """Reads a finished run.

        Raises:
          InputError: it has not finished, or a file of it cannot be read.
        """
        directory = storage.path(workdir)
        results = history.read_results(workdir)
        lacking = {"dataset", "config", "step", "test", "valid"} - set(results)
        if lacking or not isinstance(results["dataset"], dict):
            raise InputError(
                "The results of a run do not tell what a report is made of.",
                where=directory / "results.json",
                found=f"nothing of {', '.join(sorted(lacking)) or 'dataset'}",
                fix="train it again in a new workdir",
            )
        users: dict[str, dict[str, np.ndarray]] = {}
        for split in SPLITS:
            users[split] = {}
            if (directory / f"per_user_{split}.npz").exists():
                users[split] = history.read_users(workdir, split)
        log = history.read_metrics(workdir)
        (known,) = history.names([workdir])
        return cls(str(workdir), directory, name or known, results, log, users)

    @property
    def config(self) -> dict[str, Any]:
        """Of the experiment, nested."""
        return self.results["config"]

    @property
    def dataset(self) -> dict[str, Any]:
        """Name, fingerprint and sizes."""
        return self.results["dataset"]

    @property
    def step(self) -> int:
        """The best one on valid, whose state was evaluated."""
        return int(self.results["step"])

    @property
    def metric(self) -> str:
        """What the best step was chosen by."""
        return self.config.get("train", {}).get("metric", history.CHOSEN_BY)

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """At which accuracy was measured, rising."""
        found = (re.fullmatch(r"recall@(\d+)", key) for key in self.test)
        return tuple(sorted(int(match[1]) for match in found if match))

    @property
    def test(self) -> dict[str, float]:
        """Measures of the test split."""
        return self.results["test"]

    def headline(self, name: str) -> str:
        """The metric at 20, or at the cut-off next below, or at the least."""
        short = [k for k in self.cutoffs if k <= 20]
        return f"{name}@{max(short, default=min(self.cutoffs))}"
