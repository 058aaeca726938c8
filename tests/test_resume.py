"""Killed or told to stop at any moment, then the same command.

Real processes: `launch/train.py` is killed (-9) again and again while it
trains, evaluates and saves, or told to stop (SIGTERM), or its newest
checkpoint is damaged, and started again until it is done. Then everything it
leaves - parameters, moments, averages, what the host knows, metrics, results
- is compared, bit for bit, with a run that was left in peace.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import compiling
import jax
import numpy as np
import pytest
from training import numbers

from neggen_jax import config as configs
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.data import store
from neggen_jax.run import Run

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 8

RUNS = {
    # Pruned anew each epoch, popularity tables, a running average; and a
    # last epoch that early stopping, counted over all processes, sets.
    "freedom": [
        "--config=configs/baseline.py:freedom,popularity",
        "--config.data.pipeline=numpy",
        "--config.train.ema=0.9",
        "--config.train.patience=4",
        "--config.encoder.dim=16",
    ],
    "lightgcn": [
        "--config=configs/baseline.py:lightgcn",
        "--config.data.pipeline=tf.data",
        "--config.train.eval_every=2",
        "--config.encoder.dim=16",
    ],
}
# Between two checkpoints: every epoch has one, or only some.
SECONDS = {"freedom": 0, "lightgcn": 0.3}


def start(name, data, workdir, **flags):
    """Starts `launch/train.py` on one device."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(compiling.QUICKLY)}
    command = [
        sys.executable,
        "launch/train.py",
        *RUNS[name],
        f"--config.data.path={data}",
        f"--config.train.epochs={EPOCHS}",
        # Epochs of many dispatches, so that one can be stopped within.
        "--config.train.batch_size=16",
        "--config.train.steps_per_dispatch=4",
        f"--config.train.checkpoint_seconds={SECONDS[name]}",
        "--config.optimizer.learning_rate=0.02",
        f"--workdir={workdir}",
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process) -> str:
    """Waits for it; returns what it said on stderr."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def log(workdir) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def saved(workdir) -> set[str]:
    paths = (workdir / "checkpoints").glob("*")
    return {path.name for path in paths if path.name.isdecimal()}


def kill(process, workdir, moment, rng) -> bool:
    """Kills the process at some moment; False if it was done before.

    "early" is at its first line in the log; "late" some time after it has
    saved a checkpoint of its own, and so has a past to go on from; "saving"
    when another one is half written after that.
    """
    path = workdir / "metrics.jsonl"
    log_before = path.stat().st_ino if path.exists() else None
    saved_before = saved(workdir)
    while process.poll() is None:
        time.sleep(0.001)
        if moment == "early":
            # A process that goes on replaces the log, and then adds to it.
            if path.exists() and path.stat().st_ino != log_before:
                time.sleep(rng.uniform(0, 0.05))
                break
        elif saved(workdir) - saved_before:
            if moment == "late":
                time.sleep(rng.uniform(0, 0.3))
                break
            if any(workdir.glob("checkpoints/*tmp*")):
                break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def tell(process, workdir, rng) -> bool:
    """Tells the process to stop within an epoch; see `kill`.

    It has to: with exit status 0, one line, and the step it has come to.
    """
    path = workdir / "metrics.jsonl"
    log_before = path.stat().st_ino if path.exists() else None
    part = rng.uniform(0.1, 0.4)
    while process.poll() is None:
        time.sleep(0.001)
        if not path.exists() or path.stat().st_ino == log_before:
            continue
        lines = [json.loads(line) for line in log(workdir)]
        if lines and part < lines[-1]["epoch"] % 1 < part + 0.3:
            break
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained
    if "best epoch" in said:
        return False
    # A dispatch takes milliseconds here, and a write less than a second.
    assert time.monotonic() - begun < 30
    line = said.splitlines()[-1]
    step = re.fullmatch(r"told to stop; step (\d+) is saved, and .*", line)[1]
    last = json.loads(log(workdir)[-1])
    assert last["step"] == int(step)
    assert last["epoch"] % 1, "it was not stopped within an epoch"
    assert max(saved(workdir), key=int) == step
    return True


def damage(workdir) -> None:
    """Cuts the largest file of the newest checkpoint short."""
    newest = max(saved(workdir), key=int)
    files = (workdir / "checkpoints" / newest).rglob("*")
    path = max(files, key=lambda file: file.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture(scope="module")
def peaceful(bazaar, tmp_path_factory):
    """Runs that nothing interrupts, by name; they go on beside the others."""
    begun = {}

    def get(name):
        if name not in begun:
            workdir = tmp_path_factory.mktemp("peaceful") / name
            begun[name] = start(name, bazaar, workdir), workdir
        return begun[name]

    return get


def kept(workdir, data):
    """Every checkpoint: its arrays, and what the host knew."""
    identity = json.loads((workdir / "run.json").read_text())
    config = configs.ConfigDict(identity["config"])
    config.mesh.update(data=-1, model=1)
    run = Run.make(config, store.load(data), jax.devices()[:1])
    _, abstract = run.start()
    out = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for path in (workdir / "checkpoints").iterdir():
            state, meta = checkpoints.restore(abstract, int(path.name))
            known = {k: v for k, v in meta.items() if "seconds" not in k}
            out[path.name] = numbers(state), known
    return out


def compare(workdir, peaceful, data, every=True) -> None:
    """Compares all that two runs left; checkpoints all, or those of both."""
    assert log(workdir) == log(peaceful)
    got, want = (
        json.loads((path / "results.json").read_text())
        for path in (workdir, peaceful)
    )
    for results in (got, want):
        del results["timing"]
        # How often a run is saved is no part of what it comes to.
        del results["config"]["train"]["checkpoint_seconds"]
    assert got == want
    best = str(got["step"])
    got, want = kept(workdir, data), kept(peaceful, data)
    if every:
        assert got.keys() == want.keys()
    shared = got.keys() & want.keys()
    assert {best, max(want, key=int)} <= shared
    for step, (arrays, meta) in want.items():
        if step not in shared:
            continue
        assert got[step][1] == meta
        assert got[step][0].keys() == arrays.keys()
        for name, value in arrays.items():
            left = got[step][0][name]
            assert left.dtype == value.dtype
            assert left.tobytes() == value.tobytes(), (step, name)
    for split in ("valid", "test"):
        left, right = (
            np.load(path / f"per_user_{split}.npz")
            for path in (workdir, peaceful)
        )
        for name in right:
            np.testing.assert_array_equal(left[name], right[name])


def torment(name, data, peaceful, workdir, moments, seed) -> int:
    """Disturbs it at each of the moments, lets it finish, and compares.

    Args:
      moments: those of `kill`; "told", see `tell`; or "damage", done to what
        the one before has left.

    Returns:
      How often it was stopped in time.
    """
    calm, beside = peaceful(name)
    rng, killed = random.Random(seed), 0
    for moment in moments:
        if moment == "damage":
            damage(workdir)
        elif moment == "told":
            killed += tell(start(name, data, workdir), workdir, rng)
        else:
            killed += kill(start(name, data, workdir), workdir, moment, rng)
    said = finish(start(name, data, workdir))
    if moments[-1] == "damage":
        assert "cannot be read" in said
        assert list((workdir / "damaged").iterdir())
    if calm.returncode is None:
        finish(calm)
    compare(workdir, beside, data, every=not SECONDS[name])
    return killed


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("freedom", ("saving",)),
        pytest.param("freedom", ("told", "saving"), marks=pytest.mark.slow),
        pytest.param(
            "lightgcn", ("saving", "told", "damage"), marks=pytest.mark.slow
        ),
    ],
)
def test_disturbed_runs_end_as_if_nothing_had_been(
    name, moments, bazaar, peaceful, tmp_path
):
    killed = torment(name, bazaar, peaceful, tmp_path / "run", moments, 1)
    assert killed, "the run was over before it could be killed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again(name, seed, bazaar, peaceful, tmp_path):
    moments = ("early", "told", "saving", "late", "told", "saving", "told")
    assert torment(name, bazaar, peaceful, tmp_path / "run", moments, seed) > 1
