"""Several processes train one model: as one would, and after any kill.

Real processes of four virtual devices each, started by
`launch/local_multiprocess.sh`, that find each other over `jax.distributed`.
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
import pytest
from test_resume import compare, log, saved
from training import fill

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = (
    sys.executable,
    "launch/train.py",
    "--config=configs/baseline.py:lightgcn",
    "--config.data.pipeline=numpy",
    "--config.encoder.dim=16",
    "--config.train.batch_size=64",
    "--config.train.steps_per_dispatch=4",
    "--config.train.checkpoint_seconds=0",
    "--config.optimizer.learning_rate=0.02",
)
EPOCHS = 6


def start(data, workdir, *flags, processes=2, devices=4, epochs=EPOCHS):
    """Starts the processes, in a session of their own."""
    # Who waits in vain should not do so for ten minutes.
    environment = {**os.environ, "NEGGEN_PATIENCE": "60"}
    environment["XLA_FLAGS"] = " ".join(compiling.QUICKLY)
    return subprocess.Popen(
        [
            "launch/local_multiprocess.sh",
            f"--processes={processes}",
            f"--devices={devices}",
            "--grace=3",
            "--",
            *TRAIN,
            f"--config.data.path={data}",
            f"--config.train.epochs={epochs}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(launcher) -> str:
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    return said


def children(launcher) -> list[int]:
    """The processes, in their order."""
    path = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
    return sorted(map(int, pathlib.Path(path).read_text().split()))


def killed(launcher, workdir, victims, rng) -> bool:
    """Kills some of the processes after a new checkpoint; False if too late."""
    before = saved(workdir)
    while launcher.poll() is None and not saved(workdir) - before:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2))
    if launcher.poll() is not None or len(children(launcher)) < 2:
        return False
    pids = children(launcher)
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    # The one that is left notices by itself, or is told to stop.
    launcher.communicate(timeout=120)
    return launcher.returncode != 0


def told(launcher, workdir) -> None:
    """Tells one of the processes alone to stop, within the first epoch.

    Both have to: at the same step, and in order.
    """
    while launcher.poll() is None and not log(workdir):
        time.sleep(0.002)
    os.kill(children(launcher)[1], signal.SIGTERM)
    said = finish(launcher)
    (step,) = re.findall(r"told to stop; step (\d+) is saved", said)
    assert saved(workdir) == {step}
    last = json.loads(log(workdir)[-1])
    assert last["step"] == int(step)
    assert 0 < last["epoch"] < 1
    assert not (workdir / "results.json").exists()


@pytest.fixture(scope="module")
def peaceful(bazaar, tmp_path_factory):
    """A run of two processes that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("peaceful") / "run"
    said = finish(start(bazaar, workdir, "--config.mesh.model=2"))
    return workdir, said


def losses(workdir) -> dict[int, float]:
    lines = map(json.loads, log(workdir))
    return {x["step"]: x["train/loss"] for x in lines if "train/loss" in x}


def test_one_of_them_speaks(peaceful):
    workdir, said = peaceful
    assert said.count("compiling first") == 1
    assert said.count("everything is in") == 1
    steps = [json.loads(line)["step"] for line in log(workdir)]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(losses(workdir))


def test_two_processes_learn_what_one_does(peaceful, bazaar, tmp_path):
    """On the same mesh, to the last bit.

    `launch/local_multiprocess.sh` has both add up by Gloo, in which each
    device is a rank, wherever it lives: the order of every sum is the same.
    """
    alone = tmp_path / "alone"
    finish(
        start(bazaar, alone, "--config.mesh.model=2", processes=1, devices=8)
    )
    compare(alone, peaceful[0], bazaar)


@pytest.mark.slow
def test_killed_they_go_on_as_if_nothing_had_been(peaceful, bazaar, tmp_path):
    """First one of them is told to stop; then one is killed, then both.

    And then there is one alone.
    """
    workdir, rng = tmp_path / "run", random.Random(0)
    hits = 0
    # Some epochs are held, by all or by none.
    flags = "--config.mesh.model=2", "--config.train.checkpoint_seconds=0.2"
    told(start(bazaar, workdir, *flags), workdir)
    for victims in ((1,), (0, 1)):
        launcher = start(bazaar, workdir, *flags)
        hits += killed(launcher, workdir, victims, rng)
    finish(start(bazaar, workdir, *flags))
    assert hits, "the run was over before it could be killed"
    compare(workdir, peaceful[0], bazaar, every=False)
    # Elsewhere, with less: one process on two devices goes on.
    before = losses(workdir)
    flags = "--config.mesh.model=1", "--config.train.patience=100"
    finish(
        start(
            bazaar,
            workdir,
            *flags,
            processes=1,
            devices=2,
            epochs=EPOCHS + 2,
        )
    )
    after = losses(workdir)
    assert {k: after[k] for k in before} == before
    new = [after[step] for step in sorted(after) if step not in before]
    assert len(new) > 1
    assert new[-1] < list(before.values())[-1]


def test_what_one_refuses_all_refuse(bazaar, tmp_path):
    (tmp_path / "mine").write_text("not a run")
    launcher = start(bazaar, tmp_path)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 2
    assert said.count("holds something that is not a run") == 2
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("leave", "problem"),
    [
        pytest.param(
            0, "The workdir cannot be written.", marks=pytest.mark.slow
        ),
        pytest.param(
            100_000,
            "A checkpoint could not be written; the ones before it are intact.",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_if_the_disk_is_full_all_say_so(leave, problem, bazaar, small_disk):
    """It is process 0 that writes logs, and that looks for room."""
    workdir = small_disk / "run"
    # More lines an epoch than what a file may grow on a full disk.
    flags = "--config.train.steps_per_dispatch=1", "--config.train.keep=1"
    launcher = start(bazaar, workdir, *flags, epochs=50)
    while launcher.poll() is None and not saved(workdir):
        time.sleep(0.002)
    fill(small_disk, leave)
    begun = time.monotonic()
    said, _ = launcher.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert launcher.returncode == 2, said
    assert said.count(f"error: {problem}") == 2
    assert said.count("make room, then run the same command again") == 2


def test_a_process_that_is_not_there_is_missed(bazaar, tmp_path):
    command = [*TRAIN, f"--config.data.path={bazaar}", f"--workdir={tmp_path}"]
    flags = "--coordinator=localhost:1", "--processes=2", "--process=2"
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "which process this is" in done.stderr


def test_the_launcher_says_what_it_would_do():
    command = "launch/local_multiprocess.sh", "--port=7", "--dry-run"
    done = subprocess.run(
        [*command, "--", "python", "a b.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert line.startswith("env 'XLA_FLAGS=")
        assert "device_count=4" in line
        flags = f"--coordinator=localhost:7 --processes=2 --process={number}"
        assert f"'a b.py' {flags}" in line
