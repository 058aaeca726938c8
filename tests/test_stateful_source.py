"""A source that keeps something from step to step, from outside the package.

It stands for what generated negatives need: a bank that is drawn from and
refreshed, running statistics, a loss and parameters of its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog
from training import make_config, numbers

from neggen_jax import negatives, train
from neggen_jax.data.inputs import Needs
from neggen_jax.negatives.source import Negatives, Source
from neggen_jax.run import Run


class Bank(Source):
    """Gives the vectors that the batch before had, moved by a parameter."""

    def needs(self):
        return Needs(features=True)

    @property
    def read(self):
        return ("image", "text")

    @nn.compact
    def __call__(self, encoded, inputs, batch, clock):
        items = jax.lax.stop_gradient(encoded.items[batch["items"]])
        bank = self.variable("bank", "vectors", lambda: jnp.zeros(items.shape))
        turns = self.variable("bank", "turns", lambda: jnp.zeros((), jnp.int32))
        shift = self.param("shift", jax.nn.initializers.ones, items.shape[1:])
        vectors = bank.value + jax.lax.stop_gradient(shift)
        if not self.is_initializing():
            bank.value, turns.value = items, turns.value + 1
        width = sum(inputs.features[name].values.shape[1] for name in self.read)
        return Negatives(
            vectors[:, None],
            jnp.ones((len(items), 1)),
            losses={"fit": jnp.square(items.mean(0) - shift).mean()},
            metrics={"width": jnp.float32(width)},
        )


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(negatives.SOURCES, "bank", Bank)
    config = make_config("mf", train__epochs=4)
    with config.unlocked():
        config.negatives.bank = {"name": "bank"}
        config.losses.old = {"name": "bpr", "weight": 0.5, "source": "bank"}
    return config


def kept(state):
    return state.variables["bank"]["sources_bank"]


def test_variables_go_from_step_to_step_and_the_loss_reads_them(config):
    run = Run.make(config, make_catalog())
    state, _ = run.start()
    (bank,) = jax.tree.leaves(kept(state)["vectors"])
    assert not np.asarray(bank).any()
    prepared = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
    stack = next(run.batches(0))
    step = jax.jit(run.program.step)
    for number in range(3):
        batch = jax.tree.map(lambda x, n=number: x[n], stack)
        users, items = run.program.encode(state.params, prepared)
        bank = kept(state)["vectors"]
        shift = state.params["sources_bank"]["shift"]
        state, terms = step(state, prepared, batch)
        # What the step before left is what this one is told to avoid.
        score = (users[batch["users"]] * items[batch["items"]]).sum(-1)
        old = (users[batch["users"]] * (bank + shift)).sum(-1)
        expected = np.logaddexp(0, np.asarray(old - score, np.float64)).mean()
        np.testing.assert_allclose(terms["old"], expected, rtol=1e-5)
        np.testing.assert_allclose(
            kept(state)["vectors"],
            items[batch["items"]],
            rtol=1e-6,
        )
    assert int(kept(state)["turns"]) == 3
    # MF reads no features; the source asked for them.
    assert float(terms["bank/width"]) == sum(
        matrix.dim for matrix in run.catalog.features.values()
    )


def test_variables_are_checkpointed_and_resumed(config, tmp_path):
    catalog = make_catalog()
    train.train_and_evaluate(config, tmp_path / "whole", catalog)
    config.train.epochs = 2
    train.train_and_evaluate(config, tmp_path / "parts", catalog)
    config.train.epochs = 4
    train.train_and_evaluate(config, tmp_path / "parts", catalog)
    states = []
    for name in ("whole", "parts"):
        run = Run.make(config, catalog)
        _, abstract = run.start()
        with train.Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            states.append(numbers(checkpoints.restore(abstract)[0]))
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][path], err_msg=path)
