"""Told to stop: in order, at the step it has come to, and all together."""

import json
import os
import pathlib
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import make_catalog, some
from training import make_config, numbers, told

from neggen_jax import hosts
from neggen_jax import train as trainer
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.errors import InputError
from neggen_jax.preemption import Preemption, Stopped
from neggen_jax.run import Run
from neggen_jax.train import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[1]
# Of nine steps an epoch, three by three; not every epoch is evaluated, and
# not every one is saved.
CHANGES = {
    "train__epochs": 3,
    "train__eval_every": 2,
    "train__checkpoint_every": 2,
    "train__ema": 0.9,
    "optimizer__schedule": "cosine",
}


# The signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_hears_a_signal_and_gives_the_handlers_back(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.told()
        preemption.heed()
        os.kill(os.getpid(), number)
        assert preemption.told()
        preemption.saved = 7
        with pytest.raises(Stopped, match="step 7 is saved"):
            preemption.heed()
    assert signal.getsignal(number) is before
    with Preemption() as another:
        assert not another.told()


def test_an_error_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError, match="No dataset"):
        train_and_evaluate(make_config("mf"), "unused")
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.told()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_hears_nothing_and_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def listen():
        with Preemption() as preemption:
            found.append((signal.getsignal(signal.SIGTERM), preemption.told()))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [(before, False)]


# Never asks whether it was told.
DEAF = """
import time
from neggen_jax.preemption import Preemption
with Preemption():
    print("listening", flush=True)
    for _ in range(600):
        time.sleep(0.1)
"""


