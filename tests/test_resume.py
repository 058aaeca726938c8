"""kill -9 at any moment, then the same command: nothing can be told apart.

Real processes: `launch/train.py` is killed again and again while it trains,
evaluates and saves, and started again until it is done. Then everything it
leaves - parameters, moments, averages, what the host knows, metrics, results
- is compared, bit for bit, with a run that was left in peace.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from training import numbers

from neggen_jax import config as configs
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.data import store
from neggen_jax.data.bazaar import Bazaar, make
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small bazaar on disk."""
    small = dict(num_users=300, num_items=150, interactions_per_user=9.0)
    catalog, _ = make(Bazaar(**small, features="direct"))
    directory = tmp_path_factory.mktemp("bazaar") / "data"
    store.save(catalog, directory, source={})
    return directory


def start(name, data, workdir, **flags):
    """Starts `launch/train.py` on one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [
        sys.executable,
        "launch/train.py",
        *RUNS[name],
        f"--config.data.path={data}",
        f"--config.train.epochs={EPOCHS}",
        "--config.train.batch_size=64",
        "--config.train.steps_per_dispatch=4",
        "--config.optimizer.learning_rate=0.02",
        f"--workdir={workdir}",
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def log(workdir) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def kill(process, workdir, moment, rng) -> bool:
    """Kills the process at some moment; False if it was done before.

    The process first has to say something new. Then "any" waits a little
    while, "saving" waits until a checkpoint is half written.
    """
    before, stepped = len(log(workdir)), False
    while process.poll() is None:
        # A resumed log may be shorter at first, than it was.
        lines = len(log(workdir))
        stepped = stepped or lines > min(before, 2)
        before = min(before, lines)
        if stepped and moment == "any":
            time.sleep(rng.uniform(0, 0.5))
            break
        if stepped and any(workdir.glob("checkpoints/*tmp*")):
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def peaceful(data, tmp_path_factory):
    """Workdirs of runs that nothing interrupts, by name."""
    done = {}

    def get(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp("peaceful") / name
            finish(start(name, data, done[name]))
        return done[name]

    return get


def kept(workdir, data):
    """Every checkpoint: its arrays, and what the host knew."""
    identity = json.loads((workdir / "run.json").read_text())
    config = configs.ConfigDict(identity["config"])
    run = Run.make(config, store.load(data), jax.devices()[:1])
    _, abstract = run.start()
    out = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for path in (workdir / "checkpoints").iterdir():
            state, meta = checkpoints.restore(abstract, int(path.name))
            for name in ("epoch_seconds", "evaluation_seconds"):
                # Measured anew, but not lost: as many as there were epochs.
                meta[name] = len(meta[name]) if name[:2] == "ep" else None
            del meta["compile_seconds"]
            out[path.name] = numbers(state), meta
    return out


def compare(workdir, peaceful, data) -> None:
    assert log(workdir) == log(peaceful)
    got, want = (
        json.loads((path / "results.json").read_text())
        for path in (workdir, peaceful)
    )
    for results in (got, want):
        del results["timing"]
    assert got == want
    got, want = kept(workdir, data), kept(peaceful, data)
    assert got.keys() == want.keys()
    for step, (arrays, meta) in want.items():
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


def torment(name, data, workdir, moments, seed) -> int:
    """Kills at each of the moments, then lets the run finish."""
    rng, killed = random.Random(seed), 0
    for moment in moments:
        killed += kill(start(name, data, workdir), workdir, moment, rng)
        assert (workdir / "run.json").exists()
    finish(start(name, data, workdir))
    return killed


@pytest.mark.parametrize(
    ("name", "moments"),
    [("freedom", ("any", "saving", "any")), ("lightgcn", ("any", "saving"))],
)
def test_killed_runs_end_as_if_nothing_had_been(
    name, moments, data, peaceful, tmp_path
):
    killed = torment(name, data, tmp_path / "run", moments, seed=1)
    assert killed >= 2, "the run was over before it could be killed"
    compare(tmp_path / "run", peaceful(name), data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again(name, seed, data, peaceful, tmp_path):
    moments = ("any", "saving", "any", "any", "saving", "any")
    assert torment(name, data, tmp_path / "run", moments, seed) >= 2
    compare(tmp_path / "run", peaceful(name), data)
