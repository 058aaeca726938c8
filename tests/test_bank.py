"""The bank of negatives: what it keeps, where, and over an interruption."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_resume
from conftest import make_catalog
from generated import start, with_generated
from hypothesis import given, settings
from hypothesis import strategies as st
from training import numbers, told

from neggen_jax import train
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.negatives.bank import Bank
from neggen_jax.preemption import Stopped

ROWS, COUNT, DIM, BATCH = 6, 3, 2, 9
TABLE = Bank(ROWS, COUNT, DIM)


@jax.jit
def write(variables, users, drawn, valid):
    """The tables after a batch has been written."""
    return TABLE.apply(
        variables, users, drawn, valid, method="write", mutable=["bank"]
    )[1]


@jax.jit
def read(variables, users):
    return TABLE.apply(variables, users, method="read")


@jax.jit
def empty():
    return TABLE.init({}, jnp.zeros(1, jnp.int32), method="read")


def random_vectors(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(BATCH, COUNT, DIM)).astype(np.float32)


users_of_a_batch = st.lists(
    st.integers(0, ROWS - 1), min_size=BATCH, max_size=BATCH
)


@settings(max_examples=60)
@given(
    batches=st.lists(
        st.tuples(users_of_a_batch, st.integers(0, COUNT)),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 9),
)
def test_it_is_a_dictionary_of_the_latest(batches, seed):
    """Of those that occur twice the first counts; 0 replaces nothing."""
    variables = nn.unbox(empty())
    known = {}
    for number, (users, valid) in enumerate(batches):
        drawn = random_vectors((seed, number))
        users = np.asarray(users, np.int32)
        variables = write(variables, users, drawn, jnp.int32(valid))
        if valid:
            latest = {}
            for user, vectors in zip(users, drawn, strict=True):
                latest.setdefault(user, (vectors, valid))
            known |= latest
    nothing = np.zeros((COUNT, DIM)), 0
    asked = np.arange(BATCH) % ROWS
    vectors, valid = read(variables, asked)
    for place, user in enumerate(asked):
        want, count = known.get(user, nothing)
        np.testing.assert_array_equal(vectors[place], want)
        assert valid[place] == count


def test_it_is_the_same_over_any_mesh(partition):
    """Cut into shards by user, with pairs cut over the other axis."""
    rows = partition.padded(61, "user")
    table = Bank(rows, COUNT, DIM)
    rng = np.random.default_rng(0)
    boxed = jax.eval_shape(
        lambda: table.init({}, jnp.zeros(1, jnp.int32), method="read")
    )
    shardings = partition.tree_shardings(boxed)
    variables = jax.tree.map(
        lambda x, s: jax.device_put(jnp.zeros(x.shape, x.dtype), s),
        nn.unbox(boxed),
        shardings,
    )

    @jax.jit
    def turn(variables, users, drawn, valid):
        variables = table.apply(
            variables, users, drawn, valid, method="write", mutable=["bank"]
        )[1]
        seen = table.apply(variables, users[::-1], method="read")
        return jax.lax.with_sharding_constraint(variables, shardings), seen

    want, counts = np.zeros((61, COUNT, DIM)), np.zeros(61, int)
    for valid in (2, 0, 3):
        users = rng.integers(0, 61, 64, np.int32)
        drawn = rng.normal(size=(64, COUNT, DIM)).astype(np.float32)
        variables, seen = turn(
            variables,
            partition.put(users, "batch"),
            partition.put(drawn, "batch"),
            partition.put(np.int32(valid)),
        )
        if valid:
            # Backwards, so that the first is written last.
            want[users[::-1]], counts[users] = drawn[::-1], valid
        np.testing.assert_array_equal(seen[0], want[users[::-1]])
        np.testing.assert_array_equal(seen[1], counts[users[::-1]])
    got = variables["bank"]
    np.testing.assert_array_equal(got["vectors"][:61], want)
    np.testing.assert_array_equal(got["valid"][:61], counts)
    assert not got["vectors"][61:].any()
    wanted = partition.sharding("user")
    assert got["vectors"].sharding.is_equivalent_to(wanted, 3)


# Interrupted


def restored(workdir, config, catalog, mesh=(8, 1)):
    """The latest checkpoint of a run, on some mesh."""
    state = start(config.copy_and_resolve_references(), mesh, catalog).state
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        state,
    )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(abstract)[0]


def log(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


LADDER = {"samples": 1, "start": 1.0, "unit": "epochs"}


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(
            {**LADDER, "levels": "joint", "bank": 3}, marks=pytest.mark.slow
        ),
        pytest.param({**LADDER, "bank": 2}, marks=pytest.mark.slow),
        pytest.param(LADDER, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_as_if_nothing_had_been(part, tmp_path):
    """Bit for bit, while negatives are let in; then on another mesh."""
    catalog = make_catalog()
    config = with_generated("mf", part, train__epochs=2)
    train.train_and_evaluate(config, tmp_path / "whole", catalog)
    # In the middle of the second epoch, which has begun to let some in.
    with told(10), pytest.raises(Stopped) as stopped:
        train.train_and_evaluate(config, tmp_path / "parts", catalog)
    assert 9 < stopped.value.step < 18
    train.train_and_evaluate(config, tmp_path / "parts", catalog)
    lines = log(tmp_path / "whole")
    assert lines == log(tmp_path / "parts")
    # What was not measured, because nothing was let in yet, is not logged.
    for line in lines:
        assert all(np.isfinite(value) for value in line.values())
        if "train/loss" in line:
            measured = any("generated/hardness/" in name for name in line)
            assert measured == (line["epoch"] > 1)
            assert (line["train/generated"] > 0) == measured
    whole, parts = (
        numbers(restored(tmp_path / name, config, catalog))
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert any("bank" in name for name in whole) == ("bank" in part)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
        assert value.any(), name
    # Tables of 61 users are 64 rows long where eight devices share them.
    other = numbers(restored(tmp_path / "whole", config, catalog, (1, 8)))
    for name, value in other.items():
        rows = np.atleast_1d(whole[name])
        np.testing.assert_array_equal(np.atleast_1d(value)[: len(rows)], rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(seed, bazaar, tmp_path, monkeypatch):
    """As in test_resume.py, in real processes."""
    flags = [
        "--config=configs/gdnsm.py:mci,bank",
        "--config.data.pipeline=numpy",
        "--config.encoder.dim=16",
        "--config.negatives.generated.start=2.0",
    ]
    monkeypatch.setitem(test_resume.RUNS, "gdnsm", flags)
    beside = tmp_path / "calm"
    calm = test_resume.start("gdnsm", bazaar, beside), beside
    killed = test_resume.torment(
        "gdnsm",
        bazaar,
        lambda name: calm,
        tmp_path / "run",
        ("early", "late", "saving", "late"),
        seed,
    )
    assert killed > 1
