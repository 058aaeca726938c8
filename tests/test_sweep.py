"""Sweeps: what would run, what is run again, and what is lost: nothing."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from launching import until

from neggen_jax import sweep, trials
from neggen_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
BASELINE = ROOT / "configs" / "baseline.py"
TEXT = f"""
config = "{BASELINE}"
encoders = ["mf", "lightgcn"]
samplers = ["uniform", "dns"]
seeds = [0, 1]
set = ["train.epochs=1", "encoder.dim=8", "train.batch_size=256"]
"""

# Leaves what a run does, at once; of "dns" nothing, but in lightgcn's seed 1.
TRAINER = """
import json, pathlib, signal, sys, time
flags = dict(x.lstrip("-").split("=", 1) for x in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
if "mf-dns" in workdir.name:
    sys.exit("it has crashed")
if "lightgcn-dns-0" in workdir.name:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (workdir / "begun").touch()
    time.sleep(60)
print("trained", workdir.name)
(workdir / "results.json").write_text((workdir / "wanted.json").read_text())
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def trainer(tmp_path):
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    return path


def finish(trial, recall, name="results.json"):
    """What a run leaves that has this recall of its users."""
    trial.workdir.mkdir(parents=True, exist_ok=True)
    results = {
        "config": trial.config.to_dict(),
        "dataset": {"name": "toy"},
        "test": {},
    }
    (trial.workdir / name).write_text(json.dumps(results))
    np.savez_compressed(
        trial.workdir / "per_user_test.npz",
        users=np.arange(len(recall)),
        **{"recall@20": recall, "ndcg@20": recall / 2},
    )


def test_what_would_run(file, tmp_path):
    made = sweep.make(sweep.read(file), "data", tmp_path)
    assert [trial.name for trial in made] == [
        *("mf-uniform-0", "mf-dns-0", "lightgcn-uniform-0", "lightgcn-dns-0"),
        *("mf-uniform-1", "mf-dns-1", "lightgcn-uniform-1", "lightgcn-dns-1"),
    ]
    last = made[-1]
    assert last.config.encoder.name == "lightgcn"
    assert last.config.negatives.sampled.name == "dns"
    assert (last.config.seed, last.config.train.epochs) == (1, 1)
    assert last.config.data.path == "data"
    finish(made[0], np.ones(3))
    made[1].workdir.mkdir()
    first, second, *rest, count = trials.plan(made, "train.py").splitlines()
    assert first == "finished  mf-uniform-0"
    assert second.startswith("begun     mf-dns-0  ")
    assert all(line.startswith("new ") for line in rest)
    assert second.endswith(f"--workdir={tmp_path}/mf-dns-0")
    assert f"--config={BASELINE}:mf,dns --config.train.epochs=1" in second
    assert count == "7 of 8 runs are to be made"


def test_a_run_from_before_a_key_was_there_is_finished(file, tmp_path):
    trial = sweep.make(sweep.read(file), "data", tmp_path)[0]
    finish(trial, np.zeros(3))
    path = trial.workdir / "results.json"
    results = json.loads(path.read_text())
    del results["config"]["data"]["half_life"]
    path.write_text(json.dumps(results))
    assert trial.state == "finished"
    del results["config"]["encoder"]["dim"]
    path.write_text(json.dumps(results))
    assert trial.state == "begun"


def test_a_run_of_another_length_is_not_finished(file, tmp_path):
    wanted = sweep.read(file)
    (trial, *_) = sweep.make(wanted, "data", tmp_path)
    finish(trial, np.ones(3))
    file.write_text(TEXT.replace("epochs=1", "epochs=2"))
    (longer, *_) = sweep.make(sweep.read(file), "data", tmp_path)
    (elsewhere, *_) = sweep.make(wanted, "data/moved", tmp_path)
    assert (trial.state, longer.state) == ("finished", "begun")
    assert elsewhere.state == "finished"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds", "sed", "no 'sed'"),
        ('encoders = ["mf", "lightgcn"]', "", "needs 'encoders'"),
        ("[0, 1]", '["0"]', "Bad value of 'seeds'"),
        ("[0, 1]", "[]", "Bad value of 'seeds'"),
        ("[0, 1]", "[true]", "Bad value of 'seeds'"),
        ('["uniform", "dns"]', '"uniform"', "Bad value of 'samplers'"),
        ("= [", "= [[", "no sweep to read"),
        ('"dns"', '"dnns"', "Unknown word 'dnns'"),
        ("train.epochs=1", "train.epoch=1", "Unknown config key"),
    ],
)
def test_what_is_wrong_is_named(file, tmp_path, old, new, message):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=message):
        sweep.make(sweep.read(file), "data", tmp_path)


