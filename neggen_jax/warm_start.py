"""A run that begins where another one ended: `config.train.start_from`.

Both may be on the same dataset (a base for NegGen), or this one on a later
dataset, whose tables have grown. Users and items are then the same where their
identifiers are, wherever they stand; others begin as the encoder begins, which
for those that propagate is close to what their neighbours give them. The
optimiser begins anew: its moments are of losses on other data, its schedule
counts this run's steps, and new rows would have none that the bias correction
could know of.

Of the other run nothing is changed. Its tables come as they lie in its
checkpoint, cut over this run's mesh, and then go round the devices, shard by
shard: none holds one whole.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from neggen_jax import hosts, storage
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.config import flatten
from neggen_jax.data import inputs, store
from neggen_jax.errors import InputError
from neggen_jax.partition import Partition
from neggen_jax.run import Run
from neggen_jax.step import State
from neggen_jax.workdir import read_identity

ROWS = ("user", "item")  # logical axes along which tables grow
_BLOCK = 2**22  # pairs that are looked up at a time


class Names(NamedTuple):
    """Identifiers of a run's dataset; None where they are the indices.

    Attributes:
      user: of the users.
      item: of the items.
    """

    user: list[str] | None
    item: list[str] | None

    @classmethod
    def of(cls, run: Run) -> Names:
        """Those in memory, or in the dataset directory."""
        catalog, path = run.catalog, run.config.data.path
        users, records = catalog.user_ids, catalog.records
        # A catalogue that was in memory may be another one.
        if path and store.describe(path)["fingerprint"] == catalog.fingerprint:
            users = users or store.read_users(path)
            records = records or store.read_records(path)
        return cls(users, None if records is None else records.ids)


def warm_start(run: Run, state: State) -> State:
    """A new state with what `config.train.start_from` has learned.

    That is the encoder, and those sources of negatives that both configs have
    alike. Optimiser and everything else begin anew.

    Args:
      run: that is to be trained.
      state: of its step 0.

    Raises:
      InputError: if the other run cannot be read, has another encoder or
        parameters of other shapes, or knows none of the users or items.
    """
    where = f"config.train.start_from={run.config.train.start_from}"
    try:
        base = _base(run)
        trained = _trained(base, run.config.train.start_from)
    except InputError as error:
        raise InputError(
            f"The run to start from cannot be read: {error.problem}",
            where=where,
            expected=error.expected,
            found=error.found,
            fix="give the workdir of a finished run whose dataset is where it "
            "was, or leave start_from out",
        ) from error
    ours, theirs = (flatten(r.config.encoder) for r in (run, base))
    if ours != theirs:
        raise InputError(
            "The run to start from has another encoder.",
            where=where,
            expected=ours,
            found=theirs,
            fix="train a base with the same one, or leave start_from out",
        )
    places = _places(run, base, where)
    axes = _axes(run)
    kept = ["encoder", *_sources(run, base)]
    params = _moved(
        state.params, trained.evaluated, axes.params, kept, run, places
    )
    variables = {
        name: _moved(
            part,
            trained.variables[name],
            axes.variables[name],
            kept,
            run,
            places,
        )
        if name in trained.variables
        else part
        for name, part in state.variables.items()
    }
    # Not the same arrays twice: the state is donated.
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(
        state, params=params, variables=variables, average=average
    )


def _base(run: Run) -> Run:
    """The run to start from, of which no array is made, on the same mesh."""
    source = run.config.train.start_from
    identity = read_identity(storage.path(source))
    config = ConfigDict(identity["config"])
    config.mesh = ConfigDict(run.config.mesh.to_dict())
    known, catalog = str(identity["fingerprint"]), None
    if known.split("-")[0] == run.catalog.fingerprint:
        # The same dataset: it may have moved, or be in memory alone.
        config.data.path = run.config.data.path
        if not config.data.path:
            catalog = run.catalog
            if "-" not in known:
                catalog = dataclasses.replace(catalog, counterfactuals=None)
    devices = [*run.partition.mesh.devices.flat]
    base = Run.make(config, catalog, devices, build=inputs.abstract)
    if base.catalog.identity != known:
        raise InputError(
            "Its dataset has changed since it was trained.",
            expected=known,
            found=base.catalog.identity,
        )
    return base


def _trained(base: Run, workdir: str) -> State:
    """The best state of a run, on its mesh."""
    abstract = base.program.abstract(base.inputs, base.batch())
    directory = storage.path(workdir)
    with Checkpoints(directory, read_only=True) as checkpoints:
        _, meta = checkpoints.restore(abstract)
        state, _ = checkpoints.restore(abstract, meta["best_step"])
    return state


def _axes(run: Run) -> Any:
    """The state with the logical axes of each array in its place."""
    boxed = jax.eval_shape(run.program.init, run.inputs, run.batch())
    return nn.get_partition_spec(boxed)


def _sources(run: Run, base: Run) -> list[str]:
    """Modules of the sources of negatives that both runs have alike."""
    kept = []
    for name, source in run.program.recommender.sources.items():
        part = base.config.negatives.get(name)
        if part is None or flatten(part) != flatten(run.config.negatives[name]):
            continue
        # What reads counterfactuals has learned of one space of vectors.
        if not source.needs().counterfactuals or _space(run) == _space(base):
            kept.append(f"sources_{name}")
    return kept


def _space(run: Run) -> Any:
    """What tells whether two sets of counterfactuals are of one space."""
    made = run.catalog.counterfactuals
    if made is None:
        return None
    known = made.manifest.get("encoding") or {}
    if known.get("encoder") == "transformers":
        return known.get("model"), known.get("parameters")
    # An encoder that learns from texts has learned from these.
    return made.fingerprint


def _places(run: Run, base: Run, where: str) -> dict[str, jax.Array]:
    """Logical axis -> 1 + the base's row of each row here; 0 for new ones."""
    if run.catalog.fingerprint == base.catalog.fingerprint:
        ours = theirs = Names(None, None)
    else:
        ours, theirs = Names.of(run), Names.of(base)
    out, told = {}, []
    matched: list[np.ndarray] = []
    for axis in ROWS:
        sizes = [getattr(r.catalog, f"num_{axis}s") for r in (run, base)]
        names = [getattr(names, axis) for names in (ours, theirs)]
        found = _matched(names, sizes)
        count = int((found > 0).sum())
        told.append(
            f"{count:,} of {sizes[0]:,} {axis}s (all but "
            f"{sizes[1] - count:,} of its own)"
        )
        if not count:
            raise InputError(
                f"The run to start from knows none of the {axis}s.",
                where=where,
                expected=f"identifiers of {axis}s in common",
                found=" and ".join(_example(n) for n in names),
                fix="prepare the data with the identifiers of before, or leave "
                "start_from out",
            )
        matched.append(found)
        size = run.partition.padded(sizes[0], axis)
        rows = run.partition.mine(size, axis)
        own = run.partition.own(found, size, axis)
        out[axis] = run.partition.join(own, rows, size, axis)
    if run.catalog.fingerprint != base.catalog.fingerprint:
        _check_held_out(run, base, matched, where)
    if hosts.first() and run.catalog.fingerprint != base.catalog.fingerprint:
        print(f"known by {where.partition('=')[2]}: {', '.join(told)}")
    return out


