"""`launch/babysit.sh`: a run that is killed at any moment ends all the same.

Most trainers here are a line of shell that leaves what a trainer leaves:
directories named by step, and results.json. One is the real one.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SAVE = "mkdir -p {0}/checkpoints/{1}"
FINISH = "echo {{}} > {0}/results.json"


def command(workdir, *words, **flags):
    given = {"wait": 0, **flags}
    flags = [f"--{name.replace('_', '-')}={v}" for name, v in given.items()]
    return ["launch/babysit.sh", f"--workdir={workdir}", *flags, "--", *words]


def start(workdir, *words, **flags):
    return subprocess.Popen(
        command(workdir, *words, **flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def shell(workdir, line, **flags):
    """Runs a line of shell under it to the end.

    `n` in it is the number of the try, from 1.
    """
    counted = (
        f"n=$(($(cat {workdir}/n || echo 0) + 1)); echo $n > {workdir}/n; "
    )
    process = start(workdir, "bash", "-c", counted + line, **flags)
    said, _ = process.communicate(timeout=60)
    tries = int((workdir / "n").read_text())
    return process.returncode, said, tries


def test_it_tries_again_until_there_are_results(tmp_path):
    save, finish = SAVE.format(tmp_path, "$n"), FINISH.format(tmp_path)
    # Killed, failed, told to stop, and at last done.
    line = (
        f"{save}; case $n in 1) kill -KILL $$ ;; 2) exit 3 ;; 3) exit 0 ;; "
        f"*) {finish} ;; esac"
    )
    status, said, tries = shell(tmp_path, line, tries=1)
    assert (status, tries) == (0, 4), said
    assert "ended with status 137" in said
    assert "ended with status 3" in said
    assert f"done: {tmp_path}/results.json" in said


def test_results_without_success_are_not_the_end(tmp_path):
    """They may be those of a shorter run before."""
    (tmp_path / "results.json").write_text("{}")
    status, said, tries = shell(tmp_path, "((n == 2))", tries=9)
    assert (status, tries) == (0, 2), said


def test_a_command_that_always_fails_is_given_up(tmp_path):
    # The second gets on; what another name says is no checkpoint.
    saves = f"((n == 1)) || {SAVE.format(tmp_path, 2)}"
    half = SAVE.format(tmp_path, "$((n + 7)).orbax-checkpoint-tmp")
    status, said, tries = shell(tmp_path, f"{saves}; {half}; exit 5", tries=3)
    assert (status, tries) == (5, 5), said
    last = said.splitlines()[-1]
    assert "gave up: 3 tries in a row left no new checkpoint" in last
    assert "(checkpoint 2)" in last
    assert "status 5" in last


def test_a_lower_step_is_progress_where_one_was_set_aside(tmp_path):
    """Damaged checkpoints are moved away, and training goes on before them."""
    fall_back = (
        f"case $n in 1) {SAVE.format(tmp_path, 90)}; "
        f"{SAVE.format(tmp_path, 100)} ;; "
        f"2) mv {tmp_path}/checkpoints/100 {tmp_path}/damaged; "
        f"{SAVE.format(tmp_path, 95)} ;; "
        f"3) {FINISH.format(tmp_path)} ;; esac; ((n == 3))"
    )
    status, said, tries = shell(tmp_path, fall_back, tries=1)
    assert (status, tries) == (0, 3), said
    assert "there is checkpoint 95" in said


def test_a_checkpoint_that_is_only_set_aside_is_no_progress(tmp_path):
    for step in (7, 8):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    aside = f"mv {tmp_path}/checkpoints/8 {tmp_path}/damaged; exit 5"
    status, said, tries = shell(tmp_path, aside, tries=1)
    assert (status, tries) == (5, 1), said
    assert "(checkpoint 7)" in said


def test_what_ends_well_without_results_fails(tmp_path):
    status, said, tries = shell(tmp_path, "exit 0", tries=2)
    assert (status, tries) == (1, 2), said
    assert "(no checkpoint)" in said


def test_waits_double_up_to_the_longest(tmp_path):
    flags = {"tries": 4, "wait": 1, "longest_wait": 2}
    begun = time.monotonic()
    status, said, _ = shell(tmp_path, "exit 7", **flags)
    assert status == 7
    waits = [line.split()[-2] for line in said.splitlines() if "again" in line]
    assert waits == ["1", "2", "2"]
    assert time.monotonic() - begun > 5


def test_each_try_begins_with_what_stands_before(tmp_path):
    before = (
        f"echo made >> {tmp_path}/made; test $(wc -l < {tmp_path}/made) -gt 1"
    )
    status, said, tries = shell(
        tmp_path, FINISH.format(tmp_path), before=before, tries=3
    )
    # The first time it failed, and the command was not run.
    assert (status, tries) == (0, 1), said
    assert (tmp_path / "made").read_text() == "made\n" * 2


def test_once_is_once(tmp_path):
    flags = ["--once", f"--workdir={tmp_path}", "--", "bash", "-c", "exit 4"]
    done = subprocess.run(["launch/babysit.sh", *flags], cwd=ROOT, check=False)
    assert done.returncode == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["running", "waiting"])
def test_told_to_stop_it_hands_that_on(number, when, tmp_path):
    line = "echo begun; sleep 0.2; exit 1"
    if when == "running":
        # As the trainer: told to stop it saves, and ends well.
        line = (
            f"trap '{SAVE.format(tmp_path, 8)}; exit 0' TERM; echo begun; "
            "while :; do sleep 0.05; done"
        )
    process = start(tmp_path, "bash", "-c", line, wait=60)
    for said in process.stdout:
        if ("begun" if when == "running" else "trying again") in said:
            break
    time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 143, said
    assert "told to stop" in said
    assert (tmp_path / "checkpoints/8").exists() == (when == "running")


def test_dry_run_runs_nothing(tmp_path):
    words = ["touch", f"{tmp_path}/a b"]
    flags = ["--before=make it", "--dry-run", f"--workdir={tmp_path}"]
    done = subprocess.run(
        ["launch/babysit.sh", *flags, "--", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "bash -c 'make it'",
        f"touch '{tmp_path}/a b'",
        f"# again until {tmp_path}/results.json is there",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_trainer_under_it_is_killed_again_and_again(bazaar, tmp_path):
    """By SIGKILL and SIGTERM, at random moments."""
    workdir, rng = tmp_path / "run", random.Random(0)
    train = (
        sys.executable,
        "launch/train.py",
        "--config=configs/baseline.py:lightgcn",
        f"--config.data.path={bazaar}",
        "--config.data.pipeline=numpy",
        "--config.encoder.dim=16",
        "--config.train.batch_size=64",
        "--config.train.steps_per_dispatch=4",
        "--config.train.checkpoint_seconds=0",
        "--config.train.epochs=12",
        f"--workdir={workdir}",
    )
    process = start(workdir, *train)
    trainers = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    hits = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = saved(workdir)
        while process.poll() is None and not saved(workdir) - before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        with contextlib.suppress(OSError, ValueError):
            (trainer,) = map(int, trainers.read_text().split())
            os.kill(trainer, number)
            hits += 1
            # It may first save what it has.
            while str(trainer) in trainers.read_text().split():
                time.sleep(0.005)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("trying again") == hits > 0
    assert "told to stop; step" in said
    results = json.loads((workdir / "results.json").read_text())
    assert results["epochs_trained"] == 12


def saved(workdir) -> set[str]:
    paths = (workdir / "checkpoints").glob("*")
    return {path.name for path in paths if path.name.isdecimal()}
