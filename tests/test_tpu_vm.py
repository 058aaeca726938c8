"""`launch/tpu_vm.sh`: what it would run, and what runs on the workers."""

import os
import pathlib
import shlex
import subprocess
import sys
import tarfile

import pytest
from launching import CONFIG, PLACE, ROOT, TRAINER, program, run, until

# Two workers, each a home directory; a copy and a command go to both.
GCLOUD = """#!/usr/bin/env bash
set -eu
case $4 in
  scp) for home in "$WORKERS"/[01]; do cp "$5" "$home/${6#*:}"; done ;;
  ssh)
    for flag; do case $flag in --command=*) line=${flag#*=} ;; esac; done
    for home in "$WORKERS"/[01]; do
      (cd "$home" && HOME=$home bash -c "$line") & all+=("$!")
    done
    status=0
    for one in "${all[@]}"; do wait "$one" || status=$?; done
    exit "$status" ;;
  *)
    # Each question takes the next of the states.
    echo "$4" >> "$WORKERS/calls"
    if [[ $4 == describe ]]; then
      head -n 1 "$WORKERS/states"
      sed -i 1d "$WORKERS/states"
    fi ;;
esac
"""


def test_dry_runs_of_a_tpu(offline):
    def lines(*words):
        said = run("tpu_vm.sh", *words, *PLACE, "--dry-run", env=offline)
        return [shlex.split(line, comments=True) for line in said.splitlines()]

    ask, _, delete, _, create = lines(
        "create", "--type=v5litepod-16", "--version=image", "--spot"
    )
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    assert ask[:6] == [*queued, "describe", "pod"]
    assert delete == [
        *queued,
        "delete",
        "pod",
        "--zone=there",
        "--force",
        "--quiet",
    ]
    assert create == [
        *queued,
        *("create", "pod", "--node-id=pod", "--zone=there"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=image"),
        "--spot",
    ]
    every = [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        "pod",
        "--zone=there",
    ]
    every += ["--worker=all"]
    words = CONFIG, "--workdir=gs://bucket/run", "--config.data.name=a b"
    flags = ["--project=ours", "--ssh=--internal-ip", "--logs=here"]
    folder, train = [
        shlex.split(line)
        for line in run(
            *("tpu_vm.sh", "run", *PLACE, *flags, "--dry-run", "--", *words),
            env=offline,
        ).splitlines()
    ]
    assert folder == ["mkdir", "-p", "here"]
    assert train[:7] == every[:7]
    assert train[7:10] == ["--project=ours", "--worker=all", "--internal-ip"]
    assert train[11:] == ["--output-directory=here"]
    there = shlex.split(train[10].removeprefix("--command="))
    worker = ["bash", "neggen/current/launch/tpu_worker.sh"]
    assert there == [*worker, "run", *words]
    for action in ("stop", "status"):
        assert lines(action) == [
            [*every, f"--command={shlex.join(worker)} {action}"]
        ]


@pytest.fixture
def pod(tmp_path):
    """Two workers of a TPU VM, and a tarball of code with another trainer."""
    code = tmp_path / "code"
    for name in ("tpu_worker.sh", "lib.sh"):
        program(code / "launch" / name, (ROOT / "launch" / name).read_text())
    program(code / "launch/train.py", TRAINER)
    for extra in ("", "-gcs", "-tpu"):
        (code / f"requirements{extra}.txt").write_text("")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(code, ".")
    for number in range(2):
        (tmp_path / f"workers/{number}").mkdir(parents=True)
    program(tmp_path / "bin/gcloud", GCLOUD)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "WORKERS": str(tmp_path / "workers"),
    }
    yield tmp_path, environment
    if (tmp_path / "workers/0/neggen/current").exists():
        run("tpu_vm.sh", "stop", *PLACE, env=environment)