def test_a_crash_loses_nothing_and_a_stop_is_in_order(file, trainer, tmp_path):
    output = tmp_path / "runs"
    made = sweep.make(sweep.read(file), "data", output)
    for trial in made:
        finish(trial, np.ones(3), "wanted.json")

    def stop():
        until((output / "lightgcn-dns-0" / "begun").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    # The signal is delivered to the main thread, which waits for the run.
    threading.Thread(target=stop, daemon=True).start()
    said = []
    wrong = trials.run(made, trainer, output, said.append)
    crash, stopped, told = wrong
    assert crash.startswith("mf-dns-0: status 1; see ")
    assert stopped.startswith("lightgcn-dns-0: status 0")
    assert told.startswith("told to stop")
    assert "it has crashed" in (output / "logs/mf-dns-0.log").read_text()
    states = [trial.state for trial in made]
    assert states == ["finished", "begun", "finished", *["begun"] * 5]
    assert "[1/8] mf-uniform-0" in said
    # What is finished is not made again.
    log = output / "logs" / "mf-uniform-0.log"
    assert log.read_text() == "trained mf-uniform-0\n"
    (output / "lightgcn-dns-0").rename(output / "gone")
    finish(made[3], np.ones(3))
    wrong = trials.run(made, trainer, output, said.append)
    assert [line.split(":")[0] for line in wrong] == ["mf-dns-0", "mf-dns-1"]
    assert log.read_text() == "trained mf-uniform-0\n"


def test_the_table(file, tmp_path):
    wanted = sweep.read(file)
    made = sweep.make(wanted, "data", tmp_path)
    with pytest.raises(InputError, match="Nothing is finished"):
        sweep.gather(wanted, made)
    rng = np.random.default_rng(0)
    plain = rng.random((2, 40))
    for trial in made[:-1]:
        gain = 0.1 * (trial.sampler == "dns") * rng.random(40)
        finish(trial, plain[trial.seed] + gain)
    finished = sweep.gather(wanted, made)
    text = sweep.page(wanted, finished)
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert text.startswith("# Samplers on toy\n")
    assert list(rows)[2:] == [
        *("mf, uniform", "mf, dns", "lightgcn, uniform", "lightgcn, dns")
    ]
    assert rows["mf, uniform"][1] == "2"
    assert rows["mf, uniform"][2].startswith(f"{plain.mean():.4f} ± ")
    assert rows["mf, uniform"][3] == ""
    assert rows["mf, dns"][3].startswith("+0.0")
    assert rows["lightgcn, dns"][1] == "1"
    assert "- lightgcn, dns: 1 runs are finished" in text
    panels = sweep.draw(wanted, finished).axes
    assert [axes.get_xlabel() for axes in panels] == ["mf", "lightgcn"]
    dots = [line.get_xdata() for line in panels[0].lines[1:]]
    np.testing.assert_allclose(dots[0], plain.mean(axis=1))
    np.testing.assert_allclose(dots[1], [plain.mean()] * 2)
    assert len(dots[2]) == 2
    assert dots[3][0] > dots[1][0]
    assert "the seeds [0] alone" in text


@pytest.mark.slow
def test_a_sweep_over_a_bazaar(bazaar, file, tmp_path):
    """Two real runs; given again, the table alone."""
    file.write_text(
        TEXT.replace('"mf", "lightgcn"', '"mf"').replace("[0, 1]", "[0]")
    )
    output = tmp_path / "runs"
    flags = [f"--sweep={file}", f"--data={bazaar}", f"--output={output}"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def call(*more):
        done = subprocess.run(
            [sys.executable, "launch/sweep.py", *flags, *more],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 of 2 runs are to be made" in call("--dry-run")
    assert not output.exists()
    first = call()
    assert "[2/2] mf-dns-0" in first
    text = (output / "comparison.md").read_text()
    assert "| mf, dns | 1 | 0." in text
    assert "# Samplers on bazaar" in text
    assert call() == text + "\n"


def test_the_comparison_of_the_docs_is_one():
    wanted = sweep.read(ROOT / "docs" / "comparison.toml")
    relative = dataclasses.replace(wanted, config=str(ROOT / wanted.config))
    assert len(sweep.make(relative, "data", pathlib.Path("runs"))) == 72
