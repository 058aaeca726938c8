"""What the tests of training share: small runs, and what to compare."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog
from ml_collections import ConfigDict

from neggen_jax import config as configs
from neggen_jax.data.inputs import Inputs
from neggen_jax.run import Run
from neggen_jax.step import Stack, State
from neggen_jax.workdir import Log

BASELINE = pathlib.Path(__file__).parents[1] / "configs" / "baseline.py"


def make_config(
    argument: str, file: pathlib.Path = BASELINE, **changes: Any
) -> ConfigDict:
    """A small version of an experiment.

    Args:
      argument: of the config file.
      file: which one.
      **changes: dotted keys, with __ for the dots.
    """
    config = configs.load(f"{file}:{argument}")
    small = {
        "data__pipeline": "numpy",
        "encoder__dim": 8,
        "train__batch_size": 64,
        "train__steps_per_dispatch": 3,
        "train__epochs": 3,
        "train__checkpoint_seconds": 0.0,
        "evaluate__cutoffs": (5, 20),
        "evaluate__report": False,
        "optimizer__learning_rate": 0.01,
    }
    config.update_from_flattened_dict(
        {k.replace("__", "."): v for k, v in {**small, **changes}.items()}
    )
    return config


@dataclasses.dataclass(frozen=True)
class Small:
    """A composed run at step 0; nothing here is donated.

    Attributes:
      run: on the catalogue of `conftest`.
      state: of step 0.
      inputs: of the first epoch.
      stack: the first three batches of 64.
      dispatch: jit-compiled.
      step: jit-compiled.
    """

    run: Run
    state: State
    inputs: Inputs
    stack: Stack
    dispatch: Any
    step: Any

    def batch(self, number: int) -> Stack:
        """One batch of the stack."""
        return jax.tree.map(lambda x: x[number], self.stack)


def make_run(argument: str, mesh=(1, 1), **changes: Any) -> Run:
    """A composed run on some of the virtual devices."""
    config = make_config(argument, **changes)
    config.mesh.data, config.mesh.model = mesh
    devices = jax.devices()[: mesh[0] * mesh[1]]
    return Run.make(config, make_catalog(), devices)


@functools.cache
def small(argument: str, mesh=(1, 1), **changes: Any) -> Small:
    """A run that tests share, because compiling takes seconds."""
    run = make_run(argument, mesh, **changes)
    state, _ = run.start()
    return Small(
        run,
        state,
        jax.jit(run.program.prepare)(run.inputs, jnp.int32(0)),
        next(run.batches(0)),
        jax.jit(run.program.dispatch),
        jax.jit(run.program.step),
    )


@contextlib.contextmanager
def told(step: int) -> Iterator[None]:
    """Has this process sent SIGTERM once a run has logged some step."""
    write, said = Log.write, []

    def tell(self, at, values):
        write(self, at, values)
        if at >= step and not said:
            said.append(at)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "write", tell)
        yield


def numbers(tree: Any) -> dict[str, np.ndarray]:
    """Path -> array on the host, of every leaf."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def fill(disk: pathlib.Path, leave: int) -> pathlib.Path:
    """Fills a disk but for some bytes; returns the file that does."""
    path = disk / "filler"
    path.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return path


def digests(directory: pathlib.Path) -> dict[str, str]:
    """File -> hash of its contents, of everything in a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
