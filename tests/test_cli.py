"""The commands, as a person calls them: what they say, and when they refuse."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import some
from training import digests

ROOT = pathlib.Path(__file__).parents[1]
MF = "--config=configs/baseline.py:mf"


def call(command, *flags):
    """Runs a command of launch/ on one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, f"launch/{command}.py", *map(str, flags)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def refused(done) -> str:
    """The one message of a command that has refused."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def train_flags(data, workdir):
    return (
        MF,
        f"--config.data.path={data}",
        "--config.data.pipeline=numpy",
        "--config.encoder.dim=8",
        "--config.train.batch_size=256",
        "--config.train.epochs=2",
        f"--workdir={workdir}",
    )


@pytest.fixture(scope="module")
def trained(bazaar, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cli") / "run"
    done = call("train", *train_flags(bazaar, workdir))
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_training_says_little_and_means_it(trained):
    workdir, done = trained
    assert "mf on bazaar: epoch 2/2" in done.stdout
    assert done.stderr == ""
    results = json.loads((workdir / "results.json").read_text())
    assert results["epochs_trained"] == 2
    assert results["dataset"]["users"] == 300
    assert len(results["devices"]) == 1


def test_evaluating_prints_what_training_found(trained):
    workdir, _ = trained
    before = digests(workdir)
    results = json.loads((workdir / "results.json").read_text())
    done = call("evaluate", f"--workdir={workdir}", "--split=valid")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    head, *rows = done.stdout.splitlines()
    assert head == f"bazaar, valid, step {results['step']}"
    printed = dict(row.split() for row in rows)
    assert printed == {k: f"{v:.6f}" for k, v in results["valid"].items()}
    assert digests(workdir) == before


def test_refuses_the_workdir_of_another_run(trained, bazaar):
    workdir, _ = trained
    before = digests(workdir)
    flags = train_flags(bazaar, workdir)
    said = refused(call("train", *flags, "--config.seed=3"))
    assert "seed: 0 -> 3" in said
    assert digests(workdir) == before


def test_refuses_a_dataset_that_is_not_there(tmp_path):
    said = refused(call("train", *train_flags("nowhere", tmp_path / "run")))
    assert "no such dataset directory" in said
    assert "launch/prepare.py" in said
    assert not (tmp_path / "run").exists()


def test_refuses_to_evaluate_nothing(tmp_path):
    said = refused(call("evaluate", f"--workdir={tmp_path}"))
    assert "There is no run here" in said
    assert str(tmp_path) in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "KeyError: 'get_config'"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config(): return optimizer", "NameError"),
        ("def get_config(): return 3", "AttributeError"),
    ],
)
@pytest.mark.parametrize("override", some([(), ("--config.seed=1",)], ()))
def test_refuses_config_files_that_give_none(tmp_path, text, message, override):
    file = tmp_path / "config.py"
    file.write_text(text + "\n")
    said = refused(
        call("train", f"--config={file}", f"--workdir={tmp_path}", *override)
    )
    assert "does not give a config" in said
    assert str(file) in said
    assert message in said


NAMED = "--workdir=unused"


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        # Config keys, by a slip of one letter, at any depth.
        (
            "train",
            (MF, NAMED, "--config.optimizer.learning_rat=1"),
            "did you mean 'optimizer.learning_rate'?",
        ),
        (
            "train",
            (MF, NAMED, "--config.optimiser.learning_rate=1"),
            "did you mean 'optimizer.learning_rate'?",
        ),
        pytest.param(
            "train",
            (MF, NAMED, "--config.sead=1"),
            "did you mean 'seed'?",
            marks=pytest.mark.slow,
        ),
        (
            "train",
            (MF, NAMED, "--config.encoder.layers=3"),
            "Unknown config key 'encoder.layers'",
        ),
        # Values of another type.
        (
            "train",
            (MF, NAMED, "--config.optimizer.learning_rate=fast"),
            "expected: a number\n  found:    fast",
        ),
        (
            "train",
            (MF, NAMED, "--config.train.epochs=1.5"),
            "expected: an integer\n  found:    1.5",
        ),
        pytest.param(
            "train",
            (MF, NAMED, "--config.encoder=3"),
            "is not a dict",
            marks=pytest.mark.slow,
        ),
        # Config files.
        (
            "train",
            ("--config=configs/baseline.py:lightgnc", NAMED),
            "did you mean 'lightgcn'?",
        ),
        (
            "train",
            ("--config=configs/baseline.py:mf,mci", NAMED),
            "makes two choices",
        ),
        (
            "train",
            ("--config=configs/basline.py", NAMED),
            "no such config file",
        ),
        # Flags.
        pytest.param(
            "train",
            (MF,),
            "--workdir must have a value",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "train",
            (NAMED,),
            "--config must have a value",
            marks=pytest.mark.slow,
        ),
        ("train", (MF, NAMED, "--wokdir=x"), "flag 'wokdir'"),
        pytest.param(
            "evaluate",
            (),
            "--workdir must have a value",
            marks=pytest.mark.slow,
        ),
        ("evaluate", (NAMED, "--split=tset"), "<valid|test>"),
        ("benchmark", ("--epochs=many",), "--epochs=many"),
    ],
)
def test_refuses_wrong_flags(command, flags, message):
    assert message in refused(call(command, *flags))
    assert not (ROOT / "unused").exists()


def test_refuses_to_time_a_catalogue_of_unknown_size():
    said = refused(call("benchmark", "--size=babby"))
    assert "did you mean 'baby'?" in said


@pytest.mark.slow
def test_the_benchmark_prints_its_table(tmp_path):
    output = tmp_path / "timings.json"
    done = call(
        "benchmark",
        "--size=demo",
        "--experiment=configs/baseline.py:mf",
        "--epochs=2",
        f"--output={output}",
        f"--data={tmp_path / 'demo'}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "catalog.json").exists()
    (row,) = json.loads(output.read_text())["rows"].values()
    for name in (
        "examples_per_second",
        "seconds_per_epoch",
        "evaluation_seconds",
        "compile_seconds",
        "peak_memory_mib",
    ):
        assert row[name] > 0
    assert "baseline:mf" in done.stdout


@pytest.mark.parametrize("command", ["train", "evaluate", "benchmark"])
def test_help_tells_the_flags(command):
    done = call(command, "--help")
    said = done.stdout + done.stderr
    assert f"python launch/{command}.py" in said
    assert "Traceback" not in said
