"""A run: config, dataset, mesh and recommender, composed and placed.

Shared by `train.py`, which changes its state, and by the commands that read
what was trained.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from neggen_jax import (
    check,
    evaluate,
    hosts,
    optimizer,
    recommender,
    storage,
)
from neggen_jax.catalog import Catalog
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.data import batches, inputs, rewritten, store
from neggen_jax.data.categories import categories
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoded
from neggen_jax.ops import native
from neggen_jax.partition import Partition, make_partition
from neggen_jax.step import Program, State
from neggen_jax.workdir import read_identity

Builder = Callable[..., inputs.Inputs]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that stands still while a run trains.

    Attributes:
      config: of the experiment.
      catalog: the dataset.
      partition: the mesh.
      program: the pure functions.
      stream: of batches.
      inputs: graphs and features, whole; epochs are prepared from them.
    """

    config: ConfigDict
    catalog: Catalog
    partition: Partition
    program: Program
    stream: batches.Stream
    inputs: inputs.Inputs

    @classmethod
    def make(
        cls,
        config: ConfigDict,
        catalog: Catalog | None = None,
        devices: list[Any] | None = None,
        build: Builder | None = None,
    ) -> Run:
        """Composes a run; nothing is computed on the devices yet.

        Args:
          config: of the experiment.
          catalog: if it is in memory already; otherwise it is loaded from
            `config.data.path`.
          devices: to run on; all of them, by default.
          build: makes the inputs, `inputs.build` by default;
            `inputs.abstract` only tells their shapes.

        Raises:
          InputError: for bad values, unknown names and unfit data.
        """
        mesh = config.mesh
        # Runs of earlier versions do not have the last two keys.
        partition = make_partition(
            mesh.data,
            mesh.model,
            devices,
            mesh.get("tables", "model"),
            mesh.get("exchange", "gather"),
        )
        if catalog is None and not config.data.path:
            raise InputError(
                "No dataset is named.",
                where="config.data.path",
                fix="give --config.data.path=DIR, as launch/prepare.py made it",
            )
        storage.local(config.data.path, "config.data.path")
        wanted = config.data.counterfactuals
        if catalog is None:
            catalog = _load(config.data.path, wanted.name or None)
        if wanted.shuffled and catalog.counterfactuals is not None:
            catalog = dataclasses.replace(
                catalog,
                counterfactuals=catalog.counterfactuals.shuffled(config.seed),
            )
        check.check(config, partition, catalog)
        sizes = inputs.sizes(catalog, partition)
        model = recommender.build(config, sizes)
        needs, tables = model.needs(), {}
        build = build or inputs.build
        dtype = feature_dtype(config)
        placed = build(catalog, needs, partition, wanted.feed, dtype)
        if needs.counterfactuals and wanted.feed == "batches":
            assert catalog.counterfactuals is not None
            tables = rewritten.columns(catalog.counterfactuals)
        # Runs of earlier versions do not have the key.
        several = config.train.get("batches_per_step", 1)
        size = several * config.train.batch_size
        stream = batches.make_stream(
            catalog,
            size,
            config.train.steps_per_dispatch,
            config.seed,
            item_tables=tables,
            places=partition.mine(size, "batch"),
            # Runs of earlier versions do not have the key.
            half_life=config.data.get("half_life", 0.0),
        )
        steps = stream.schedule.steps_per_epoch
        program = Program(
            recommender=model,
            optimizer=optimizer.make(
                config.optimizer,
                config.train.epochs * steps,
                native.on_cpu(partition.mesh) and partition.mesh.size == 1,
            ),
            partition=partition,
            seed=config.seed,
            steps_per_epoch=steps,
            epochs=config.train.epochs,
            dtype=config.train.dtype,
            decay=config.train.ema,
            batches=several,
        )
        return cls(config, catalog, partition, program, stream, placed)

    def start(self) -> tuple[State, State]:
        """The state of step 0, and its abstract form; see `Program.place`."""
        batch = {
            name: self.partition.put(np.zeros(like.shape, like.dtype), "batch")
            for name, like in self.batch().items()
        }
        return self.program.place(self.inputs, batch)

    def batch(self) -> dict[str, Any]:
        """The shapes of what one step reads."""
        size = self.stream.batch_size
        return {
            name: self.partition.abstract((size, *shape), dtype, "batch")
            for name, (shape, dtype) in self.stream.columns.items()
        }

    def batches(self, first: int) -> Iterator[dict[str, jax.Array]]:
        """Stacks from dispatch `first` on, placed on the devices."""
        pipeline = batches.PIPELINES[self.config.data.pipeline]
        size = self.stream.batch_size
        mine = self.partition.mine(size, "batch")
        for stack in pipeline(self.stream, first):
            yield {
                name: self.partition.join(column, mine, size, "step", "batch")
                for name, column in stack.items()
            }

    def stack(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of what `batches` yields."""
        sharding = self.partition.sharding("step", "batch")
        rows = self.stream.schedule.steps_per_dispatch, self.stream.batch_size
        return {
            name: jax.ShapeDtypeStruct(
                (*rows, *shape), dtype, sharding=sharding
            )
            for name, (shape, dtype) in self.stream.columns.items()
        }

    def encode(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """Final vectors of all users and items, float32, as they are ranked.

        Args:
          params: of the recommender.
        """
        users, items = self._encode(params, self.inputs)
        tables = self.stream.item_tables
        if not tables:
            return users, items
        # Counterfactuals that batches bring are on no device: sources read
        # them here block by block.
        block = min(self.catalog.num_items, self.config.evaluate.block_size)
        out = jnp.copy(items)
        for first in range(0, self.catalog.num_items, block):
            # The last block may repeat some of the one before.
            start = min(first, self.catalog.num_items - block)
            some = rewritten.block(tables, start, block, self.partition)
            out = self._extend(
                params, self.inputs, some, (users, items), out, start
            )
            hosts.alive()
        return users, out

    @functools.cached_property
    def _encode(self) -> Any:
        return jax.jit(self.program.encode)

    @functools.cached_property
    def _extend(self) -> Any:
        @functools.partial(jax.jit, donate_argnums=4)
        def extend(params, inputs, tables, known, out, start):
            users, items = known
            tables = rewritten.standardised(inputs.counterfactuals, tables)
            size = len(next(iter(tables.values())).factual)
            some = Encoded(
                users, jax.lax.dynamic_slice_in_dim(items, start, size), {}
            )
            here = dataclasses.replace(inputs.counterfactuals, tables=tables)
            moved: Any = self.program.recommender.apply(
                {"params": params},
                some,
                dataclasses.replace(inputs, counterfactuals=here),
                method="extend",
            )
            return jax.lax.dynamic_update_slice_in_dim(
                out, moved.items, start, 0
            )

        return extend

    @functools.cached_property
    def categories(self) -> np.ndarray | None:
        """Of the items; see `data.categories`.

        Read from the dataset directory when somebody first asks: no training
        step does.

        Raises:
          InputError: if `config.evaluate.category` names no attribute.
        """
        records, path = self.catalog.records, self.config.data.path
        if records is None and path:
            known = store.describe(path)
            # A catalogue that was in memory may be another one.
            if known["fingerprint"] == self.catalog.fingerprint:
                records = store.read_records(path)
        # Runs of earlier versions do not have the key.
        return categories(records, self.config.evaluate.get("category", ""))

    def ranker(self, split: str, *, exact: bool = True) -> evaluate.Ranker:
        """Ranks the held-out users of a split, exactly or as is configured."""
        config = self.config.evaluate
        return evaluate.Ranker(
            self.catalog,
            split,
            self.partition,
            k=max(config.cutoffs),
            block_size=config.block_size,
            # Runs of earlier versions do not have the key.
            recall_target=1.0 if exact else config.get("recall_target", 1.0),
        )


def feature_dtype(config: ConfigDict) -> str:
    """What features are kept in on the devices."""
    # Runs of earlier versions do not have the key.
    lower = config.data.get("feature_dtype", "float32") == "bfloat16"
    return "bfloat16" if lower else config.train.dtype


def _load(directory: str, counterfactuals: str | None) -> Catalog:
    """The dataset; one process sees whether it is what it was."""

    load = functools.partial(
        store.load, directory, counterfactuals=counterfactuals
    )
    # Not kept: all that it has touched would stay in memory.
    known = hosts.lead("dataset", lambda: load().identity)
    catalog = load(trust=True)
    if catalog.identity != known:
        raise InputError(
            "Processes have different datasets.",
            where=directory,
            expected=f"{known}, as process 0 has",
            found=catalog.identity,
            fix="give all of them the same files",
        )
    return catalog


def reopen(
    workdir: str | os.PathLike[str],
    data: str | None = None,
    catalog: Catalog | None = None,
) -> tuple[Run, State, int]:
    """The run of a workdir with the state of its best step.

    It may have been trained on other devices: all that are here are used.

    Args:
      workdir: of the run.
      data: where the dataset is now, if it has moved.
      catalog: the dataset, if it is in memory.

    Returns:
      The run, its best state and the step of that state.

    Raises:
      InputError: if there is no run, nothing was saved, or the dataset is
        not there any more or has changed.
    """
    directory = storage.path(workdir)
    identity = read_identity(directory)
    config = ConfigDict(identity["config"])
    config.mesh.update(data=-1, model=1)
    config.data.path = data or config.data.path
    run = Run.make(config, catalog)
    if run.catalog.identity != identity["fingerprint"]:
        raise InputError(
            "The dataset has changed since the run was trained.",
            where=config.data.path,
            expected=identity["fingerprint"],
            found=run.catalog.identity,
            fix="prepare it as it was, or train again in a new workdir",
        )
    _, abstract = run.start()
    with Checkpoints(directory, read_only=True) as checkpoints:
        _, meta = checkpoints.restore(abstract)
        state, _ = checkpoints.restore(abstract, meta["best_step"])
    return run, state, int(state.step)


def evaluate_state(
    run: Run,
    state: State,
    split: str,
    *,
    directory: epath.Path | None = None,
    heed: Callable[[], object] = lambda: None,
) -> tuple[dict[str, float], dict[str, list]]:
    """All measures of one split.

    Args:
      run: composed.
      state: whose averaged or plain parameters rank.
      split: "valid" or "test".
      directory: where each user's own values are written, for tests of
        significance and reports: `per_user_<split>.npz`, "users", "lists"
        (int32 `[U, k]`, the first k recommendations, at most 20) and one
        array a metric.
      heed: see `Ranker`.

    Returns:
      Measure -> value, and recall by popularity decile.
    """
    users, items = run.encode(state.evaluated)
    ranked = run.ranker(split)(users, items, heed)
    cutoffs = tuple(run.config.evaluate.cutoffs)
    if directory is not None:
        columns: dict[str, Any] = evaluate.accuracy(ranked, cutoffs)
        columns["lists"] = ranked.lists[:, : evaluate.LIST_CUTOFF]
        path = directory / f"per_user_{split}.npz"

        def save():
            file = io.BytesIO()
            np.savez_compressed(file, users=ranked.users, **columns)
            storage.write(path, file.getvalue())

        hosts.lead(path.name, save)
    return evaluate.report(ranked, run.catalog, split, cutoffs, run.categories)
