"""Workdirs in a bucket: the commands against an HTTP server that holds it.

The trainer writes by gcsfs and TensorStore, as it does to Google's; only the
server (`gcs_server.py`) is another. Everything that a run leaves there is
compared, bit for bit, with the same run in a directory.
"""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from gcs_server import GcsServer

from neggen_jax import storage
from neggen_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
# Of 300 users' 2,037 interactions, in batches of 64.
STEPS = 32
EPOCHS = 3
URL = "gs://bucket/runs/a"


@pytest.fixture
def server():
    # Pages so short that every listing takes several.
    with GcsServer("bucket", page=3) as server:
        yield server


def start(*words, server=None, program=(sys.executable,)):
    """Starts a command on one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [*program, *map(str, words)],
        cwd=ROOT,
        env=environment | (server.environment if server else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, status=0):
    """Waits for it; returns what it said."""
    out, said = process.communicate(timeout=300)
    assert process.returncode == status, out + said
    return out + said


def training(data, workdir):
    """The command that trains, or goes on."""
    return [
        "launch/train.py",
        "--config=configs/baseline.py:lightgcn",
        "--config.data.pipeline=numpy",
        "--config.encoder.dim=16",
        "--config.train.batch_size=64",
        "--config.train.steps_per_dispatch=4",
        "--config.train.checkpoint_seconds=0",
        "--config.optimizer.learning_rate=0.02",
        f"--config.train.epochs={EPOCHS}",
        f"--config.data.path={data}",
        f"--workdir={workdir}",
    ]


@pytest.fixture(scope="module")
def reference(bazaar, tmp_path_factory):
    """The same run in a directory."""
    workdir = tmp_path_factory.mktemp("reference") / "a"
    finish(start(*training(bazaar, workdir)))
    return workdir


def results(text):
    """What does not depend on how long it took."""
    return {k: v for k, v in json.loads(text).items() if k != "timing"}


def committed(server):
    """Steps whose checkpoints are complete."""
    found = [
        re.fullmatch(r"runs/a/checkpoints/(\d+)/commit_success.txt", name)
        for name in server.names("bucket")
    ]
    return sorted(int(match[1]) for match in found if match)


def contents(server):
    return {name: data for name, (data, _) in server.objects["bucket"].items()}


def check_same(server, reference):
    """Compares what two runs have left."""
    for name in ("run.json", "results.json"):
        there = server.text("bucket", f"runs/a/{name}")
        assert results(there) == results((reference / name).read_text())
    log = server.text("bucket", "runs/a/metrics.jsonl")
    assert log == (reference / "metrics.jsonl").read_text()
    for split in ("valid", "test"):
        name = f"per_user_{split}.npz"
        data, _ = server.objects["bucket"][f"runs/a/{name}"]
        with np.load(io.BytesIO(data)) as a, np.load(reference / name) as b:
            assert sorted(a) == sorted(b)
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
    plots = {path.name for path in (reference / "plots").iterdir()}
    there = f"runs/a/plots/{min(plots)}"
    names = server.names("bucket")
    assert {f"runs/a/plots/{name}" for name in plots} <= set(names)
    assert server.objects["bucket"][there][0].startswith(b"\x89PNG")
    assert committed(server) == sorted(
        int(path.name) for path in (reference / "checkpoints").iterdir()
    )
    # Nothing half written, and nothing on this machine's disk instead.
    assert not [name for name in names if "partial" in name or "tmp" in name]
    assert not (ROOT / "gs:").exists()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_directory(server, bazaar, reference):
    """Killed while a checkpoint is written, resumed, evaluated, compared."""
    server.hold(rf"checkpoints/{2 * STEPS}/commit_success")
    process = start(*training(bazaar, URL), server=server)
    server.wait(100)
    process.kill()
    process.communicate()
    server.drop()
    assert committed(server) == [STEPS]
    # The log knows no less than the checkpoints.
    lines = server.text("bucket", "runs/a/metrics.jsonl").splitlines()
    assert json.loads(lines[-1])["step"] >= STEPS
    finish(start(*training(bazaar, URL), server=server))
    check_same(server, reference)
    before = contents(server)
    events = [x for x in sorted(before) if x.startswith("runs/a/tensorboard/")]
    # The last that was said is in it too; @ is not for names there.
    assert before[events[-1]].count(b"valid/recall_20") == EPOCHS - 1

    said = finish(
        start("launch/evaluate.py", f"--workdir={URL}", server=server)
    )
    test = results(server.text("bucket", "runs/a/results.json"))["test"]
    told = dict(re.findall(r"^  (\S+) +(\S+)$", said, re.MULTILINE))
    # Six digits are printed.
    assert float(told["recall@20"]) == pytest.approx(
        test["recall@20"], abs=6e-7
    )
    words = "--runs=here=gs://bucket/runs/*", f"--runs=there={reference}"
    said = finish(start("launch/compare.py", *words, server=server))
    rows = [x.split("|")[1:4] for x in said.splitlines() if "| 1 |" in x]
    assert [row[0].strip() for row in rows] == ["here", "there"]
    assert rows[0][1:] == rows[1][1:]
    # Who only reads changes nothing.
    assert contents(server) == before


@pytest.mark.slow
def test_told_to_stop(server, bazaar, reference):
    server.hold(rf"checkpoints/{STEPS}/state/manifest")
    process = start(*training(bazaar, URL), server=server)
    server.wait(100)
    process.send_signal(signal.SIGTERM)
    # The writer tries again after it was refused.
    server.drop()
    assert "told to stop" in finish(process)
    assert committed(server)
    assert not [x for x in server.names("bucket") if "results.json" in x]
    finish(start(*training(bazaar, URL), server=server))
    check_same(server, reference)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(server, bazaar, reference):
    finish(start(*training(bazaar, URL), server=server))
    check_same(server, reference)
    objects = server.objects["bucket"]
    last = f"runs/a/checkpoints/{EPOCHS * STEPS}/"
    broken = [name for name in objects if name.startswith(last + "state/")]
    for name in broken:
        data, generation = objects[name]
        objects[name] = data[: len(data) // 2], generation
    del objects["runs/a/results.json"]
    said = finish(start(*training(bazaar, URL), server=server))
    assert f"it now stands in {URL}/damaged/{EPOCHS * STEPS}" in said
    aside = last.replace("checkpoints", "damaged")
    for name in broken:
        assert name.replace(last, aside) in objects
    check_same(server, reference)


@pytest.mark.slow
def test_several_processes(server, bazaar, tmp_path):
    def command(workdir):
        launcher = (
            "launch/local_multiprocess.sh",
            "--processes=2",
            "--devices=2",
        )
        words = training(bazaar, workdir)
        mesh = "--config.mesh.model=2", "--config.mesh.tables=all"
        return ["bash", *launcher, "--", sys.executable, *words, *mesh]

    finish(start(*command(tmp_path / "a"), program=()))
    finish(start(*command(URL), server=server, program=()))
    check_same(server, tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("denied", "problem"),
    [
        ("run.json", "The workdir cannot be written"),
        ("metrics", "The workdir cannot be written"),
        ("checkpoints/.*/meta", "A checkpoint could not be written"),
        ("checkpoints/.*/d/", "A checkpoint could not be written"),
    ],
)
def test_what_may_not_be_written(server, bazaar, denied, problem):
    server.denied = re.compile(denied)
    said = finish(start(*training(bazaar, URL), server=server), status=2)
    assert f"error: {problem}" in said
    assert "see to the bucket" in said
    assert "Traceback" not in said


def test_what_cannot_be_a_workdir():
    for given, problem in (
        ("s3://bucket/a", "not known"),
        ("gs://bucket", "no directory"),
        ("gs:///a", "no directory"),
    ):
        with pytest.raises(InputError, match=problem):
            storage.path(given)
    with pytest.raises(InputError, match="mount the bucket") as caught:
        storage.local("gs://bucket/data", "config.data.path")
    assert caught.value.where == "config.data.path=gs://bucket/data"
    storage.local("/gs/bucket/data", "config.data.path")


def test_a_bucket_that_is_not_there(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="cannot be reached") as caught:
        storage.path("gs://none/a")
    assert caught.value.where == "gs://none"
    # One with nothing in it is there.
    assert not storage.path("gs://bucket/a").exists()
    # Others write there too: a listing is never that of before.
    assert not list(storage.path("gs://bucket/a").parent.iterdir())
    server.put("bucket", "a/b", b"", {})
    assert [x.name for x in storage.path("gs://bucket/a").iterdir()] == ["b"]
    server.put("bucket", "a/c", b"", {})
    names = {x.name for x in storage.path("gs://bucket/a").iterdir()}
    assert names == {"b", "c"}
