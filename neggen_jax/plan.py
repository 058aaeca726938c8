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
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from neggen_jax import evaluate, hlo, roofline
from neggen_jax.catalog import SPLITS, Catalog, Features, Interactions
from neggen_jax.data import counterfactuals, inputs
from neggen_jax.errors import InputError
from neggen_jax.ops import ranking
from neggen_jax.ops.positives import abstract_positives
from neggen_jax.run import Run

_INT32 = 2**31 - 1
# Positives of the user who has most: the depth of a binary search, no more.
_LONGEST = 2**12 - 1


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


@dataclasses.dataclass
class Phase:
    """One program, for one device.

    Attributes:
      counts: what it does, once; of a dispatch, one step.
      temporaries: bytes that it needs beside arguments and results.
      results: bytes of results that are not written over arguments.
      code: bytes of the program itself.
      largest: its largest arrays; see `hlo.Program.largest`.
      refused: what the compiler said if it does not fit; "" if it does.
      compiler: XLA's own "flops" and "bytes accessed", loops counted once.
    """

    counts: hlo.Counts
    temporaries: int
    results: int
    code: int
    largest: list[tuple[int, int, str, str]]
    refused: str = ""
    compiler: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Plan:
    """What a case needs, by device.

    Attributes:
      case: that was planned.
      mesh: mesh axis -> devices.
      measured_by: "tpu" or "cpu", whose compiler it was.
      devices: that share one chip.
      held: table -> bytes that stay while the run trains.
      phases: program -> what it needs.
      passing: program -> bytes that are there only while it runs, beside its
        temporaries and results.
      steps: of an epoch.
      blocks: of an evaluation.
      notes: why a run of this size would be refused all the same.
    """

    case: Case
    mesh: dict[str, int]
    measured_by: str
    devices: int
    held: dict[str, int]
    phases: dict[str, Phase]
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
        """The roofline of a program."""
        counts = self.phases[name].counts
        return roofline.times(
            self.case.topology.chip,
            counts.flops,
            counts.bytes,
            sum(counts.collectives.values()),
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


def have_libtpu() -> bool:
    """Whether the compiler for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def environment(chips: int) -> None:
    """Sets what must be set before JAX finds its devices.

    Args:
      chips: that programs are compiled for: without libtpu, there must be as
        many virtual devices.
    """
    quiet = {
        "JAX_PLATFORMS": "cpu",
        # There is no TPU here, so nobody is to look for one.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    os.environ.update(quiet)
    if not have_libtpu():
        flag = f"--xla_force_host_platform_device_count={chips}"
        known = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{known} {flag}".strip()


def devices(topology: roofline.Topology) -> list[Any]:
    """The pod's devices, which nothing can run on; or as many virtual ones.

    Raises:
      InputError: if the compiler knows no such pod, or there are too few
        virtual devices.
    """
    if not have_libtpu():
        here = jax.devices("cpu")
        if len(here) < topology.chips:
            raise InputError(
                "There are fewer virtual devices than chips.",
                where=f"--topology={topology}",
                expected=topology.chips,
                found=len(here),
                fix="install requirements-tpu.txt",
            )
        return here[: topology.chips]
    # A host holds four chips, or as few as there are.
    sides = [min(2, side) for side in topology.shape]
    bounds = tuple([*sides, 1] if len(sides) == 2 else [*sides[:2], 1])
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=str(topology),
            chips_per_host_bounds=bounds,
        )
    except Exception as error:
        raise InputError(
            "The compiler knows no such pod.",
            where=f"--topology={topology}",
            found=str(error).splitlines()[0],
        ) from error
    return list(found.devices)


def hollow(case: Case) -> Catalog:
    """A catalogue of a size, with nothing in it; it takes no memory."""

    def array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    splits = {
        split: Interactions(array((count,), np.int32), array((count,), np.int32))
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
      InputError: for whatever a run would be refused for as well, but for
        tables that are too long to be pointed into: those are noted.
    """
    where, notes = devices(case.topology), []
    positives = case.interactions
    if positives > _INT32:
        notes.append(
            f"int32 offsets point into the positives and name the edges: of "
            f"{positives:,} a run refuses all beyond {_INT32:,}; the table "
            f"of positives is planned with so many"
        )
        positives = _INT32
    config = copy.deepcopy(case.config)
    with config.unlocked():
        # Which item has whose is no matter of size.
        config.data.counterfactuals.shuffled = False
    build = functools.partial(
        inputs.abstract, skew=case.skew, longest=_LONGEST, positives=positives
    )
    run = Run.make(config, hollow(case), where, build)
    program, scalar = run.program, run.partition.abstract((), np.int32)
    state = program.abstract(run.inputs, run.batch())
    compiler = _Compiler()
    made = compiler.add("prepare", jax.jit(program.prepare), run.inputs, scalar)
    prepared = _placed(
        jax.eval_shape(program.prepare, run.inputs, scalar), run.inputs, made
    )
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
    held = {
        "parameters": size(state.params),
        "optimiser": size(state.opt_state),
        "average": size(state.average),
        "banks": size(state.variables),
        "graphs": size((run.inputs.user_item, run.inputs.item_item)),
        "positives": size(run.inputs.positives),
        "popularity": size(run.inputs.popularity),
        "features": size(run.inputs.features),
        "counterfactuals": size(run.inputs.counterfactuals),
    }
    passing = {
        # What an epoch is prepared to is a copy, also of what is the same;
        # and while one stack is trained on, the next arrives.
        "train": size(prepared) + 2 * size(run.stack()),
        # The padded table, beside the one that it was made from.
        "rank": size((vectors, ranked[1:])),
    }
    return Plan(
        case,
        dict(run.partition.mesh.shape),
        where[0].platform,
        max(1, len(where) // case.topology.chips),
        held,
        compiler.phases,
        passing,
        run.stream.schedule.steps_per_epoch,
        blocks,
        notes,
    )


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
    rows = evaluate.block_rows(
        run.config.evaluate.block_size, case.users, part
    )
    left_out = math.ceil(rows * case.interactions / case.users * case.skew)
    excluded: Any = [
        part.abstract((left_out,), np.int32, None) for _ in range(2)
    ]
    table = part.abstract(
        (ranking.tiled_size(case.items, part), items.shape[1]),
        np.float32,
        "item",
        None,
    )
    heldout = abstract_positives(
        case.users, case.users, case.items, part, longest=1
    )
    rank = functools.partial(
        evaluate.rank_block,
        k=max(run.config.evaluate.cutoffs),
        num_items=case.items,
        partition=part,
    )
    block = part.abstract((rows,), np.int32, "batch")
    arguments = users, table, block, ranking.Excluded(*excluded), heldout
    return jax.jit(rank), arguments, math.ceil(case.users / rows)


def _placed(shapes: Any, like: Any, made: Any) -> Any:
    """Shapes with the shardings that a compiler chose, or those of others."""
    if made is None:
        known = {
            (x.shape, x.dtype): x.sharding for x in jax.tree.leaves(like)
        }
        made = jax.tree.map(lambda x: known[x.shape, x.dtype], shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding
        ),
        shapes,
        made,
    )


class _Compiler:
    """Compiles programs, and learns how arrays are padded on the chip."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self._held: dict[tuple[str, tuple[int, ...]], int] = {}

    def add(self, name: str, jitted: Any, *arguments: Any) -> Any:
        """Compiles a program; returns its results' shardings, if it fits."""
        device = jax.tree.leaves(arguments)[0].sharding.mesh.devices.flat[0]
        lowered = jitted.trace(*arguments).lower(
            lowering_platforms=(device.platform,)
        )
        compiled, refused, memory = None, "", None
        with tempfile.TemporaryDirectory() as folder:
            try:
                compiled = lowered.compile(
                    {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
                )
            except jax.errors.JaxRuntimeError as error:
                refused = str(error).splitlines()[0]
                if "RESOURCE_EXHAUSTED" not in refused:
                    raise
            # Of a program that was refused, this is all there is.
            text, report = _dumped(pathlib.Path(folder))
        temporaries = _temporaries(report)
        code = results = 0
        costs: Any = {}
        if compiled is not None:
            text, memory = compiled.as_text(), compiled.memory_analysis()
            costs = compiled.cost_analysis()
            # On TPUs this also counts memory on the core, the report does not.
            temporaries = temporaries or memory.temp_size_in_bytes
            code = memory.generated_code_size_in_bytes
            results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        program = hlo.Program(text)
        for array in program.parameters:
            self._held[array.dtype, array.dims] = array.bytes
        self.phases[name] = Phase(
            program.count(),
            temporaries,
            results,
            code,
            program.largest(2**20),
            refused,
            {k: costs[k] for k in ("flops", "bytes accessed") if k in costs},
        )
        return None if compiled is None else compiled.output_shardings

    def size(self, tree: Any) -> int:
        """Bytes of arrays on one device, padded as programs want them."""
        total = 0
        for x in jax.tree.leaves(tree):
            dims = x.sharding.shard_shape(x.shape)
            dtype = _HLO_TYPES[x.dtype.name]
            bare = math.prod(dims) * x.dtype.itemsize
            total += self._held.get((dtype, dims), bare)
        return total


_HLO_TYPES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "int32": "s32",
    "uint32": "u32",
    "bool": "pred",
}


def _dumped(folder: pathlib.Path) -> tuple[str, str]:
    """The optimised program, and the compiler's report on its memory."""

    def read(ending: str) -> str:
        files = sorted(folder.glob(f"*after_optimizations{ending}"))
        return files[-1].read_text() if files else ""

    return read(".txt"), read("-memory-usage-report.txt")


def _temporaries(report: str) -> int:
    """Bytes of main memory, of all the memory spaces that a report tells."""
    found = re.search(
        r"Memory Space: default.*\nTotal bytes: (\d+)", report
    )
    return int(found[1]) if found else 0
