"""The training loop, from top to bottom.

`train_and_evaluate` is everything that `launch/train.py` calls: it loads the
dataset, composes the recommender, places it on the mesh, resumes where the
workdir stopped, trains until valid stops improving, and evaluates the best
step on test. Run again with the same arguments, it goes on. Told to stop by a
signal, it saves the step that it has come to and raises `Stopped`.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from neggen_jax import check, evaluate, hosts, memory, metrics, storage
from neggen_jax import results as told
from neggen_jax.catalog import Catalog
from neggen_jax.checkpoint import Checkpoints, read_json, write_json
from neggen_jax.errors import InputError
from neggen_jax.preemption import Preemption, Stopped
from neggen_jax.preparation import Preparation
from neggen_jax.progress import Progress
from neggen_jax.run import Run
from neggen_jax.saving import Meta, Saving
from neggen_jax.step import Report, State
from neggen_jax.warm_start import warm_start
from neggen_jax.workdir import RUN, Log, claim, writing

# Of an epoch: with fewer, hardly anything is learnt in the epochs that early
# stopping waits for.
_FEW_STEPS = 5


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    catalog: Catalog | None = None,
) -> dict[str, Any]:
    """Trains, or resumes, and evaluates the best step on valid and test.

    Args:
      config: an experiment; see `neggen_jax/config.py` for its keys.
      workdir: where the run lives; see `neggen_jax/workdir.py`.
      catalog: the dataset, if it is in memory already; otherwise it is
        loaded from `config.data.path`.

    Returns:
      What is written to `results.json`.

    Raises:
      InputError: for bad configs, data, workdirs and checkpoints, and when
        the loss stops being finite.
      Stopped: if it was told to stop, by SIGTERM or SIGINT, before it had
        finished; see `Preemption`.
    """
    with Preemption() as preemption, hosts.watch(orderly=Stopped):
        return _train_and_evaluate(config, workdir, catalog, preemption)


def _train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    catalog: Catalog | None,
    preemption: Preemption,
) -> dict[str, Any]:
    directory = storage.path(workdir)
    run = Run.make(config, catalog)
    if run.config.evaluate.category:
        # Whether it is there is better known now than after training.
        _ = run.categories
    state, abstract = run.start()
    finished = directory / "results.json"
    # Results that are there may be those of a shorter run: who starts runs
    # again takes a run for done that stops in order and leaves some.
    if not hosts.lead("look", finished.exists):
        preemption.heed()
    begun = hosts.lead("look for a run", (directory / RUN).exists)
    if config.train.start_from and not begun:
        state = warm_start(run, state)
    # Only now: whatever is wrong with config or data leaves no workdir.
    hosts.lead("claim", lambda: str(claim(directory, config, run.catalog)))
    with Checkpoints(directory, config.train.keep) as checkpoints:
        progress = Meta()
        if checkpoints.latest is not None:
            state, saved = checkpoints.restore(abstract)
            preemption.saved = int(state.step)
            # Timings are those of the process that reports them.
            progress = Meta(**saved | Meta.timings())
        elif config.train.start_from and begun:
            state = warm_start(run, state)
        if not progress.over(config.train):
            # Left by a run that was shorter.
            hosts.lead("begin", lambda: finished.unlink(missing_ok=True))
            preemption.heed()
            Trainer(run, directory, checkpoints, preemption).train(
                state, progress
            )
        else:

            def read():
                if not finished.exists():
                    return None
                _present(run, directory)
                return read_json(finished)

            known = hosts.lead("results of before", read)
            if known is not None:
                return dict(known)
        preemption.saved = checkpoints.latest
        _, saved = checkpoints.restore(abstract, checkpoints.latest)
        progress = Meta(**saved)
        best, _ = checkpoints.restore(abstract, progress.best_step)
    hosts.phase("results", slow=True)
    memory.give_back()
    with writing(directory):
        results = told.gather(run, best, progress, directory, preemption)

        def tell():
            with writing(directory):
                write_json(finished, results)
                _present(run, directory, anew=True)

        hosts.lead("results", tell)
    # Not from the file, which elsewhere may not be seen yet.
    return json.loads(json.dumps(results))


class Trainer:
    """Runs epochs, and between them evaluates, logs and saves."""

    def __init__(
        self,
        run: Run,
        directory: epath.Path,
        checkpoints: Checkpoints,
        preemption: Preemption,
    ):
        self.run, self.directory = run, directory
        self.checkpoints, self.preemption = checkpoints, preemption
        self._ranker = run.ranker("valid", exact=False)
        self._prepare: Any = None
        self._train: Any = None
        self._evaluated = False

    def train(self, state: State, meta: Meta) -> None:
        """Trains from `state` until the run is over.

        Raises:
          Stopped: if it was told to; what was trained is saved.
        """
        config, schedule = self.run.config.train, self.run.stream.schedule
        step = int(state.step)
        feed = self.run.batches(schedule.dispatch(step))
        # The first stack also starts the pipeline; no epoch should count it.
        self._feed = itertools.chain([next(feed)], feed)
        # Stopped between an epoch and its evaluation, it evaluates now.
        evaluated = step == meta.epochs * schedule.steps_per_epoch
        self._log = Log(self.directory, step, evaluated)
        self._saving = saving = Saving(
            self.checkpoints,
            config,
            schedule.steps_per_epoch,
            # No checkpoint is to be newer than what is known of its steps.
            first=self._log.keep,
        )
        if not saving.due(step, meta):
            self.checkpoints.pass_by(step)
        self._state = state
        self._doubt()
        try:
            with Progress(self.run, meta, step) as bar:
                while not meta.over(config):
                    self._epoch(meta)
                    value = self._measure(meta)
                    saving.save(self._state, meta)
                    bar.show(meta, value)
            self.checkpoints.wait()
        except Stopped:
            now = int(self._state.step)
            if now != step:
                saving.save(self._state, meta, stopping=True)
                self.checkpoints.wait()
                self.preemption.saved = now
            raise self.preemption.stopped() from None
        finally:
            self._log.close()

    def _doubt(self) -> None:
        """Says what of the config is hardly meant."""
        config, schedule = self.run.config, self.run.stream.schedule
        steps = schedule.steps_per_epoch
        found = check.doubts(config.negatives, config.train.epochs, steps)
        if steps < _FEW_STEPS:
            found.append(
                f"an epoch has few steps ({steps}, of "
                f"{config.train.batch_size} interactions): smaller batches "
                "(train.batch_size) learn more in it"
            )
        if hosts.first():
            for doubt in found:
                print(f"warning: {doubt}", file=sys.stderr, flush=True)

    def _epoch(self, meta: Meta) -> None:
        """Trains to the end of the epoch that the state is in.

        Raises:
          Stopped: if it was told to; all that was trained is logged.
        """
        schedule, put = self.run.stream.schedule, self.run.partition.put
        dispatch = schedule.dispatch(int(self._state.step))
        end = (meta.epochs + 1) * schedule.dispatches_per_epoch
        if dispatch == end:
            return
        whole = end - dispatch == schedule.dispatches_per_epoch
        counts = [
            put(np.int32(schedule.count(number)))
            for number in range(dispatch, end)
        ]
        epoch = put(np.int32(meta.epochs))
        # Others may be compiling for longer than this process.
        hosts.phase(f"epoch {meta.epochs + 1}", slow=self._train is None)
        if self._train is None:
            self._compile(epoch, meta)
        started = time.perf_counter()
        prepared = self._prepare(self.run.inputs, epoch)
        waiting: list[Report] = []
        waited = 0.0
        for count in counts:
            if self.preemption.told():
                break
            asked = time.perf_counter()
            stack = next(self._feed)
            # Devices that are still at work do not wait.
            if not waiting or _over(waiting[-1]):
                waited += time.perf_counter() - asked
            # From here on nothing crosses between host and devices unless it
            # is said so.
            with jax.transfer_guard("disallow"):
                self._state, said = self._train(
                    self._state, prepared, stack, count
                )
            # A report is read while the dispatch after it runs.
            waiting.append(said)
            if len(waiting) > 1:
                self._tell(waiting.pop(0), dispatch)
                dispatch += 1
        if waiting:
            self._tell(waiting.pop(0), dispatch)
            dispatch += 1
        if dispatch < end:
            raise Stopped
        if whole:
            meta.epoch_seconds.append(time.perf_counter() - started)
            meta.input_seconds.append(waited)

    def _compile(self, epoch: jax.Array, meta: Meta) -> None:
        """Compiles what trains: an epoch's preparation, and a dispatch."""
        run, state = self.run, self._state
        count = run.partition.put(np.int32(0))
        started = time.perf_counter()
        preparation = Preparation(run.program.prepare, run.inputs, epoch)
        self._prepare = preparation.compile(run.inputs, epoch)
        prepared = self._prepare(run.inputs, epoch)
        dispatch = run.program.trainer(state)
        self._train = dispatch.lower(
            state, prepared, run.stack(), count
        ).compile()
        meta.compile_seconds = time.perf_counter() - started
        memory.give_back()

    def _tell(self, said: Report, dispatch: int) -> None:
        """Logs a report; stops the run if its loss was not finite."""
        said = jax.device_get(said)
        hosts.alive()
        if said.bad_step >= 0:
            # Two slashes: a metric, which may have nothing to measure.
            terms = {
                k: float(v)
                for k, v in said.bad_terms.items()
                if k.count("/") < 2
            }
            # What was good until then is to be there.
            self._saving.flush()
            self.checkpoints.wait()
            raise InputError(
                f"Training diverged at step {said.bad_step}.",
                where=self.directory,
                expected="finite loss terms, gradients and updates",
                found=terms,
                fix="lower the learning rate or clip gradients, in a new "
                "workdir; checkpoints here are from before this step",
            )
        schedule = self.run.stream.schedule
        step = schedule.start(dispatch) + schedule.count(dispatch)
        values = {
            f"train/{k}": float(v)
            for k, v in said.means.items()
            # Of a metric: there was nothing to measure.
            if np.isfinite(v)
        }
        values["epoch"] = step / schedule.steps_per_epoch
        self._log.write(step, values)

    def _measure(self, meta: Meta) -> float | None:
        """Ends an epoch, and evaluates it on valid if it is time to.

        Raises:
          Stopped: if it was told to before it was done; the epoch then is
            not.
        """
        config, done = self.run.config, meta.epochs + 1
        if done % config.train.eval_every and done != config.train.epochs:
            meta.epochs = done
            return None
        self.preemption.heed()
        hosts.phase(f"evaluation of epoch {done}", slow=not self._evaluated)
        step = int(self._state.step)
        started = time.perf_counter()
        users, items = self.run.encode(self._state.evaluated)
        ranked = self._ranker(users, items, self.preemption.heed)
        values = metrics.summarize(
            evaluate.accuracy(ranked, tuple(config.evaluate.cutoffs))
        )
        if ranked.recall is not None:
            values["list_recall"] = ranked.recall
        if self._evaluated:
            meta.evaluation_seconds.append(time.perf_counter() - started)
        self._evaluated = True
        value = values[config.train.metric]
        meta.epochs = done
        meta.note(value, step)
        line = {f"valid/{name}": v for name, v in values.items()}
        self._log.write(step, {"epoch": done, **line})
        self._log.keep()
        return value


def _over(said: Report) -> bool:
    """Whether the devices are done with what they make this report of."""
    made: Any = said.bad_step
    return bool(made.is_ready())


def _present(run: Run, directory: epath.Path, anew: bool = False) -> None:
    """Draws a finished run and writes its report: what is missing, or all."""
    # Only now: nothing that trains waits for what draws.
    from neggen_jax.reporting.write import conclude

    # Runs of earlier versions do not have the key.
    report = run.config.evaluate.get("report", True)
    conclude(directory, run.catalog, report=report, anew=anew)
