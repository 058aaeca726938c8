"""For recommenders that exist already: what to import, in one place.

Whoever trains here brings an `Encoder` and names it in a config, as
"MODULE:NAME". Whoever has a training loop of their own has `attach` give it
negatives, generated ones too, of the embeddings that this loop holds, and
ranks with `accuracy`. docs/examples/ has both.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from neggen_jax import check, evaluate, metrics, recommender
from neggen_jax.catalog import Catalog
from neggen_jax.config import load as load_config
from neggen_jax.data import inputs, rewritten
from neggen_jax.data.inputs import Inputs, Needs, Sizes
from neggen_jax.data.rewritten import Rewritten
from neggen_jax.data.store import load as load_dataset
from neggen_jax.errors import InputError
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.negatives.source import Batch, Clock, Negatives, Source
from neggen_jax.partition import Partition, make_partition

__all__ = [
    "Attached",
    "Catalog",
    "Encoded",
    "Encoder",
    "InputError",
    "Inputs",
    "Needs",
    "Negatives",
    "Rewritten",
    "Source",
    "accuracy",
    "attach",
    "load_config",
    "load_dataset",
]

Parts = Mapping[str, Mapping[str, Any]]
Variables = Any


@flax.struct.dataclass
class Attached:
    """Sources of negatives, and losses, for somebody else's training loop.

    A pytree: give it to `jax.jit` as an argument. A program that closes over
    it has its tables as constants.

    Attributes:
      inputs: what the sources read: train positives, features, rewritten
        items.
      objective: sources and losses.
      partition: where tables lie.
      sizes: of the tables that embeddings come in; on one device, numbers of
        users and items.
      dim: d, of embeddings.
      steps_per_epoch: for schedules that count epochs.
      epochs: of the whole run, for schedules that stretch over it.
    """

    inputs: Inputs
    objective: recommender.Objective = flax.struct.field(pytree_node=False)
    partition: Partition = flax.struct.field(pytree_node=False)
    sizes: Sizes = flax.struct.field(pytree_node=False)
    dim: int = flax.struct.field(pytree_node=False)
    steps_per_epoch: int = flax.struct.field(pytree_node=False)
    epochs: int = flax.struct.field(pytree_node=False)

    def init(self, key: jax.Array) -> tuple[Variables, Variables]:
        """What sources learn, and what they keep from step to step.

        Args:
          key: of the first values.

        Returns:
          Parameters, to be trained beside one's own; and what `draw` takes
          and gives back: {} unless a source has a bank.
        """

        def make(ours: Attached, key: jax.Array) -> Any:
            users, items = ours.sizes.user_rows, ours.sizes.item_rows
            encoded = Encoded(
                jnp.zeros((users, ours.dim)), jnp.zeros((items, ours.dim))
            )
            rows = jnp.zeros(ours.inputs.positives.mesh.size, jnp.int32)
            return ours.objective.init(
                {"params": key, "negatives": key},
                *ours._given(encoded, jnp.int32(0), rows, rows),
                method="draw",
            )

        # Banks are made where they belong, as tables are.
        boxed = jax.eval_shape(make, self, key)
        unboxed = jax.jit(
            lambda *args: nn.unbox(make(*args)),
            out_shardings=self.partition.tree_shardings(boxed),
        )
        variables = dict(unboxed(self, key))
        return variables.pop("params", {}), variables

    def draw(
        self,
        params: Variables,
        kept: Variables,
        encoded: Encoded,
        batch: Batch,
        step: jax.Array | int,
        key: jax.Array,
    ) -> tuple[dict[str, Negatives], Variables]:
        """Negatives of a batch, as one's own parameters stand.

        Args:
          params: by `init`, trained since.
          kept: by `init`, or by the step before.
          encoded: of all users and items, `[user_rows, d]` and
            `[item_rows, d]`. Gradients go through them as far as the source
            lets them.
          batch: "users" and "items", positive pairs, int32 `[B]` each.
          step: steps done, for schedules.
          key: of the draw; another one each step.

        Returns:
          Source -> `Negatives`, and what is kept.
        """
        if missing := {"users", "items"} - set(batch):
            raise InputError(
                f"The batch has no {' and no '.join(sorted(missing))}.",
                where="Attached.draw",
                expected='{"users": int32 [B], "items": int32 [B]}',
                found=", ".join(batch),
            )
        given = self._given(
            encoded, jnp.asarray(step), batch["users"], batch["items"]
        )
        drawn: Any
        drawn, kept = self.objective.apply(
            {"params": params, **kept},
            *given,
            rngs={"negatives": key},
            mutable=list(kept),
            method="draw",
        )
        return drawn, kept

    def loss(
        self,
        encoded: Encoded,
        batch: Batch,
        drawn: Mapping[str, Negatives],
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses that were asked for, and those of the sources themselves.

        Args:
          encoded: as given to `draw`.
          batch: alike.
          drawn: by `draw`.
          key: for losses that draw random numbers; another one each step.

        Returns:
          The total, to be added to one's own; and terms and metrics by name.
        """
        numbers = itertools.count()

        def make_key() -> jax.Array:
            if key is None:
                raise InputError(
                    "A loss draws random numbers, and has no key.",
                    where="Attached.loss",
                    fix="give a key",
                )
            return jax.random.fold_in(key, next(numbers))

        return recommender.total(
            self.objective.losses,
            self._read(encoded),
            jax.tree.map(jnp.asarray, dict(batch)),
            drawn,
            make_key,
        )

    def extend(self, params: Variables, encoded: Encoded) -> Encoded:
        """Embeddings to rank with: NegGen adds its causal effects to items."""
        out: Any = self.objective.apply(
            {"params": params}, encoded.whole(), self.inputs, method="extend"
        )
        return out

    def rewritten(self, items: jax.Array) -> dict[str, Rewritten]:
        """Vectors of some items' texts as they are, and as rewritten.

        Args:
          items: int32 `[n]`.

        Returns:
          Modality -> vectors, centred and scaled alike; see `Rewritten`.

        Raises:
          InputError: if no source reads counterfactuals.
        """
        if self.inputs.counterfactuals is None:
            raise InputError(
                "No source reads counterfactuals.",
                where="Attached.rewritten",
                expected="one of the name 'counterfactual'",
                found=", ".join(self.objective.sources) or "none",
            )
        return rewritten.rows(self.inputs.counterfactuals, {}, items)

    def _given(
        self,
        encoded: Encoded,
        step: jax.Array,
        users: jax.Array,
        items: jax.Array,
    ) -> tuple[Encoded, Inputs, Batch, Clock]:
        for name in ("users", "items"):
            want = getattr(self.sizes, f"{name[:-1]}_rows"), self.dim
            shape = getattr(encoded, name).shape
            if shape != want:
                raise InputError(
                    f"Embeddings of {name} have another shape.",
                    where="Encoded",
                    expected=want,
                    found=shape,
                )
        clock = Clock.at(step, self.steps_per_epoch, self.epochs)
        batch = {"users": jnp.asarray(users), "items": jnp.asarray(items)}
        return self._read(encoded), self.inputs, batch, clock

    def _read(self, encoded: Encoded) -> Encoded:
        """As sources and losses read it; it may have come from NumPy."""
        encoded = jax.tree.map(jnp.asarray, encoded)
        placed = recommender.placed(encoded, self.inputs)
        return dataclasses.replace(placed, taken={})


