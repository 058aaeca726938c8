"""Several batches that share one propagation, and one step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_catalog, some
from generated import LEAST, QUICK, with_generated
from rewritten import make_neggen, make_rewritten
from test_stateful_source import Bank
from training import make_config, make_run, numbers, told

from neggen_jax import negatives
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.errors import InputError
from neggen_jax.negatives.source import Negatives, Source
from neggen_jax.optimizer import Optimizer
from neggen_jax.preemption import Stopped
from neggen_jax.run import Run
from neggen_jax.train import train_and_evaluate

EPS = float(np.finfo(np.float32).eps)
N = 3
# No size of a table, so that arrays of a program can be told apart.
BATCH = 56


def composed(experiment: str, mesh: tuple[int, int] = (1, 1)) -> Run:
    """A run whose steps read N batches."""
    changes = {"train__batches_per_step": N, "train__batch_size": BATCH}
    if experiment == "neggen":
        config = make_neggen("lightgcn", **changes)
    elif experiment == "generated":
        # A bank is written by one batch and read by the next.
        config = with_generated("mf", {**LEAST, "bank": 2}, **changes)
    else:
        config = make_config(experiment, **changes)
    if mesh != (1, 1):
        config.mesh.tables, config.mesh.exchange = "all", "ring"
    config.mesh.data, config.mesh.model = mesh
    return Run.make(
        config, make_rewritten(), jax.devices()[: mesh[0] * mesh[1]]
    )


def descend(run: Run):
    """One step of plain gradient descent of length 1, from step 0.

    Returns:
      The state before, inputs, batch, the state after, and terms.
    """
    state, _ = run.start()
    program = dataclasses.replace(
        run.program, optimizer=Optimizer(optax.sgd(1.0))
    )
    state = state.replace(opt_state=program.optimizer.init(state.params))
    inputs = jax.jit(program.prepare)(run.inputs, jnp.int32(0))
    batch = jax.tree.map(lambda x: x[0], next(run.batches(0)))
    step = jax.jit(program.step, compiler_options=QUICK)
    after, terms = step(state, inputs, batch)
    assert int(after.step) == 1
    return state, inputs, batch, after, terms


@functools.cache
def shared(experiment: str):
    """On one device."""
    run = composed(experiment)
    return run, *descend(run)


@pytest.mark.parametrize(
    "experiment",
    some(["mf", "lightgcn", "mci", "neggen", "generated"], "generated"),
)
def test_the_gradient_is_that_of_the_mean_loss(experiment):
    """Of all the batches at once, each embedding everything by itself."""
    run, state, inputs, batch, after, terms = shared(experiment)
    program = run.program

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.grad, has_aux=True)
    def one(params, variables, batch, key):
        (total, terms), variables = program.recommender.apply(
            {"params": params, **variables},
            inputs,
            batch,
            program.clock(jnp.int32(0)),
            rngs={"negatives": key},
            mutable=list(variables),
        )
        return total, (terms, variables)

    each, grads, variables = [], [], state.variables
    keys = jax.random.split(jax.random.fold_in(program.key(2), 0), N)
    for number, key in enumerate(keys):
        part = {k: v[number::N] for k, v in batch.items()}
        grad, (said, variables) = one(state.params, variables, part, key)
        each.append(said)
        grads.append(numbers(grad))
    got = numbers(jax.tree.map(jnp.subtract, state.params, after.params))
    for name in got:
        want = np.mean([grad[name] for grad in grads], axis=0, dtype=np.float64)
        # Sums of some hundred terms in another order, and the rounding of
        # what they are taken from: parameters are below 2.
        atol = 2 * EPS + 100 * EPS * np.abs(want).max()
        np.testing.assert_allclose(
            got[name], want, rtol=0, atol=atol, err_msg=name
        )
        if name.startswith("['encoder']"):
            assert np.abs(want).max() > 1000 * atol, name
    for name, value in numbers(variables).items():
        np.testing.assert_allclose(
            numbers(after.variables)[name], value, rtol=0, atol=1e-5
        )
    for name in each[0]:
        values = np.array([said[name] for said in each])
        there = values[np.isfinite(values)]
        want = there.mean() if there.size else np.nan
        np.testing.assert_allclose(
            terms[name], want, rtol=1e-4, atol=1e-6, err_msg=name
        )
    # Each batch draws for itself.
    assert len({float(said["loss"]) for said in each}) == N


@pytest.mark.parametrize(
    "experiment", ["mci", pytest.param("neggen", marks=pytest.mark.slow)]
)
def test_the_gradient_is_the_same_on_a_mesh(experiment):
    """But for sums in another order, as above."""
    _, state, _, _, want, _ = shared(experiment)
    run = composed(experiment, (4, 2))
    _, _, _, got, _ = descend(run)
    for name, value in numbers(want.params).items():
        step = numbers(state.params)[name] - value
        atol = 4 * EPS + 200 * EPS * np.abs(step).max()
        # Tables are padded on a mesh.
        other = numbers(got.params)[name]
        other = other[tuple(slice(size) for size in value.shape)]
        np.testing.assert_allclose(other, value, rtol=0, atol=atol)


def test_what_is_added_up_is_cut_as_tables_are():
    """No device holds a whole table, or a whole sum of gradients."""
    run = composed("lightgcn", (1, 8))
    state = run.program.abstract(run.inputs, run.batch())
    scalar = run.partition.abstract((), np.int32)
    inputs = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
    trainer = run.program.trainer(state)
    lowered = trainer.lower(state, inputs, run.stack(), scalar)
    # Without them, what a lookup sends has the shape of a table.
    options = {"xla_cpu_use_fusion_emitters": True}
    text = lowered.compile(options).as_text()
    # 61 users and 41 items, padded to eight shards.
    assert "f32[8,8]" in text
    assert "f32[6,8]" in text
    assert "f32[64,8]" not in text
    assert "f32[48,8]" not in text


def test_propagation_is_paid_once():
    run = composed("lightgcn")
    state = run.program.abstract(run.inputs, run.batch())
    step = jax.make_jaxpr(run.program.step)(state, run.inputs, run.batch())
    (loop,) = [e for e in step.eqns if e.primitive.name == "scan"]
    assert loop.params["length"] == N
    every = str(step).count("= shard_map[")
    within = str(loop.params["jaxpr"]).count("= shard_map[")
    # Two layers of two products, forward and backward.
    assert every - within == 8
    # To draw negatives.
    assert within == 2


def test_a_step_reads_its_batches_in_one_epoch():
    """Fewer steps an epoch; what is read stays the same."""
    one, run = make_run("mf"), make_run("mf", train__batches_per_step=2)
    assert one.stream.schedule.steps_per_epoch == 9
    assert run.stream.schedule.steps_per_epoch == 5
    assert run.program.steps_per_epoch == 5
    first = next(one.batches(0))["users"].reshape(-1)
    again = next(run.batches(0))["users"].reshape(-1)
    np.testing.assert_array_equal(first, again[: len(first)])
    parts = run.program._cut(jax.tree.map(lambda x: x[0], next(run.batches(0))))
    assert parts["users"].shape == (2, 64)


@pytest.fixture
def banked(monkeypatch):
    monkeypatch.setitem(negatives.SOURCES, "bank", Bank)
    config = make_config(
        "mf",
        train__epochs=3,
        train__batches_per_step=2,
        train__steps_per_dispatch=2,
        train__ema=0.75,
    )
    with config.unlocked():
        config.negatives.bank = {"name": "bank"}
        config.losses.old = {"name": "bpr", "weight": 0.5, "source": "bank"}
    return config


def test_what_sources_keep_goes_from_batch_to_batch(banked):
    run = Run.make(banked, make_catalog())
    state, inputs, batch, after, _ = descend(run)
    kept = after.variables["bank"]["sources_bank"]
    assert int(kept["turns"]) == 2
    _, items = run.program.encode(state.params, inputs)
    want = items[batch["items"][1::2]]
    np.testing.assert_array_equal(kept["vectors"], want)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(banked, tmp_path):
    """Stopped within an epoch, of five steps in three dispatches."""
    catalog = make_catalog()
    train_and_evaluate(banked, tmp_path / "whole", catalog)
    with told(7), pytest.raises(Stopped) as stopped:
        train_and_evaluate(banked, tmp_path / "parts", catalog)
    assert stopped.value.step % 5
    train_and_evaluate(banked, tmp_path / "parts", catalog)
    states, logs = [], []
    for name in ("whole", "parts"):
        _, abstract = Run.make(banked, catalog).start()
        with Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            states.append(numbers(checkpoints.restore(abstract)[0]))
        logs.append((tmp_path / name / "metrics.jsonl").read_text())
    assert logs[0] == logs[1]
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][path], err_msg=path)


class Odd(Source):
    """Measures nothing in every other batch; its loss may be infinite."""

    ruined: bool = False

    def __call__(self, encoded, inputs, batch, clock):
        one = encoded.items[batch["items"]][:, None]
        odd = batch["users"][0] % 2 == 1
        wrong = jnp.where(odd & self.ruined, jnp.inf, 0.0)
        return Negatives(
            jax.lax.stop_gradient(one),
            jnp.ones(one.shape[:2]),
            losses={"wrong": wrong},
            metrics={"seen": jnp.where(odd, jnp.nan, 3.0)},
        )


@pytest.mark.parametrize("ruined", [False, True])
def test_means_over_batches(ruined, monkeypatch):
    """Nothing to measure is left out; what is not finite is told."""
    monkeypatch.setitem(negatives.SOURCES, "odd", Odd)
    config = make_config("mf", train__batches_per_step=2)
    with config.unlocked():
        config.negatives.odd = {"name": "odd", "ruined": ruined}
    run = Run.make(config, make_catalog(), jax.devices()[:1])
    state, _ = run.start()
    stack = next(run.batches(0))
    users = jnp.arange(stack["users"].shape[1]) % 2
    stack["users"] = jnp.broadcast_to(users, stack["users"].shape)
    dispatch = jax.jit(run.program.dispatch)
    _, said = dispatch(state, run.inputs, stack, jnp.int32(1))
    if ruined:
        assert int(said.bad_step) == 0
        assert said.bad_terms["loss"] == said.bad_terms["odd/wrong"] == np.inf
    else:
        assert int(said.bad_step) == -1
        assert said.means["odd/seen"] == 3.0


@pytest.mark.parametrize("value", [0, -1, 2**31])
def test_bad_numbers_of_batches_are_refused(value):
    with pytest.raises(InputError) as caught:
        make_run("mf", train__batches_per_step=value)
    assert caught.value.where == "config.train.batches_per_step"
    assert caught.value.found == repr(value)
