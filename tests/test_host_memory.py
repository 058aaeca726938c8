"""What a process holds falls with the number of processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from neggen_jax.catalog import Catalog, Features, Interactions
from neggen_jax.data import store

ROOT = pathlib.Path(__file__).parents[1]
USERS, ITEMS, EACH, WIDTH = 100_000, 20_000, 20, 256
DEVICES = 8

# Composes a run, forms batches, and tells by how many bytes it grew: at most,
# and at the end without what is mapped from disk.
PROGRAM = """
import json, sys
import jax
from neggen_jax import config as configs, hosts
from neggen_jax.run import Run

address, count, index, data, pipeline = sys.argv[1:]
hosts.start(address if int(count) > 1 else "", int(count), int(index))
config = configs.load("configs/gdnsm.py:lightgcn")
config.data.update(path=data, pipeline=pipeline)
config.mesh.update(tables="all", exchange="ring")
config.train.batch_size = 1024

def size(name):
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return 1024 * int(lines[name].split()[0])

if pipeline == "tf.data":
    import tensorflow
jax.block_until_ready(jax.jit(lambda x: x + 1)(1))
hosts.lead("begin", lambda: None)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # The peak begins anew.
before = {name: size(name) for name in ("VmRSS", "RssAnon")}
run = Run.make(config)
feed = run.batches(0)
for _ in range(2):
    jax.block_until_ready(next(feed))
print(json.dumps({
    "peak": size("VmHWM") - before["VmRSS"],
    "held": size("RssAnon") - before["RssAnon"],
    "parts": run.stream.parts,
}))
hosts.lead("end", lambda: None)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A dataset directory of some hundred MiB in memory."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, ITEMS, USERS)
    step = rng.integers(1, ITEMS // (EACH + 2), USERS)
    walk = start[:, None] + step[:, None] * np.arange(EACH + 2)
    items = (walk % ITEMS).astype(np.int32)
    users = np.arange(USERS, dtype=np.int32)
    splits = {
        "train": Interactions(
            np.repeat(users, EACH), np.sort(items[:, :EACH], axis=1).ravel()
        ),
        "valid": Interactions(users[::50], items[::50, EACH]),
        "test": Interactions(users[::50], items[::50, EACH + 1]),
    }
    values = rng.standard_normal((ITEMS, WIDTH), dtype=np.float32)
    text = Features(values, np.ones(ITEMS, np.bool_))
    catalog = Catalog("wide", USERS, ITEMS, splits, {"text": text})
    path = tmp_path_factory.mktemp("wide") / "data"
    store.save(catalog.validate(), path, source={})
    return path


def told(data, processes, pipeline="numpy"):
    """What each of several processes says at its end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    devices = DEVICES // processes
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, address),
                *(str(processes), str(index), str(data), pipeline),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    said = [process.communicate(timeout=240) for process in running]
    for process, (_, complaint) in zip(running, said, strict=True):
        assert process.returncode == 0, complaint
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.parametrize(
    "pipeline", ["numpy", pytest.param("tf.data", marks=pytest.mark.slow)]
)
def test_two_processes_hold_half_each(wide, pipeline):
    """Of interactions, graph, positives, features; and of parameters."""
    (alone,) = told(wide, 1, pipeline)
    both = told(wide, 2, pipeline)
    assert {x["parts"] for x in (alone, *both)} == {16}
    # Something is everybody's: compiled programs, the popularity of items,
    # blocks of what is read; in the second case TensorFlow.
    assert max(x["held"] for x in both) < 0.75 * alone["held"]
    # Process 0 also maps all of it once, to see whether it was changed.
    assert both[1]["peak"] < 0.75 * alone["peak"]
