"""Optuna's study of a search: what is tried next, and what came of it.

What is tried next is a function of the search and of the trials before it:
each trial has a sampler of its own, seeded by its number. So a search that was
killed goes on as if it had not been. The study is a journal in the output
directory, which Optuna's other tools can read too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neggen_jax import trials
from neggen_jax.errors import InputError
from neggen_jax.history import read_metrics, series
from neggen_jax.search.spec import Range, Search, Value, claim, setting

# optuna is imported where it is used: it is an extra.
if TYPE_CHECKING:
    import optuna

# As many trials in a row that fail are no accident.
_PATIENCE = 3


@dataclasses.dataclass(frozen=True)
class Tried:
    """A trial, as the study knows it.

    Attributes:
      number: from 0.
      state: "finished", "pruned", "failed" or "begun".
      params: config key -> value.
      curve: epoch -> the metric on valid.
      reason: why it failed.
    """

    number: int
    state: str
    params: Mapping[str, Value]
    curve: Mapping[int, float]
    reason: str = ""

    @property
    def value(self) -> float | None:
        """The highest of the curve; None if nothing was evaluated."""
        return max(self._finite.values(), default=None)

    @property
    def epoch(self) -> int | None:
        """That has it, the first if several do."""
        curve = self._finite
        return max(curve, key=lambda x: (curve[x], -x), default=None)

    @property
    def _finite(self) -> dict[int, float]:
        return {k: v for k, v in self.curve.items() if math.isfinite(v)}


class Study:
    """The study in an output directory.

    Args:
      search: what is asked for.
      output: directory, which exists and is this process' alone.

    Raises:
      InputError: if there is no Optuna.
    """

    def __init__(self, search: Search, output: Path):
        optuna = available()
        self.search, self.path = search, output / "study.journal"
        _mend(self.path)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(
                str(self.path), lock_obj=_Ours()
            )
        )
        self._study = optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            pruner=self._pruner(),
            load_if_exists=True,
        )

    @property
    def tried(self) -> list[Tried]:
        """All trials, by number."""
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Tried(
                trial.number,
                states.get(trial.state.name, "begun"),
                trial.params,
                trial.intermediate_values,
                trial.user_attrs.get("reason", ""),
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def ask(self, number: int) -> optuna.Trial:
        """A trial that was begun, or else the next one."""
        import optuna

        known = self._study.get_trials(deepcopy=False)
        with warnings.catch_warnings():
            # The sampler of grids is "experimental".
            warnings.simplefilter(
                "ignore", optuna.exceptions.ExperimentalWarning
            )
            self._study.sampler = self._sampler(number)
        space = {
            key: _distribution(of) for key, of in self.search.space.items()
        }
        if number == len(known):
            return self._study.ask(space)
        trial = optuna.Trial(self._study, known[number]._trial_id)
        for key, distribution in space.items():
            # What it was given stays; a kill may have left some out.
            trial._suggest(key, distribution)
        return trial

    def finish(self, trial: optuna.Trial) -> None:
        """Notes that a trial is done; its best value is what it is worth."""
        value = self.tried[trial.number].value
        assert value is not None
        self._study.tell(trial, value)

    def fell(self, trial: optuna.Trial) -> int:
        """Notes that a trial was killed; how often it has been."""
        count = int(trial.user_attrs.get("killed", 0)) + 1
        trial.set_user_attr("killed", count)
        return count

    def prune(self, trial: optuna.Trial) -> None:
        """Notes that a trial was ended early."""
        self._tell(trial, "PRUNED")

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        """Notes that a trial could not be made."""
        trial.set_user_attr("reason", reason)
        self._tell(trial, "FAIL")

    def _tell(self, trial: optuna.Trial, state: str) -> None:
        import optuna

        self._study.tell(trial, state=optuna.trial.TrialState[state])

    def importances(self) -> dict[str, float]:
        """How much of the differences of finished trials each key explains.

        fANOVA (Hutter et al., "An Efficient Approach for Assessing
        Hyperparameter Importance", ICML 2014); nothing of fewer than four
        finished trials, or where all have the same value.
        """
        from optuna import importance

        values = [x.value for x in self.tried if x.state == "finished"]
        if len(values) < 4 or len(set(values)) == 1:
            return {}
        evaluator = importance.FanovaImportanceEvaluator(seed=0)
        found = importance.get_param_importances(
            self._study, evaluator=evaluator
        )
        return {key: float(share) for key, share in found.items()}

    def _sampler(self, number: int) -> Any:
        from optuna import samplers

        asked = self.search.sampler
        mixed = np.random.SeedSequence([asked.seed, number])
        seed = int(mixed.generate_state(1)[0])
        if asked.name == "tpe":
            return samplers.TPESampler(
                seed=seed, n_startup_trials=asked.startup
            )
        at_random = samplers.RandomSampler(seed=seed)
        if asked.name == "random":
            return at_random
        # Optuna's own sampler of grids wants to stop a loop of Optuna's.
        return samplers.PartialFixedSampler(self.search.grid[number], at_random)

    def _pruner(self) -> Any:
        from optuna import pruners

        asked = self.search.pruner
        if asked.name == "none":
            return pruners.NopPruner()
        return pruners.MedianPruner(
            n_startup_trials=asked.startup, n_warmup_steps=asked.warmup
        )


class Watch:
    """Reads a trial's learning curve while it grows.

    Whether a trial is ended is asked of each evaluated epoch in turn, however
    many there are to read at once: it does not depend on who is faster.

    Attributes:
      enough: whether it is to be ended.
    """

    def __init__(self, trial: optuna.Trial, run: trials.Trial):
        self._trial, self._config = trial, run.config
        self._path = run.workdir / "metrics.jsonl"
        study = trial.study.get_trials(deepcopy=False)
        self._known = dict(study[trial.number].intermediate_values)
        self._size = -1
        # A kill may have come between a report and its answer.
        last = max(self._known, default=self._config.train.epochs)
        self.enough = last < self._config.train.epochs and trial.should_prune()

    def __call__(self) -> bool:
        """Reads what is new; returns `enough`."""
        size = self._path.stat().st_size if self._path.exists() else -1
        if self.enough or size == self._size:
            return self.enough
        self._size = size
        key = f"valid/{self._config.train.metric}"
        log = read_metrics(self._path.parent)
        for at, value in zip(*series(log, key, by="epoch"), strict=True):
            epoch = int(at)
            if epoch in self._known:
                continue
            self._known[epoch] = value
            self._trial.report(value, epoch)
            # At its last epoch there is nothing left to save.
            last = epoch >= self._config.train.epochs
            if not last and self._trial.should_prune():
                self.enough = True
                break
        return self.enough


def peek(search: Search, data: str, output: Path) -> list[Tried]:
    """What has been tried so far; writes nothing.

    Raises:
      InputError: if the output belongs to another search.
    """
    if not (output / "study.journal").exists():
        return []
    claim(search, data, output)
    # Of a copy: another process may be at work on it.
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(output / "study.journal", copy)
        return Study(search, Path(copy)).tried


def run(
    study: Study,
    data: str,
    output: Path,
    trainer: Path,
    total: int,
    say: trials.Say = print,
) -> list[str]:
    """Makes trials until there are as many as wanted.

    Args:
      study: with what is asked for.
      data: dataset directory.
      output: directory, which is this process' alone.
      trainer: `launch/train.py`.
      total: trials, those of before included.
      say: is told a line each.

    Returns:
      What went wrong, a line each.
    """
    search = study.search
    total = most(search, total)
    wrong: list[str] = []
    failed = 0
    for number in range(max(total, len(study.tried))):
        known = study.tried
        if number < len(known) and known[number].state != "begun":
            continue
        trial = study.ask(number)
        made = make(search, data, output, number, trial.params)
        status, told = _try(study, trial, made, trainer, output, say)
        now = study.tried[number]
        say(f"[{number + 1}/{total}] {_said(study, now, made)}")
        failed = failed + 1 if now.state in ("failed", "begun") else 0
        if told:
            return [*wrong, trials.TOLD]
        if now.state == "failed":
            wrong.append(f"{made.name}: {now.reason}")
        if now.state == "begun":
            wrong.append(
                f"{made.name}: status {status}; the same command resumes it"
            )
        if failed == _PATIENCE:
            return [*wrong, f"{failed} trials in a row were not finished"]
    return wrong


def most(search: Search, total: int) -> int:
    """As many trials as are wanted, or as there are points in a grid."""
    grid = search.sampler.name == "grid"
    return min(total, len(search.grid)) if grid else total


def done(study: Study, total: int) -> bool:
    """Whether all trials that are wanted have come to an end."""
    tried = study.tried
    ended = all(x.state != "begun" for x in tried)
    return ended and len(tried) >= most(study.search, total)


def make(
    search: Search,
    data: str,
    output: Path,
    number: int,
    params: Mapping[str, Value],
) -> trials.Trial:
    """The run of a trial."""
    name = f"trial-{number:03}"
    values = [setting(key, value) for key, value in params.items()]
    return trials.Trial(
        **trials.describe(
            name,
            search.config,
            [*search.values(data), *values],
            output / "trials" / name,
        )
    )


def _try(
    study: Study,
    trial: optuna.Trial,
    made: trials.Trial,
    trainer: Path,
    output: Path,
    say: trials.Say,
) -> tuple[int, bool]:
    """Makes or resumes one trial, and notes in the study what came of it.

    What was interrupted, by whomever, stays begun.
    """
    watch = Watch(trial, made)
    log = trials.log_of(made, output)
    status, told = 0, False
    if not watch() and made.state != "finished":
        words = trials.command(made, trainer)
        status, told = trials.call(words, log, say, watch)
        watch()
    if watch.enough:
        study.prune(trial)
    elif made.state == "finished":
        if study.tried[trial.number].value is None:
            study.fail(trial, f"{study.search.metric} was never finite.")
        else:
            study.finish(trial)
    elif status > 0 and not told:
        study.fail(trial, _reason(log, status))
    elif status < 0 and not told and study.fell(trial) == _PATIENCE:
        # Out of memory, say: it would go on like that for good.
        study.fail(trial, f"killed {_PATIENCE} times, by signal {-status}.")
    return status, told


def _reason(log: Path, status: int) -> str:
    """What a run that failed said last of errors."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or [line for line in lines if line.strip()] or [""])[-1]
    return f"status {status}, {said.removeprefix('error: ')[:200]} See {log}"


def _said(study: Study, now: Tried, made: trials.Trial) -> str:
    """A line about a trial, and the best so far."""
    metric = study.search.metric
    value = "" if now.value is None else f", {metric} {now.value:.4f}"
    at = f" at epoch {now.epoch}" * (now.epoch is not None)
    params = ", ".join(
        f"{key}={text(value)}" for key, value in now.params.items()
    )
    top = best(study.tried)
    ahead = f"; best {top[0].value:.4f}, trial {top[0].number}" if top else ""
    return f"{made.name} {now.state}: {params}{value}{at}{ahead}"


def best(tried: list[Tried]) -> list[Tried]:
    """Finished trials, the best first; of equal ones the earlier."""
    found = [x for x in tried if x.state == "finished"]
    return sorted(found, key=lambda x: (-(x.value or 0.0), x.number))


def text(value: Value) -> str:
    """A value to read: numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _distribution(of: Any) -> Any:
    from optuna import distributions

    if not isinstance(of, Range):
        return distributions.CategoricalDistribution(of.values)
    if of.whole:
        return distributions.IntDistribution(
            int(of.low), int(of.high), log=of.log, step=int(of.step) or 1
        )
    return distributions.FloatDistribution(
        of.low, of.high, log=of.log, step=of.step or None
    )


def available() -> Any:
    """Optuna, which says little.

    Raises:
      InputError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "A search needs Optuna.",
            found=error,
            fix="pip install -r requirements-search.txt",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _mend(journal: Path) -> None:
    """Takes away a last line that was cut short; Optuna would add to it."""
    with contextlib.suppress(FileNotFoundError), journal.open("r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        os.ftruncate(file.fileno(), whole)


class _Ours:
    """For a journal that nobody else writes: see `trials.claim`.

    Optuna's locks outlive whoever is killed.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
