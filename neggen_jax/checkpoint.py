"""Checkpoints: Orbax, asynchronous, the latest few and the best.

A checkpoint holds the whole `State`, the little that the host knows (best
value so far, evaluations since), and a checksum of both: TensorStore writes
arrays without one, and would read changed bits as if nothing were wrong. It
exists entirely or not at all. If the latest is damaged all the same, the one
before is read, and the damaged one is set aside.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from neggen_jax import hosts, storage
from neggen_jax.errors import InputError
from neggen_jax.step import State


class _LatestAndBest(preservation_policy.PreservationPolicy):
    """Keeps the newest `count`, and of each the best step that it names.

    So a run can go back to any of them and still has its best step.

    Attributes:
      count: how many.
      best: step -> best step, as far as known.
      passing: steps that only stand until there is a newer one, and are not
        counted.
    """

    def __init__(self, count: int):
        self.count = count
        self.best: dict[int, int | None] = {}
        self.passing: set[int] = set()

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        del context
        steps = [info.step for info in checkpoints]
        regular = [step for step in steps if step not in self.passing]
        kept = {*regular[-self.count :], *steps[-1:]}
        kept |= {self.best[step] for step in kept if step in self.best}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: of the run; they stand in its subdirectory `checkpoints`.
      keep: how many of the latest are kept beside the best.
      read_only: leave everything as it is, also what another process is
        about to write.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep: int = 2,
        read_only: bool = False,
    ):
        found = storage.path(workdir)
        if not storage.remote(found):
            found = found.resolve()
        self.directory = found / "checkpoints"
        self._keep, self._read_only = _LatestAndBest(keep), read_only
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            item_handlers={
                # Weights hardly get smaller, at twice the work.
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
                # What is there, process 0 says: others may not see it yet,
                # and do not ask when it was written.
                single_host_load_and_broadcast=True,
                lightweight_initialize=True,
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()
        except Exception as error:
            # Only if nothing has gone wrong before, and said so.
            if kind is None:
                raise _unwritable(
                    self.directory, storage.first_line(error)
                ) from error

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        # Of what process 0 has told, Orbax makes NumPy's integers.
        return [int(step) for step in self._manager.all_steps()]

    def pass_by(self, step: int) -> None:
        """Counts a step as one that only stands until there is a newer one.

        Saved again, it is written anew.
        """
        self._keep.passing.add(step)

    def save(
        self, state: State, meta: dict[str, Any], passing: bool = False
    ) -> None:
        """Begins to write; training may go on meanwhile.

        Args:
          state: its step names the checkpoint. If it is there, it stays.
          meta: JSON beside it. Its "best_step" names the checkpoint that is
            kept beside the latest; it stands in `meta`, and not in Orbax'
            metrics, so that a resumed run knows it too.
          passing: see `pass_by`.

        Raises:
          InputError: if the disk does not take it (now, or the one before).
        """
        step = int(jax.device_get(state.step))
        there = step in self._steps()
        if there and (passing or step not in self._keep.passing):
            return
        seal = {"meta": meta, "checksum": _checksum(state, meta)}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(seal)
        )
        # The one before has to be on disk to know how much room is left.
        self.wait()
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

        def look():
            self._check_room(needed)
            return self._bests()

        self._keep.best.update(hosts.lead("save", look))
        try:
            if there:
                self._manager.delete(step)
            self._keep.best[step] = meta["best_step"]
            self._keep.passing.discard(step)
            if passing:
                self.pass_by(step)
            self._manager.save(step, args=args)
        except Exception as error:
            raise _unwritable(
                self.directory, storage.first_line(error)
            ) from error

    def _bests(self) -> list[tuple[int, int | None]]:
        """What processes before this one knew when they saved."""
        found = []
        for step in self._steps():
            if step not in self._keep.best:
                try:
                    best = self._seal(step)["meta"]["best_step"]
                except Exception:
                    # A damaged one: it says so when it is to be restored.
                    best = None
                found.append((step, best))
        return found

    def _check_room(self, needed: int) -> None:
        """Refuses before anything is half written, where that can be known."""
        needed += needed // 10 + 2**18  # metadata, and whole blocks
        free = storage.free(self.directory)
        if free is not None and free < needed:
            raise _unwritable(
                self.directory, f"{needed / 2**20:.1f} MiB are needed"
            )

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          InputError: if something could not be written.
        """
        hosts.phase("writing a checkpoint", slow=True)
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _unwritable(
                self.directory, storage.first_line(error)
            ) from error

    def restore(
        self, abstract: State, step: int | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Reads a checkpoint, onto the devices that `abstract` names.

        Args:
          abstract: shapes, dtypes and shardings.
          step: which; by default the latest that can be read. Those after it
            are set aside (unless `read_only`), and stderr is told.

        Raises:
          InputError: if it is missing, damaged, or of another shape; without
            `step`, if all are.
        """
        # What is still being written is none yet.
        self.wait()
        steps = sorted(self._steps(), reverse=True)
        if not steps or step not in [None, *steps]:
            raise InputError(
                "There is no such checkpoint.",
                where=self.directory,
                expected=f"step {step}" if step is not None else "any step",
                found=steps[::-1],
                fix="train first, or name a step that is there",
            )
        if step is not None:
            return self._read(abstract, step)
        damaged: list[tuple[int, InputError]] = []
        for step in steps:
            try:
                found = self._read(abstract, step)
            except InputError as error:
                damaged.append((step, error))
            else:
                for number, problem in damaged:
                    self._set_aside(number, step, problem)
                return found
        raise damaged[0][1]

    def _read(self, abstract: State, step: int) -> tuple[State, dict[str, Any]]:
        hosts.phase(f"reading the checkpoint of step {step}", slow=True)
        problem: Exception | None = None
        try:
            seal = hosts.lead("seal", lambda: self._seal(step))
            meta, checksum = seal["meta"], seal["checksum"]
            # Not by the manager: there all processes wait for each other
            # without end, also for one that cannot read its part.
            state = ocp.StandardCheckpointHandler().restore(
                self.directory / str(step) / "state",
                # Tables may have other padding, all zeros, on another mesh.
                args=ocp.args.StandardRestore(abstract, strict=False),
            )
        except Exception as error:
            problem = error
        # What one process cannot read, none may go on from.
        failed = problem is not None
        if jax.process_count() > 1 and bool(hosts.anywhere(failed)):
            problem = problem or ValueError("another process cannot read it")
        if problem is None and checksum != _checksum(state, meta):
            problem = ValueError("the contents contradict their checksum")
        if problem is not None:
            raise InputError(
                f"The checkpoint of step {step} cannot be read.",
                where=self.directory / str(step),
                expected="a complete checkpoint of this model",
                found=storage.first_line(problem),
                fix=f"move {self.directory} away; the same command then "
                "trains again from the start",
            ) from problem
        return state, meta

    def _seal(self, step: int) -> dict[str, Any]:
        """What the host knew when it saved, and the checksum of it all."""
        return dict(
            ocp.JsonCheckpointHandler().restore(
                self.directory / str(step) / "meta"
            )
        )

    def _set_aside(self, damaged: int, instead: int, error: InputError) -> None:
        """Goes on from another step, and says so."""
        said = "it is left where it is"
        if not self._read_only:
            # Not beside the others: there Orbax looks for steps.
            aside = self.directory.with_name("damaged") / str(damaged)
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            there = self.directory / str(damaged)
            hosts.lead("set aside", lambda: storage.move(there, aside))
            self._manager.close()
            self._manager = self._open()
            said = f"it now stands in {aside}"
        if hosts.first():
            print(
                f"warning: {error.problem[:-1]} ({error.found}); "
                f"going on from step {instead} instead; {said}",
                file=sys.stderr,
                flush=True,
            )


def _checksum(state: State, meta: dict[str, Any]) -> str:
    text = json.dumps(meta, sort_keys=True)
    return f"{int(_words(state)):08x}{zlib.crc32(text.encode()):08x}"


@jax.jit
def _words(state: State) -> jax.Array:
    """Sums all words, each times an odd number that its place gives it.

    Every flipped bit changes the sum; padding with zeros, and the order in
    which integers are added up, do not: it is the same on any mesh.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        words = leaf.view(f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis in range(leaf.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            place = place * jnp.uint32(0x9E3779B1) + index
        total = total * 3 + (words * (2 * place + 1)).sum(dtype=jnp.uint32)
    return total


def _unwritable(directory: epath.Path, found: object) -> InputError:
    if not storage.remote(directory):
        free = (directory.exists() and storage.free(directory)) or 0
        found = f"{found}, {free / 2**20:.1f} MiB are free"
    return InputError(
        "A checkpoint could not be written; the ones before it are intact.",
        where=directory,
        found=found,
        fix=storage.room(directory),
    )


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file that this package wrote."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            "A file of the workdir is damaged.",
            where=path,
            expected="JSON",
            found=storage.first_line(error),
            fix="use a new --workdir, or restore the file",
        ) from error


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    storage.write(path, (json.dumps(value, indent=2) + "\n").encode())