def test_a_tpu_is_set_up_trains_stops_and_goes_on(pod):
    where, environment = pod
    # An environment that the image brings.
    venv = f"--venv={pathlib.Path(sys.executable).parents[1]}"
    for _ in range(2):
        said = run(
            *("tpu_vm.sh", "setup", *PLACE, venv),
            f"--tarball={where}/code.tar.gz",
            f"--before=echo 'first of all' >> {where}/before",
            env=environment,
        )
        assert said.count("is set up") == 2
    assert (where / "before").read_text() == "first of all\n" * 4
    workdir = where / "run"
    words = ["run", *PLACE, "--", f"--workdir={workdir}", "--name=a b"]

    def begin(*words):
        return subprocess.Popen(
            ["launch/tpu_vm.sh", *words],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def logged(text):
        logs = where.glob("workers/*/neggen/logs/latest")
        return sum(text in log.read_text() for log in logs) == 2

    first = begin(*words)
    until(lambda: logged("begun"))
    # Again, the connection lost say: it joins those that run.
    second = begin(*words)
    assert "runs" in run("tpu_vm.sh", "status", *PLACE, env=environment)
    other = [*words[:4], f"--workdir={where}/other"]
    said = run("tpu_vm.sh", *other, env=environment, status=2)
    assert "another run goes on here" in said
    run("tpu_vm.sh", "stop", *PLACE, env=environment)
    for process in (first, second):
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0, said
        assert said.count("arguments --coordinator=auto") == 2
        assert "--name=a b" in said
        assert "told to stop" in said
    assert "nothing runs" in run("tpu_vm.sh", "stop", *PLACE, env=environment)

    (workdir / "go").write_text("0")
    said = run("tpu_vm.sh", *words, env=environment)
    assert said.count("begun") == 2
    assert (workdir / "results.json").exists()
    said = run("tpu_vm.sh", "status", *PLACE, env=environment)
    assert said.count("ended with status 0") == 2
    # What the trainers end with is what it ends with.
    (workdir / "go").write_text("3")
    run("tpu_vm.sh", *words, env=environment, status=3)


@pytest.mark.parametrize(
    ("states", "calls", "status"),
    [
        ("ACTIVE ACTIVE", "describe describe", 0),
        ("- ACTIVE", "describe create describe", 0),
        ("SUSPENDED ACTIVE", "describe delete create describe", 0),
        ("PROVISIONING FAILED", "describe describe", 1),
    ],
)
def test_what_was_preempted_is_created_again(states, calls, status, pod):
    where, environment = pod
    lines = "\n".join(states.split()).replace("-", "")
    (where / "workers/states").write_text(f"{lines}\n")
    flags = "--type=v5litepod-16", "--version=image", "--spot"
    said = run(
        "tpu_vm.sh", "create", *PLACE, *flags, env=environment, status=status
    )
    assert (where / "workers/calls").read_text().split() == calls.split()
    assert ("not granted: FAILED" in said) == bool(status)


def test_a_worker_mounts_the_buckets_of_data(pod):
    where, environment = pod
    program(
        where / "bin/gcsfuse",
        f"#!/bin/sh\necho gcsfuse $* >> {where}/mounts\n",
    )
    (where / "go").write_text("")
    venv = f"--venv={pathlib.Path(sys.executable).parents[1]}"
    run(
        *("tpu_vm.sh", "setup", *PLACE, venv, f"--tarball={where}/code.tar.gz"),
        env=environment,
    )
    for number in range(2):
        # Where this trainer, which knows no buckets, takes it to be.
        directory = where / f"workers/{number}/neggen/current/gs:/mine/run"
        directory.mkdir(parents=True)
        (directory / "go").write_text("")
    said = run(
        *("tpu_vm.sh", "run", *PLACE, "--"),
        *("--workdir=gs://mine/run", "--config.data.path=gs://ours/a"),
        env=environment,
    )
    homes = [where / f"workers/{number}/neggen/gs" for number in range(2)]
    for home in homes:
        assert "--workdir=gs://mine/run" in said
        assert f"--config.data.path={home}/ours/a" in said
    mounts = (where / "mounts").read_text().splitlines()
    assert sorted(line.split()[-2:] for line in mounts) == sorted(
        ["ours", f"{home}/ours"] for home in homes
    )
