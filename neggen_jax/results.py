"""What `results.json` tells of a run that is finished."""

from __future__ import annotations

import importlib.metadata
import resource
import statistics
import sys
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from neggen_jax import balance, evaluate, memory, metrics
from neggen_jax.preemption import Preemption
from neggen_jax.run import Run, evaluate_state
from neggen_jax.step import State

if TYPE_CHECKING:
    from neggen_jax.saving import Meta


def gather(
    run: Run,
    state: State,
    meta: Meta,
    directory: epath.Path,
    preemption: Preemption,
) -> dict[str, Any]:
    """Evaluates the best step, and tells how it was come by.

    Args:
      run: that is finished.
      state: of its best step.
      meta: what training has told of itself.
      directory: the workdir, where users' own metrics are written.
      preemption: heeded before each block of users.
    """
    splits, deciles = {}, {}
    for split in evaluate.SEEN:
        splits[split], deciles[split] = evaluate_state(
            run,
            state,
            split,
            directory=directory,
            heed=preemption.heed,
        )
        memory.give_back()
    metric, _ = balance.metric(run)
    without = balance.measure(run, state, heed=preemption.heed)
    splits["test"] |= balance.drops(splits["test"][metric], without)
    cutoffs = run.config.evaluate.cutoffs
    ranked = evaluate.most_popular(
        run.catalog, "test", max(cutoffs), preemption.heed
    )
    popular = metrics.summarize(evaluate.accuracy(ranked, cutoffs))
    seconds = _median(meta.epoch_seconds)
    waited = _median(meta.input_seconds)
    examples = run.stream.schedule.steps_per_epoch * run.stream.batch_size
    step = int(state.step)
    return {
        "dataset": {
            "name": run.catalog.name,
            "fingerprint": run.catalog.fingerprint,
            "users": int(run.catalog.num_users),
            "items": int(run.catalog.num_items),
            "interactions": {k: len(v) for k, v in run.catalog.splits.items()},
        },
        "config": run.config.to_dict(),
        "step": step,
        "epoch": step / run.stream.schedule.steps_per_epoch,
        "epochs_trained": meta.epochs,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        **splits,
        "most_popular": popular,
        "deciles": deciles["test"],
        "without_modality": {metric: without} if without else {},
        "timing": {
            "seconds_per_epoch": seconds,
            "examples_per_second": examples / seconds if seconds else None,
            "input_share": waited / seconds if waited and seconds else None,
            "evaluation_seconds": _median(meta.evaluation_seconds),
            "compile_seconds": meta.compile_seconds,
            "peak_memory_mib": _peak_memory(),
        },
        "devices": [
            str(d.device_kind) for d in run.partition.mesh.devices.flat
        ],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "optax", "orbax-checkpoint")
        },
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _peak_memory() -> float:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
