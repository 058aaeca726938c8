"""Processes of which one fails, hangs, dies, or sees another disk.

Real ones, but with few lines to run; `test_processes.py` has those that
train.
"""

import shutil
import subprocess
import time

import pytest
from together import together

from neggen_jax import hosts
from neggen_jax.errors import InputError

# A process may be slow where it says so, and take long in many steps.
WATCHED = """
from neggen_jax.errors import InputError, reported
from neggen_jax.preemption import Stopped
hangs = words[0] == "hangs"
if hangs:
    hosts.PATIENCE = 2
with reported(), hosts.watch(Stopped):
    hosts.phase("reading", slow=True)
    time.sleep(3 * rank * hangs)
    assert not bool(hosts.anywhere(False))
    hosts.phase("counting")
    for _ in range(3):
        time.sleep(hangs)
        assert bool(hosts.anywhere(rank == 1))
        hosts.alive()
    for _ in range(3):
        hosts.lead("shares", lambda: time.sleep(hangs))
    print("still here", flush=True)
    if rank == 1:
        match words[0]:
            case "hangs":
                time.sleep(60)
            case "fails":
                raise InputError("The disk is full.", fix="make room")
            case "breaks":
                raise ZeroDivisionError("by nothing")
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
    bool(hosts.anywhere(False))
"""


def run(deed):
    patience = "10" if deed == "dies" else "60"
    return together(WATCHED, deed, NEGGEN_PATIENCE=patience)


def test_one_that_hangs_is_missed():
    done = run("hangs")
    for rank, (status, said) in enumerate(done):
        assert status == 2, said
        before, _, error = said.partition("error: ")
        assert "still here" in before
        assert "Not all processes came to: counting." in error
        assert "within 2 s" in error
        assert f"process {rank} is at: counting" in error
    # And where it hangs.
    assert 'File "<string>", line ' in done[1][1].partition("error: ")[2]


@pytest.mark.parametrize(
    "deed",
    [
        "fails",
        pytest.param("breaks", marks=pytest.mark.slow),
        pytest.param("dies", marks=pytest.mark.slow),
    ],
)
def test_if_one_fails_all_end(deed):
    (status, said), (failed, itself) = run(deed)
    assert "still here" in said
    if deed == "fails":
        assert status == failed == 2
        errors = [text.partition("error: ")[2] for text in (said, itself)]
        assert errors[0] == errors[1]
        assert errors[0].split("\n")[:2] == [
            "The disk is full.",
            "  fix:      make room",
        ]
    elif deed == "breaks":
        assert (status, failed) == (2, 1)
        assert "error: Process 1 failed in: counting." in said
        assert "ZeroDivisionError: by nothing" in said
        assert "Traceback" in itself
    else:
        # JAX ends it, after ten seconds without a heartbeat.
        assert status < 0
        assert "another task died" in said


ENDLESS = """
import atexit
from neggen_jax import command
from neggen_jax.errors import InputError
from neggen_jax.preemption import Stopped

def main(argv):
    # As JAX does, if one of its collectives is under way.
    atexit.register(time.sleep, 100)
    with hosts.watch(Stopped):
        if words[0] == "fails":
            raise InputError("The disk is full.", fix="make room")
        raise ZeroDivisionError("by nothing")

command.run(main)
"""


@pytest.mark.parametrize(
    ("deed", "status", "message"),
    [
        ("fails", 2, "error: The disk is full."),
        ("breaks", 1, "ZeroDivisionError: by nothing"),
    ],
)
def test_who_has_failed_waits_for_nothing(deed, status, message):
    begun = time.monotonic()
    for ended, said in together(ENDLESS, deed):
        assert ended == status, said
        assert said.count(message) == 1
    assert time.monotonic() - begun < 90


DIFFERENT = """
import pathlib, shutil, subprocess
import jax, numpy as np
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.partition import make_partition
from neggen_jax.preemption import Stopped
from neggen_jax.step import State

everywhere = make_partition(tables="all")
workdir = pathlib.Path(words[0])

def state(step):
    table = np.arange(32, dtype=np.float32).reshape(8, 4) * step
    items = everywhere.put(table, "item", "embed")
    return State(everywhere.put(np.int32(step)), {"items": items}, (), {}, None)

def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)

def save(checkpoints, step):
    checkpoints.save(state(step), {"best_step": 1})
    checkpoints.wait()

abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state(0),
)
with hosts.watch(Stopped):
    with Checkpoints(workdir, keep=9) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
        if rank == 1:
            shutil.copytree(workdir / "checkpoints", workdir / "older")
        save(checkpoints, 3)
    if rank == 1:
        mount("--bind", workdir / "older", workdir / "checkpoints")
    for _ in range(2):
        with Checkpoints(workdir) as checkpoints:
            latest = checkpoints.latest
            found, meta = checkpoints.restore(abstract)
        step = int(found.step)
        print("latest", latest, "found", step, flush=True)
        for part in found.params["items"].addressable_shards:
            (want,) = [
                x.data for x in state(step).params["items"].addressable_shards
                if x.index == part.index
            ]
            np.testing.assert_array_equal(part.data, want)
        if rank == 1 and step == 2:
            mine = workdir / "checkpoints/2/state"
            assert any(mine.iterdir())
            mount("-t", "tmpfs", "tmpfs", mine)
"""


def test_all_read_the_same_checkpoint(tmp_path):
    """Process 1 does not see the newest, nor the arrays of the second."""
    apart = ("unshare", "--mount", "--propagation=private")
    if not shutil.which("unshare") or (
        subprocess.run([*apart, "true"], capture_output=True).returncode
    ):
        pytest.skip("only root can give a process a disk of its own")
    done = together(DIFFERENT, tmp_path, within=((), apart))
    for status, said in done:
        assert status == 0, said
        assert "latest 3 found 2" in said
        assert "latest 2 found 1" in said
    assert done[0][1].count("warning: ") == 2
    assert "step 3 cannot be read (another process cannot" in done[0][1]
    assert "warning" not in done[1][1]
    aside = sorted(path.name for path in (tmp_path / "damaged").iterdir())
    assert aside == ["2", "3"]


def test_processes_that_have_no_address_are_refused():
    for count, index in ((2, 0), (2, 1), (1, 1)):
        with pytest.raises(InputError, match="where to find each other"):
            hosts.start("", count, index)
