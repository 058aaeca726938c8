"""What a run would need on a pod that is not here.

The run is composed as `train.py` composes it, from a catalogue that has
sizes and nothing in it; its programs - an epoch's preparation, a dispatch of
training steps, and of an evaluation the encoding and the ranking of a block -
are compiled for the pod's chips, by the compiler that would compile them
there, where libtpu is installed. No array is ever made.

`plan_report.py` puts into words what is found here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from neggen_jax import aot, evaluate, roofline
from neggen_jax.catalog import SPLITS, Catalog, Features, Interactions
from neggen_jax.config import flatten
from neggen_jax.data import counterfactuals, inputs
from neggen_jax.data.order import count_parts
from neggen_jax.ops import ranking
from neggen_jax.ops.positives import abstract_positives
from neggen_jax.preparation import Preparation
from neggen_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Case:
    """What is to be planned.

    Attributes:
      name: of the config, for people.
      config: of the experiment.
      topology: the pod.
      users: how many.
      items: how many.
      interactions: of the train split.
      features: modality -> width of its vectors.
      alternatives: counterfactuals of each item and modality.
      skew: edges of the fullest device over those of the mean one.
      longest: train interactions of the user who has most; the depth of a
        binary search, no more.
    """

    name: str
    config: ConfigDict
    topology: roofline.Topology
    users: int
    items: int
    interactions: int
    features: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alternatives: int = 2
    skew: float = 1.05
    longest: int = 4095


@dataclasses.dataclass
class Plan:
    """What a case needs, by device.

    Attributes:
      case: that was planned.
      mesh: mesh axis -> devices.
      measured_by: "tpu" or "cpu", whose compiler it was.
      devices: that share one chip.
      held: table -> bytes that stay while the run trains.
      whole: table -> those of them that no mesh cuts.
      phases: program -> what it needs.
      passing: program -> bytes that are there only while it runs, beside its
        temporaries and results.
      steps: of an epoch.
      blocks: of an evaluation.
      notes: what else should be known of a run of this size.
    """

    case: Case
    mesh: dict[str, int]
    measured_by: str
    devices: int
    held: dict[str, int]
    whole: dict[str, int]
    phases: dict[str, aot.Phase]
    passing: dict[str, int]
    steps: int
    blocks: int
    notes: list[str]

    def total(self, name: str) -> int:
        """Bytes on a device while a program runs."""
        phase = self.phases[name]
        own = phase.temporaries + phase.results + phase.code
        return sum(self.held.values()) + self.passing.get(name, 0) + own

    @property
    def limit(self) -> int:
        """Bytes that there are."""
        return int(self.case.topology.chip.usable * 2**30)

    @property
    def worst(self) -> str:
        """The program that needs most."""
        return max(self.phases, key=self.total)

    @property
    def left(self) -> int:
        """Bytes left over when the neediest program runs; may be negative."""
        return self.limit - self.total(self.worst)

    @property
    def fits(self) -> bool:
        """Whether every program has room."""
        return self.left >= 0 and not any(
            phase.refused for phase in self.phases.values()
        )

    def times(self, name: str) -> roofline.Times:
        """The roofline of a program.

        What all send to all goes through the links of others on its way, and
        takes their time; other collectives hand things on to neighbours.
        """
        counts = self.phases[name].counts
        carried = dict(counts.collectives)
        if "all-to-all" in carried:
            carried["all-to-all"] *= self.case.topology.distance
        return roofline.times(
            self.case.topology.chip,
            counts.flops,
            counts.bytes,
            sum(carried.values()),
            self.devices,
        )

    @property
    def epoch_seconds(self) -> float:
        """Roofline of the steps of an epoch and its preparation."""
        steps = self.steps * self.times("train").least
        return steps + self.times("prepare").least

    @property
    def evaluation_seconds(self) -> float:
        """Roofline of ranking everybody once."""
        blocks = self.blocks * self.times("rank").least
        return blocks + self.times("encode").least


def hollow(case: Case) -> Catalog:
    """A catalogue of a size, with nothing in it; it takes no memory."""

    def array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    splits = {
        split: Interactions(
            array((count,), np.int32), array((count,), np.int32)
        )
        for split, count in zip(
            SPLITS, (case.interactions, case.users, case.users), strict=True
        )
    }
    features, rewritten = {}, {}
    for name, width in case.features.items():
        values = array((case.items, width), np.float32)
        there = array((case.items,), np.bool_)
        features[name] = Features(values, there)
        shape = case.items, case.alternatives
        rewritten[name] = counterfactuals.Rewritten(
            values,
            there,
            array((*shape, width), np.float32),
            array(shape, np.bool_),
        )
    wanted = case.config.data.counterfactuals.name
    known = (
        counterfactuals.Counterfactuals(wanted, rewritten) if wanted else None
    )
    return Catalog(
        case.name, case.users, case.items, splits, features, None, None, known
    )


def make(case: Case) -> Plan:
    """Compiles the programs of a case, and adds up what they need.

    Raises:
      InputError: for whatever a run would be refused for as well.
    """
    where = aot.devices(case.topology)
    config = copy.deepcopy(case.config)
    with config.unlocked():
        # Which item has whose is no matter of size.
        config.data.counterfactuals.shuffled = False
    build = functools.partial(
        inputs.abstract, skew=case.skew, longest=case.longest
    )
    run = Run.make(config, hollow(case), where, build)
    program, scalar = run.program, run.partition.abstract((), np.int32)
    state = program.abstract(run.inputs, run.batch())
    compiler = aot.Compiler()
    preparation = Preparation(program.prepare, run.inputs, scalar)
    made = compiler.add("prepare", preparation.change, run.inputs, scalar)
    changed = _placed(preparation.shapes, run.inputs, made)
    prepared = preparation.join(run.inputs, changed)
    compiler.add(
        "train", program.trainer(state), state, prepared, run.stack(), scalar
    )
    made = compiler.add(
        "encode", jax.jit(program.encode), state.evaluated, run.inputs
    )
    vectors = _encoded(run, state, made)
    rank, ranked, blocks = _ranking(run, case, vectors)
    compiler.add("rank", rank, *ranked)

    size = compiler.size
    tables = {
        "parameters": state.params,
        "optimiser": state.opt_state,
        "average": state.average,
        "banks": state.variables,
        "graphs": (run.inputs.user_item, run.inputs.item_item),
        "positives": run.inputs.positives,
        "popularity": run.inputs.popularity,
        "features": run.inputs.features,
        "counterfactuals": run.inputs.counterfactuals,
    }
    passing = {
        # While one stack is trained on, the next arrives.
        "train": size(changed) + 2 * size(run.stack()),
        # The padded table, beside the one that it was made from.
        "rank": size((vectors, ranked[1:])),
    }
    return Plan(
        case,
        dict(run.partition.mesh.shape),
        where[0].platform,
        max(1, len(where) // case.topology.chips),
        {name: size(table) for name, table in tables.items()},
        {name: size(table, whole=True) for name, table in tables.items()},
        compiler.phases,
        passing,
        run.stream.schedule.steps_per_epoch,
        blocks,
        _notes(case),
    )


def _notes(case: Case) -> list[str]:
    """What no compiler tells: memory of the hosts, and what was assumed."""
    loaded = 8 * case.interactions / 2**30
    train = case.config.train
    parts = count_parts(
        case.interactions, train.batch_size * train.batches_per_step
    )
    notes = [
        f"train interactions, {loaded:.1f} GiB in all, are cut into {parts} "
        f"part{'s' if parts > 1 else ''} for batches: each host reads those "
        "of its places in a batch, and maps what its shards of the graphs are "
        "laid out from"
    ]
    if case.config.mesh.exchange == "pull":
        notes.append(
            "items are sent as if edges drew them uniformly, where most are "
            "needed; where some are more popular than others, and ids are in "
            "no order, they are fewer"
        )
    return notes


def _encoded(run: Run, state: Any, made: Any) -> tuple[Any, Any]:
    """The vectors that are ranked, as `made` places them."""
    shapes = jax.eval_shape(run.program.encode, state.evaluated, run.inputs)
    if made is None:
        made = tuple(run.partition.sharding(a, None) for a in ("user", "item"))
    users, items = (
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for x, sharding in zip(shapes, made, strict=True)
    )
    return users, items


def _ranking(
    run: Run, case: Case, vectors: tuple[Any, Any]
) -> tuple[Any, tuple[Any, ...], int]:
    """The ranking of one block: the program, its arguments, and how many.

    Everybody is ranked, has left out as many items as there are train
    interactions to a user, and one item is held out of each.
    """
    users, items = vectors
    part = run.partition
    rows = evaluate.block_rows(run.config.evaluate.block_size, case.users, part)
    left_out = math.ceil(rows * case.interactions / case.users * case.skew)
    excluded: Any = [
        part.abstract((left_out,), np.int32, None) for _ in range(2)
    ]
    table = part.abstract(
        (ranking.tiled_size(case.items, part), items.shape[1]),
        np.float32,
        "ranked",
        None,
    )
    heldout = abstract_positives(
        case.users, case.users, case.items, part, longest=1, skew=case.skew
    )
    rank = functools.partial(
        evaluate.rank_block,
        k=max(run.config.evaluate.cutoffs),
        num_items=case.items,
        partition=part,
        recall_target=run.config.evaluate.recall_target,
    )
    block = part.abstract((rows,), np.int32, "batch")
    arguments = users, table, block, ranking.Excluded(*excluded), heldout
    return jax.jit(rank), arguments, math.ceil(case.users / rows)


def _placed(shapes: Any, like: Any, made: Any) -> Any:
    """Shapes with the shardings that a compiler chose, or those of others."""
    if made is None:
        known = {(x.shape, x.dtype): x.sharding for x in jax.tree.leaves(like)}
        made = jax.tree.map(lambda x: known[x.shape, x.dtype], shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding
        ),
        shapes,
        made,
    )


def changed(case: Case, changes: Mapping[str, Any]) -> Case:
    """A case with other values of some config keys, and a name that says so."""
    config = copy.deepcopy(case.config)
    with config.unlocked():
        config.update_from_flattened_dict(dict(changes))
    name = "".join([case.name, *(f"+{k}={v}" for k, v in changes.items())])
    return dataclasses.replace(case, name=name, config=config)


def remedies(plan: Plan) -> list[tuple[dict[str, Any], Plan]]:
    """What else was tried, one change of the config after the other.

    Each is compiled like the case itself, with all those before it; the last
    one fits, or none does.

    Args:
      plan: one that does not fit.
    """
    config = plan.case.config
    everything = math.prod(plan.mesh.values())
    steps: list[dict[str, Any]] = [
        {"mesh.tables": "all", "mesh.exchange": "pull"},
        {"mesh.data": 1, "mesh.model": everything},
        {"train.dtype": "bfloat16"},
        {"encoder.dim": max(8, config.encoder.dim // 2)},
        {"encoder.dim": max(8, config.encoder.dim // 4)},
    ]
    if plan.held["average"]:
        steps.insert(1, {"train.ema": 0.0})
    if plan.held["counterfactuals"]:
        steps.insert(1, {"data.counterfactuals.feed": "batches"})
    known = flatten(config)
    tried: list[tuple[dict[str, Any], Plan]] = []
    changes: dict[str, Any] = {}
    for step in steps:
        if all(known[key] == value for key, value in step.items()):
            continue
        if step.get("mesh.model") == plan.mesh["model"]:
            continue
        changes = changes | step
        tried.append((changes, make(changed(plan.case, changes))))
        if tried[-1][1].fits:
            break
    return tried