def _check_held_out(
    run: Run, base: Run, matched: list[np.ndarray], where: str
) -> None:
    """Nothing that the base has trained on may be held out here.

    Args:
      run, base: the runs.
      matched: of users and of items, 1 + the base's row of each row here.
      where: for the error.
    """
    here = []
    for found, axis in zip(matched, ROWS, strict=True):
        rows = np.full(getattr(base.catalog, f"num_{axis}s"), -1, np.int64)
        known = np.flatnonzero(found)
        rows[found[known] - 1] = known
        here.append(rows)
    width = run.catalog.num_items
    held_out = np.concatenate(
        [
            np.asarray(split.users, np.int64) * width + split.items
            for split in map(run.catalog.splits.get, ("valid", "test"))
            if split is not None
        ]
    )
    trained, count = base.catalog.train, 0
    for start in range(0, len(trained), _BLOCK):
        block = slice(start, start + _BLOCK)
        users = here[0][trained.users[block]]
        items = here[1][trained.items[block]]
        pairs = (users * width + items)[(users >= 0) & (items >= 0)]
        count += int(np.isin(pairs, held_out).sum())
    if count:
        raise InputError(
            "The run to start from has trained on what is held out here.",
            where=where,
            expected="no pair of valid and test among its train pairs",
            found=f"{count:,} of {len(held_out):,}",
            fix="extend its dataset (launch/prepare.py --extends), which "
            "keeps to its split, or leave start_from out",
        )


