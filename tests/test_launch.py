"""The launch scripts: what they refuse, and what they would run."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from launching import CONFIG, PLACE, ROOT, TRAINER, program, run

SCRIPTS = sorted(
    path.name
    for path in (ROOT / "launch").glob("*.*")
    if path.suffix in (".sh", ".sbatch") and path.name != "lib.sh"
)


def test_shellcheck_has_nothing_to_say():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    found = beside if beside.exists() else shutil.which("shellcheck")
    if not found:
        pytest.skip("shellcheck is not installed; requirements-dev.txt has it")
    paths = ["launch/lib.sh", *(f"launch/{name}" for name in SCRIPTS)]
    done = subprocess.run(
        [found, "--external-sources", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(name):
    text = (ROOT / "launch" / name).read_text()
    assert "\nset -euo pipefail\n" in text
    said = run(name, "--help")
    assert said.startswith(text.splitlines()[1].removeprefix("# "))
    assert "SBATCH" not in said
    assert "set -euo" not in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["babysit.sh", "--workdir=x"], "the command is missing"),
        (["babysit.sh", "--", "true"], "--workdir is missing"),
        (["babysit.sh", "--tries=0", "--workdir=x", "--", "true"], "--tries"),
        (["babysit.sh", "--trys=1"], "unknown flag --trys=1"),
        (["local_multiprocess.sh", "--processes=0"], "--processes"),
        (["slurm.sbatch", "--dry-run"], "--workdir is missing"),
        (["slurm.sbatch", "--workdir=x"], "this is no job"),
        (["tpu_vm.sh", "fly", *PLACE], "unknown action fly"),
        (["tpu_vm.sh", "stop", "--zone=there"], "--name is missing"),
        (["tpu_vm.sh", "stop", "--name=pod"], "--zone is missing"),
        (["tpu_vm.sh", "create", *PLACE], "--type is missing"),
        (["tpu_vm.sh", "run", *PLACE, "--", CONFIG], "--workdir is missing"),
        (["tpu_vm.sh", "setup", *PLACE, "--commit=nil"], "no --commit=nil"),
        (["gke.sh", "run", "--name=pod"], "--image is missing"),
        (["gke.sh", "stop"], "--name is missing"),
    ],
)
def test_what_is_missing_is_named(words, named, offline):
    said = run(*words, env=offline, status=2)
    assert said.startswith("error: ")
    assert named in said


def test_the_manifest_of_a_slice(offline):
    words = [
        CONFIG,
        '--config.data.name=a "b" \\ c & d',
        "--config.data.path=gs://bucket/data",
        "--workdir=gs://bucket/run",
    ]
    flags = ["--name=neggen", "--image=registry/image:1", "--spot"]
    flags += ["--accelerator=tpu-v5-lite-podslice", "--topology=4x8"]
    said = run("gke.sh", "run", *flags, "--dry-run", "--", *words, env=offline)
    assert said.startswith("kubectl apply --filename=-\n")
    jobset = yaml.safe_load(said.split("\n", 1)[1])
    assert jobset["kind"] == "JobSet"
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    # 32 chips, 4 a host.
    assert (job["parallelism"], job["completions"]) == (8, 8)
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] + container["args"] == [
        *("launch/babysit.sh", "--once", "--workdir=/gs/bucket/run", "--"),
        *("python", "launch/train.py", "--coordinator=auto", *words[:2]),
        "--config.data.path=/gs/bucket/data",
        "--workdir=/gs/bucket/run",
    ]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["mountPath"] == "/gs/bucket"
    attributes = volume["csi"]["volumeAttributes"]
    assert attributes["bucketName"] == "bucket"
    assert " " not in attributes["mountOptions"]

    def refused(*words, **changed):
        given = dict(x.lstrip("-").split("=", 1) for x in flags if "=" in x)
        again = [f"--{k}={v}" for k, v in {**given, **changed}.items()]
        again += ["--dry-run", "--", *words]
        return run("gke.sh", "run", *again, env=offline, status=2)

    assert "mine and yours" in refused(
        "--workdir=gs://yours/a", "--x=gs://mine/"
    )
    assert "not on gs://" in refused("--workdir=/tmp/run")
    assert "no whole number of hosts" in refused(*words, topology="3x3")
    assert "is not like 4x4" in refused(*words, topology="16")


def test_other_actions_of_gke(offline):
    label = "--selector=jobset.sigs.k8s.io/jobset-name=neggen"
    flags = "--name=neggen", "--namespace=ours", "--dry-run"
    kubectl = "kubectl --namespace=ours"
    assert run("gke.sh", "stop", *flags, env=offline).splitlines() == [
        f"{kubectl} delete jobset neggen"
    ]
    assert run("gke.sh", "status", *flags, env=offline).splitlines() == [
        f"{kubectl} get jobset neggen",
        f"{kubectl} get pods {label}",
    ]
    assert label in run("gke.sh", "logs", *flags, env=offline)


@pytest.fixture
def slurm(tmp_path):
    """A job of one node with one GPU, and what it is submitted from."""
    shutil.copytree(ROOT / "launch", tmp_path / "repository/launch")
    program(tmp_path / "repository/launch/train.py", TRAINER)
    # srun runs what follows its flags; the queue has the job as running.
    program(
        tmp_path / "bin/srun",
        '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
    )
    program(
        tmp_path / "bin/scontrol", f"#!/bin/sh\necho $* >> {tmp_path}/queue\n"
    )
    program(tmp_path / "bin/squeue", "#!/bin/sh\necho ${STATE:-RUNNING}\n")
    # Slurm runs a copy.
    script = tmp_path / "spool/slurm_script"
    program(script, (ROOT / "launch/slurm.sbatch").read_text())
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "12",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path / "repository"),
    }

    def submit(*flags, signals=(), **variables):
        process = subprocess.Popen(
            [script, f"--workdir={tmp_path}/run", *flags],
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if signals:
            for line in process.stdout:
                if "begun" in line:
                    break
            for number in signals:
                # All steps are told, and on some machines the script too.
                os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=20)
        queue = tmp_path / "queue"
        queued = queue.read_text() if queue.exists() else ""
        queue.unlink(missing_ok=True)
        return process.returncode, said, queued

    return tmp_path, submit


def test_a_slurm_job_goes_back_into_the_queue_until_it_is_done(slurm):
    where, submit = slurm
    status, said, queued = submit(signals=[signal.SIGTERM])
    assert (status, queued) == (0, "requeue 12\n"), said
    assert (where / "run/checkpoints/7").exists()
    # Cancelled by a person: it is not to come back.
    flags = {"signals": [signal.SIGTERM], "STATE": "COMPLETING"}
    status, said, queued = submit("--step=8", **flags)
    assert (status, queued) == (1, "")
    assert "the job is COMPLETING" in said
    # Told to stop before it got any further: it would come back for ever.
    status, said, queued = submit("--step=9.tmp", signals=[signal.SIGTERM])
    assert (status, queued) == (1, "")
    assert "no new checkpoint was left beside step 8" in said
    (where / "run/go").write_text("0")
    status, said, queued = submit()
    assert (status, queued) == (0, ""), said
    assert (where / "run/results.json").exists()


def test_a_slurm_job_that_fails_is_not_given_back(slurm):
    where, submit = slurm
    (where / "run/go").mkdir(parents=True)
    status, said, queued = submit()
    assert (status, queued) == (1, ""), said
    status, said, _ = submit(SLURM_GPUS_ON_NODE="8")
    assert status == 2
    assert "--ntasks-per-node=8" in said


def test_checkpoints_in_a_bucket_count_when_complete(tmp_path):
    program(
        tmp_path / "gcloud",
        """#!/usr/bin/env bash
        cd "$ROOT" && for file in ${3#gs://}; do
          [[ ! -e $file ]] || echo "gs://$file"
        done""",
    )
    for name in ("8/commit_success.txt", "32/commit_success.txt", "64/meta"):
        path = tmp_path / "bucket/run/checkpoints" / name
        path.parent.mkdir(parents=True)
        path.write_text("")
    said = subprocess.run(
        ["bash", "-c", "source launch/lib.sh; saved_steps gs://bucket/run"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert sorted(said.stdout.split()) == ["32", "8"], said


def test_the_local_launcher_hands_signals_on(tmp_path):
    line = "trap 'echo told; exit 0' TERM; echo begun; "
    line += "while :; do sleep 0.05; done"
    process = subprocess.Popen(
        ["launch/local_multiprocess.sh", "--port=7", "--", "bash", "-c", line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    begun = 0
    while begun < 2:
        begun += "begun" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert said.splitlines() == ["told"] * 2


def test_the_commands_of_the_guide_are_understood(offline, tmp_path):
    text = (ROOT / "launch/README.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    block = "\n".join(blocks)
    block = re.sub(r"(launch/(?:tpu_vm|gke)\.sh \w+)", r"\1 --dry-run", block)
    block = re.sub(r"(launch/local_\w+\.sh)", r"\1 --dry-run", block)
    block = re.sub(
        r"sbatch .*\n *launch/slurm.sbatch",
        "launch/slurm.sbatch --dry-run",
        block,
    )
    # What it keeps going only says what it would do, and so is not done.
    block = re.sub(r"(launch/babysit\.sh)", r"! \1 --once", block)
    names = {"ZONE": "z", "IMAGE": "i", "BUCKET": "b", "ACCOUNT": "a"}
    done = subprocess.run(
        ["bash", "-ec", block],
        cwd=ROOT,
        env={**os.environ, **offline, **names},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    for said in (
        "--coordinator=localhost:",
        "queued-resources create neggen",
        "tpu_worker.sh setup --python=python3.11",
        "--output-directory=logs",
        "queued-resources delete neggen",
        "srun --kill-on-bad-exit=1",
        "kubectl apply",
        'mountPath: "/gs/b"',
    ):
        assert said in done.stdout


def test_says_which_process_was_killed():
    said = run(
        "local_multiprocess.sh",
        *("--processes=2", "--devices=1", "--grace=0", "--", "bash", "-c"),
        "if [[ $* == *--process=1* ]]; then kill -9 $$; fi; exec sleep 60",
        "name",
        status=137,
    )
    assert "process 1 was ended by signal 9" in said
