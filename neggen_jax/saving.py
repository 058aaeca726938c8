"""Which steps of a run are saved.

The end of an epoch is saved if it is due, or the best so far. Where epochs are
over in an instant, to save each would take longer than to train it: so some
time has to pass between two, and the best step of the meantime is held on the
devices. A run that is killed trains that time again, to the same numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from neggen_jax import hosts
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.step import State


@dataclasses.dataclass
class Meta:
    """What the host knows of a run; saved with every checkpoint.

    Attributes:
      epochs: done, and evaluated where that is due.
      best_value: highest value of the chosen metric on valid so far.
      best_step: step that reached it first.
      worse: evaluations since.
      epoch_seconds: training time of each epoch, its preparation and its
        batches included; without compilation, evaluation and checkpoints
        (which are still being written while the next epoch trains). Epochs
        that another process began are left out.
      input_seconds: of these, how long the next batches were waited for while
        the devices had nothing to do, at most: they may have come to the end
        of it meanwhile.
      evaluation_seconds: time of each evaluation, the first one of a process
        (which compiles) left out.
      compile_seconds: of the training program, in the last process.
    """

    epochs: int = 0
    best_value: float | None = None
    best_step: int | None = None
    worse: int = 0
    epoch_seconds: list[float] = dataclasses.field(default_factory=list)
    input_seconds: list[float] = dataclasses.field(default_factory=list)
    evaluation_seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float = 0.0

    @staticmethod
    def timings() -> dict[str, list[float]]:
        """Those of a process that has just begun."""
        names = "epoch_seconds", "input_seconds", "evaluation_seconds"
        return {name: [] for name in names}

    def note(self, value: float, step: int) -> None:
        """Takes an evaluation into account."""
        if self.best_value is None or value > self.best_value:
            self.best_value, self.best_step, self.worse = value, step, 0
        else:
            self.worse += 1

    def over(self, config: ConfigDict) -> bool:
        """Whether all epochs are done, or valid has stopped improving."""
        stopped = 0 < config.patience <= self.worse
        return stopped or self.epochs >= config.epochs


class Saving:
    """Saves steps of a run.

    Args:
      checkpoints: where they are written.
      config: `config.train`.
      steps_per_epoch: of the run.
      first: called before anything is saved.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: ConfigDict,
        steps_per_epoch: int,
        first: Callable[[], None],
    ):
        self._checkpoints, self._config = checkpoints, config
        self._steps_per_epoch, self._first = steps_per_epoch, first
        self._saved, self._owed = time.monotonic(), False
        self._held: tuple[State, dict[str, Any]] | None = None

    def due(self, step: int, meta: Meta) -> bool:
        """Whether a run that nothing interrupts saves a step, time allowing.

        At the end of some epochs, of the best so far, and of the last.
        """
        if step != meta.epochs * self._steps_per_epoch:
            return False
        due = meta.epochs % self._config.checkpoint_every == 0
        return due or meta.best_step == step or meta.over(self._config)

    def save(self, state: State, meta: Meta, stopping: bool = False) -> None:
        """Saves a step, or holds it, if it is due or the run is to stop.

        What is due too early is saved at the end of the first epoch that is
        not.

        Args:
          state: what training has come to.
          meta: what is known of it.
          stopping: whether nothing will follow.
        """
        step = int(state.step)
        due, last = self.due(step, meta), stopping or meta.over(self._config)
        self._owed |= due
        if not self._owed and not last:
            return
        if meta.best_step == step:
            self._held = None
        if not last and self._early():
            if meta.best_step == step:
                # Training goes on in the memory of what it is given.
                copied = jax.tree.map(jnp.copy, state)
                self._held = copied, dataclasses.asdict(meta)
            return
        # A checkpoint names the best step, which has to be there before it.
        self.flush()
        self._first()
        self._checkpoints.save(state, dataclasses.asdict(meta), passing=not due)
        self._saved, self._owed = time.monotonic(), False

    def flush(self) -> None:
        """Saves the best step, if it is held."""
        if self._held is not None:
            self._first()
            self._checkpoints.save(*self._held)
            self._held = None

    def _early(self) -> bool:
        # Runs of earlier versions do not have the key.
        least = self._config.get("checkpoint_seconds", 0.0)
        if not least:
            return False

        def look() -> bool:
            return time.monotonic() - self._saved < least

        return bool(hosts.lead("time to save", look))