def test_a_second_interrupt_kills_and_a_second_sigterm_does_not():
    term, interrupt = signal.SIGTERM, signal.SIGINT
    with subprocess.Popen(
        [sys.executable, "-c", DEAF],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline() == "listening\n"
        for number in (term, term, interrupt, term, interrupt):
            # Signals of one kind that come at once count as one.
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(number)
        assert process.wait(timeout=20) == -interrupt


def test_stopped_says_what_is_to_be_done():
    assert "step 12 is saved" in str(Stopped(12))
    assert "begins again" in str(Stopped())
    # As processes hand it on.
    stopped = pickle.loads(pickle.dumps(Stopped(12, interrupted=True)))
    assert (stopped.step, stopped.interrupted) == (12, True)


# Stops in order at once, however often it is told.
ORDERLY = """
import time
from absl import flags
from neggen_jax import command
from neggen_jax.preemption import Preemption
def main(argv):
    with Preemption() as preemption:
        print("listening", flush=True)
        for _ in range(600):
            preemption.saved = 3
            preemption.heed()
            time.sleep(0.05)
command.run(main)
"""


@pytest.mark.parametrize(
    ("number", "status", "goes_on"),
    [(signal.SIGTERM, 0, True), (signal.SIGINT, 130, False)],
)
def test_a_loop_of_a_shell_ends_by_ctrl_c_alone(
    tmp_path, number, status, goes_on
):
    """As on a terminal: all of the group hear it."""
    (tmp_path / "run.py").write_text(ORDERLY)
    loop = (
        f"trap : TERM; for n in 1 2; do '{sys.executable}' "
        f"{tmp_path}/run.py; echo status $?; done"
    )
    with subprocess.Popen(
        ["bash", "-c", loop],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == "listening\n"
        os.killpg(process.pid, number)
        assert "step 3 is saved" in process.stdout.readline()
        if goes_on:
            assert process.stdout.readline() == f"status {status}\n"
            assert process.stdout.readline() == "listening\n"
            os.killpg(process.pid, signal.SIGKILL)
            return
        assert process.stdout.read() == ""
        assert process.wait(timeout=20) == -signal.SIGINT


# Several processes


def test_a_flag_anywhere_is_seen():
    assert not bool(hosts.anywhere(False))
    assert bool(hosts.anywhere(True))


TOGETHER = """
import os, signal, sys, time
rank, port, victim = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from neggen_jax.preemption import Preemption
with Preemption() as preemption:
    for step in range(1000):
        if preemption.told():
            break
        # The other process is faster, and both are heard at their own step.
        time.sleep(0.01 * (1 + rank))
        if rank == victim and step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.told()
print(step, flush=True)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_processes_stop_at_the_same_step(victim):
    """Only one of them is told."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), port, str(victim)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    # Told in step 5, asked in 6, answered in 7.
    assert [out.splitlines()[-1] for out, _ in said] == ["7", "7"]


# A run


def go(workdir, **changes):
    config = make_config("mf", **{**CHANGES, **changes})
    return train_and_evaluate(config, workdir, make_catalog())


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def log(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def kept(workdir):
    """What every checkpoint holds, but for seconds."""
    run = Run.make(make_config("mf", **CHANGES), make_catalog())
    _, abstract = run.start()
    out = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for step in saved(workdir):
            state, meta = checkpoints.restore(abstract, step)
            meta = {k: v for k, v in meta.items() if "seconds" not in k}
            out[step] = numbers(state), meta
    return out


def assert_same(workdir, whole):
    assert log(workdir) == log(whole)
    results = [
        json.loads((path / "results.json").read_text())
        for path in (workdir, whole)
    ]
    for result in results:
        del result["timing"]
    assert results[0] == results[1]
    got, want = kept(workdir), kept(whole)
    assert got.keys() == want.keys()
    for step, (arrays, meta) in want.items():
        assert got[step][1] == meta
        for name, value in arrays.items():
            np.testing.assert_array_equal(got[step][0][name], value, name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts; not to be changed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    go(workdir)
    return workdir


def test_stops_in_the_middle_of_an_epoch(tmp_path, whole):
    before = signal.getsignal(signal.SIGTERM)
    with told(3), pytest.raises(Stopped) as stopped:
        go(tmp_path)
    # The dispatch after step 3 had begun; the third of the epoch had not.
    assert stopped.value.step == 6
    assert saved(tmp_path) == [6]
    assert [line["step"] for line in log(tmp_path)] == [3, 6]
    assert not (tmp_path / "results.json").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    results = go(tmp_path)
    # Times are those of whole epochs: of the first there is none.
    assert results["timing"]["seconds_per_epoch"] > 0
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_stopped_again_and_again(tmp_path, whole):
    """Every process is told when it first says anything."""
    # In epochs and at their ends; where it evaluates, at 18 and 27, twice:
    # before the evaluation, and after it.
    for step in (6, 9, 15, 18, 18, 24, 27, 27):
        with told(0), pytest.raises(Stopped) as stopped:
            go(tmp_path)
        assert stopped.value.step == saved(tmp_path)[-1] == step
        assert log(tmp_path)[-1]["step"] == step
    with told(0):
        go(tmp_path)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(
    "when", some(["compiling", "evaluating", "results"], "evaluating")
)
def test_stops_wherever_it_is(when, tmp_path, whole, monkeypatch):
    """And what had been trained is not trained again."""

    def telling(kind, name):
        real = getattr(kind, name)

        def tell(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)

        monkeypatch.setattr(kind, name, tell)

    place = {
        "compiling": (trainer.Trainer, "_compile"),
        "evaluating": (Run, "encode"),
        "results": (trainer, "evaluate_state"),
    }
    telling(*place[when])
    with pytest.raises(Stopped) as stopped:
        go(tmp_path)
    monkeypatch.undo()
    step = {"compiling": None, "evaluating": 18, "results": 27}[when]
    assert stopped.value.step == step
    assert saved(tmp_path) == ([] if step is None else saved_by(step, whole))
    trained = [line["step"] for line in log(tmp_path) if "train/loss" in line]
    assert trained == list(range(3, (step or 0) + 1, 3))
    if when == "evaluating":
        # It did not wait for the evaluation to end.
        assert log(tmp_path)[-1]["step"] == trained[-1]
        assert "train/loss" in log(tmp_path)[-1]
    assert not (tmp_path / "results.json").exists()
    go(tmp_path)
    assert_same(tmp_path, whole)


def saved_by(step, whole):
    return [number for number in saved(whole) if number < step] + [step]


def test_told_before_it_begins_it_leaves_nothing(tmp_path, monkeypatch):
    told_at_start(monkeypatch)
    with pytest.raises(Stopped, match="begins again"):
        go(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stopped_it_leaves_no_results_of_a_shorter_run(tmp_path, monkeypatch):
    """Those of the run itself stay: it has nothing to stop."""
    constant = {"optimizer__schedule": "constant"}
    short = go(tmp_path, **constant, train__epochs=1)
    told_at_start(monkeypatch)
    assert go(tmp_path, **constant, train__epochs=1) == short
    assert (tmp_path / "results.json").exists()
    with pytest.raises(Stopped, match="step 9 is saved"):
        go(tmp_path, **constant, train__epochs=2)
    assert not (tmp_path / "results.json").exists()


def told_at_start(monkeypatch):
    real = Run.start

    def start(self):
        os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Run, "start", start)


def test_a_kill_after_the_evaluation_it_was_stopped_before(tmp_path, whole):
    """The evaluation has been said, and nothing has been saved since."""
    # The line of step 15 is written while the last dispatch runs.
    with told(15), pytest.raises(Stopped) as stopped:
        go(tmp_path / "run")
    assert stopped.value.step == 18
    at_stop = tmp_path / "at_stop"
    shutil.copytree(tmp_path / "run", at_stop)
    with told(18), pytest.raises(Stopped):
        go(tmp_path / "run")
    assert "valid/recall@20" in log(tmp_path / "run")[-1]
    shutil.copy(tmp_path / "run" / "metrics.jsonl", at_stop)
    go(at_stop)
    assert_same(at_stop, whole)