def attach(
    catalog: Catalog,
    dim: int,
    *,
    negatives: Parts,
    losses: Parts | None = None,
    batch_size: int = 2048,
    epochs: int = 300,
    partition: Partition | None = None,
) -> Attached:
    """Readies sources of negatives for a training loop of one's own.

    Args:
      catalog: the dataset; with a set of counterfactuals where a source reads
        them (`load_dataset(DIR, counterfactuals="attributes")`).
      dim: d, of embeddings.
      negatives: as `config.negatives`: name -> the `name` of a source, and
        its keywords.
      losses: as `config.losses`; none by default.
      batch_size: pairs in one step; with the train interactions, it says how
        many steps schedules take for an epoch.
      epochs: of the run, for schedules that stretch over it. Sources that
        let negatives in over time give all of them weight 0 until then:
        "diffusion" until its `start`, 30 epochs if nothing is said.
      partition: where tables lie; one device by default. On a mesh,
        embeddings have `Attached.sizes`' rows.

    Raises:
      InputError: for unknown names, keywords and values, with the nearest
        known; and for a catalogue without what a source reads.
    """
    config = ConfigDict({"negatives": negatives, "losses": losses or {}})
    check.check_parts(config, catalog)
    steps_per_epoch = math.ceil(len(catalog.train) / batch_size)
    for doubt in check.doubts(config.negatives, epochs, steps_per_epoch):
        warnings.warn(doubt, stacklevel=2)
    partition = partition or make_partition(devices=jax.local_devices()[:1])
    objective = recommender.build_objective(config)
    placed = inputs.build(catalog, objective.needs(), partition)
    return Attached(
        # What sources prepare for an epoch is the same for each.
        inputs=jax.jit(objective.prepare)(placed, jax.random.key(0)),
        objective=objective,
        partition=partition,
        sizes=inputs.sizes(catalog, partition),
        dim=dim,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
    )


def accuracy(
    catalog: Catalog,
    users: jax.Array | np.ndarray,
    items: jax.Array | np.ndarray,
    split: str = "test",
    cutoffs: tuple[int, ...] = (10, 20),
) -> dict[str, float]:
    """Ranks the whole catalogue by inner products, exactly.

    Args:
      catalog: the dataset.
      users: `[num_users, d]`.
      items: `[num_items, d]`.
      split: whose held-out items are to be found: "valid" or "test".
      cutoffs: of the metrics.

    Returns:
      Such as "recall@20"; means over users who have held-out items. What
      users are known to have is left out: train, and valid for "test".
    """
    partition = make_partition(devices=jax.local_devices()[:1])
    ranker = evaluate.Ranker(catalog, split, partition, k=max(cutoffs))
    users, items = (jnp.asarray(np.asarray(x, "f4")) for x in (users, items))
    return metrics.summarize(evaluate.accuracy(ranker(users, items), cutoffs))