def _matched(names: list[list[str] | None], sizes: list[int]) -> np.ndarray:
    """Row + 1 in the second list of each name of the first; 0 if none."""
    import pyarrow as pa
    from pyarrow import compute

    if names == [None, None]:
        found = np.arange(1, sizes[0] + 1, dtype=np.int32)
        return np.where(found <= sizes[1], found, 0).astype(np.int32)
    new, old = (
        pa.array(part or map(str, range(size)), pa.string())
        for part, size in zip(names, sizes, strict=True)
    )
    places = compute.index_in(new, value_set=old).fill_null(-1)
    return places.to_numpy().astype(np.int32) + 1


def _example(names: list[str] | None) -> str:
    return "numbers" if names is None else repr(names[0])


def _moved(
    new: Any, old: Any, axes: Any, kept: list[str], run: Run, places: Any
) -> Any:
    """The tree `new`, with what it has of `old` in the modules `kept`."""
    out = dict(new)
    for module in kept:
        if module not in new:
            continue
        leaves, tree = jax.tree_util.tree_flatten_with_path(new[module])
        theirs = dict(jax.tree_util.tree_leaves_with_path(old.get(module, {})))
        specs = jax.tree.leaves(
            axes[module], is_leaf=lambda x: isinstance(x, P)
        )
        if {path for path, _ in leaves} != theirs.keys():
            raise _unfit(module, [p for p, _ in leaves], [*theirs])
        made = []
        for (path, leaf), spec in zip(leaves, specs, strict=True):
            value, axis = theirs[path], str(spec[0]) if spec else ""
            grows = axis in ROWS
            if leaf.shape[grows:] != value.shape[grows:]:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise _unfit(f"{module}/{name}", leaf.shape, value.shape)
            if grows:
                value = grown(leaf, value, places[axis], run.partition, axis)
            made.append(value)
        out[module] = jax.tree.unflatten(tree, made)
    return out


def _unfit(name: str, ours: Any, theirs: Any) -> InputError:
    return InputError(
        "What the run to start from has learned does not fit.",
        where=f"parameters of {name}",
        expected=ours,
        found=theirs,
        fix="give it features of the same modalities and widths: extend its "
        "dataset with launch/prepare.py --extends, or leave start_from out",
    )


def grown(
    new: jax.Array,
    old: jax.Array,
    places: jax.Array,
    partition: Partition,
    axis: str,
) -> jax.Array:
    """Rows of an old table where a new one stands.

    Args:
      new: `[rows, ...]`; keeps those rows that have no place.
      old: `[old_rows, ...]`; both are cut alike.
      places: int32 `[rows]`, 1 + the row in `old`, or 0.
      partition: the mesh.
      axis: "user" or "item", that the rows are cut by.

    Returns:
      `[rows, ...]`, spread as `new` is.
    """
    spec, shards = partition.spec(axis), partition.shards(axis)
    return _ring(partition.mesh, spec, shards)(new, old, places)


@functools.cache
def _ring(mesh: Any, spec: P, shards: int) -> Any:
    axis = spec[0]
    to_previous = [(i, (i - 1) % shards) for i in range(shards)]

    def local(new, old, places):
        me = jax.lax.axis_index(axis)

        def fill(step, held, out):
            at = places - 1 - (me + step) % shards * len(held)
            here = (places > 0) & (at >= 0) & (at < len(held))
            rows = held[jnp.where(here, at, 0)]
            here = here.reshape(-1, *[1] * (out.ndim - 1))
            return jnp.where(here, rows, out)

        def body(step, carry):
            held, out = carry
            out = fill(step, held, out)
            return jax.lax.ppermute(held, axis, to_previous), out

        held, out = jax.lax.fori_loop(0, shards - 1, body, (old, new))
        return fill(shards - 1, held, out)

    return jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
    )
