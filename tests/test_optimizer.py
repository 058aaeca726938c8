"""Optimisers and learning-rate schedules, from a config."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from neggen_jax import optimizer
from neggen_jax.config import base
from neggen_jax.errors import InputError
from neggen_jax.ops import adam, native

STEPS = 100


def config(**changes):
    out = base().optimizer
    out.learning_rate = 0.5
    out.update(changes)
    return out


def rates(**changes):
    schedule = optimizer.learning_rate(config(**changes), STEPS)
    return np.array([schedule(step) for step in range(STEPS + 1)])


def test_constant():
    np.testing.assert_allclose(rates(), 0.5)


def test_cosine():
    got = rates(schedule="cosine", final_scale=0.1)
    turn = np.pi * np.arange(STEPS + 1) / STEPS
    want = 0.05 + 0.45 * (1 + np.cos(turn)) / 2
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_exponential():
    got = rates(schedule="exponential", final_scale=0.01)
    want = 0.5 * 0.01 ** (np.arange(STEPS + 1) / STEPS)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("schedule", optimizer.SCHEDULES)
def test_warmup_is_a_ramp_and_the_rest_is_shorter(schedule):
    got = rates(schedule=schedule, final_scale=0.2, warmup_steps=20)
    np.testing.assert_allclose(got[:21], 0.5 * np.arange(21) / 20, rtol=1e-6)
    end = 0.5 if schedule == "constant" else 0.1
    np.testing.assert_allclose(got[-1], end, rtol=1e-5)
    # What follows the ramp is the schedule itself over 80 steps.
    rest = optimizer.learning_rate(
        config(schedule=schedule, final_scale=0.2), STEPS - 20
    )
    np.testing.assert_allclose(got[60], rest(40), rtol=1e-6)


def test_a_run_that_ends_within_its_warmup():
    schedule = optimizer.learning_rate(config(warmup_steps=50), 10)
    np.testing.assert_allclose(schedule(10), 0.1, rtol=1e-6)


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'cosine'") as error:
        rates(schedule="cosin")
    assert error.value.where == "config.optimizer.schedule"


def test_an_exponential_schedule_cannot_reach_zero():
    """With a factor of 0 optax decays not at all, and says nothing."""
    with pytest.raises(InputError, match="never reaches zero"):
        rates(schedule="exponential")


@pytest.fixture(params=["optax", "kernel", "xla"])
def maker(request, monkeypatch):
    """Who makes steps: on many devices, on one CPU, and without a compiler."""
    made = functools.partial(optimizer.make, one_cpu=request.param != "optax")
    monkeypatch.setattr(optimizer, "make", made)
    if request.param == "xla":
        monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(adam, "_LEAST", 1)


def parameters():
    return {
        "encoder": {"users": jnp.ones((3, 2)), "items": jnp.ones((4, 2))},
        "sources_diffusion": {"kernel": jnp.full((2, 2), 2.0)},
    }


def train(settings, params, steps=3, gradient=1.0):
    """How far each parameter went."""
    update = optimizer.make(settings, STEPS)

    @jax.jit
    def run(params):
        state, start = update.init(params), params
        for _ in range(steps):
            gradients = jax.tree.map(
                lambda x: jnp.full_like(x, gradient), params
            )
            made = update.apply(gradients, state, params)
            params, state = made.params, made.state
        return jax.tree.map(jnp.subtract, params, start)

    return run(params)


@pytest.mark.usefixtures("maker")
def test_adam_steps_by_the_learning_rate():
    moved = train(config(), parameters())
    for leaf in jax.tree.leaves(moved):
        # Under a constant gradient Adam moves by the learning rate each step.
        np.testing.assert_allclose(leaf, -1.5, rtol=1e-5)


@pytest.mark.usefixtures("maker")
def test_moments_are_those_of_the_config():
    def numpy_adam(b1, b2, eps):
        gradients, x, m, v = (1.0, -3.0, 0.5), 1.0, 0.0, 0.0
        for step, g in enumerate(gradients, 1):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            x -= (
                0.5 * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)
            )
        return x

    update = optimizer.make(config(beta1=0.7, beta2=0.8, epsilon=0.1), STEPS)
    params = jnp.ones(())
    state = update.init(params)
    for gradient in (1.0, -3.0, 0.5):
        made = update.apply(jnp.float32(gradient), state, params)
        params, state = made.params, made.state
    np.testing.assert_allclose(params, numpy_adam(0.7, 0.8, 0.1), rtol=1e-5)


@pytest.mark.usefixtures("maker")
def test_weight_decay_is_decoupled():
    settings = config(weight_decay=0.1)
    moved = train(settings, {"x": jnp.full((2,), 4.0)}, 1, gradient=0.0)
    np.testing.assert_allclose(moved["x"], -0.5 * 0.1 * 4, rtol=1e-6)


@pytest.mark.usefixtures("maker")
def test_clipping_bounds_the_global_norm():
    """Seen through epsilon: where it is large, Adam's step is the gradient."""
    settings = config(clip_norm=2.0, epsilon=1e6)
    params = {"x": jnp.zeros((3, 2)), "y": jnp.zeros((10,))}
    moved = train(settings, params, 1, gradient=100.0)
    want = 0.5 * 2.0 / np.sqrt(16) / 1e6
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, -want, rtol=1e-4)


@pytest.mark.usefixtures("maker")
def test_groups_have_values_of_their_own():
    groups = {
        "encoder": {"learning_rate": 0.25},
        "encoder/users": {"learning_rate": 0.0},
    }
    moved = train(config(groups=groups), parameters())
    # The longest beginning counts, and what fits none keeps the defaults.
    assert not np.asarray(moved["encoder"]["users"]).any()
    np.testing.assert_allclose(moved["encoder"]["items"], -0.75, rtol=1e-5)
    np.testing.assert_allclose(
        moved["sources_diffusion"]["kernel"], -1.5, rtol=1e-5
    )


@pytest.mark.usefixtures("maker")
def test_groups_have_schedules_of_their_own():
    groups = {"sources": {"warmup_steps": 10, "weight_decay": 0.1}}
    moved = train(config(groups=groups), parameters(), steps=1)
    np.testing.assert_allclose(moved["encoder"]["items"], -0.5, rtol=1e-5)
    assert not np.asarray(moved["sources_diffusion"]["kernel"]).any()


@pytest.mark.usefixtures("maker")
def test_groups_see_through_the_boxes_of_named_axes():
    settings = config(groups={"encoder/items": {"learning_rate": 0.0}})
    boxed = {
        "encoder": {
            name: nn.Partitioned(table, ("item", "embed"))
            for name, table in parameters()["encoder"].items()
        }
    }
    plain = nn.unbox(boxed)
    make = optimizer.make(settings, STEPS)
    # The state is made of boxed parameters, and used with plain ones.
    state = nn.unbox(make.init(boxed))
    made = make.apply(jax.tree.map(jnp.ones_like, plain), state, plain)
    moved = jax.tree.map(jnp.subtract, made.params, plain)
    assert not np.asarray(moved["encoder"]["items"]).any()
    np.testing.assert_allclose(moved["encoder"]["users"], -0.5, rtol=1e-5)


def test_an_unknown_key_of_a_group_is_refused_with_the_nearest():
    groups = {"encoder": {"learning_rat": 0.0}}
    with pytest.raises(
        InputError, match="did you mean 'learning_rate'"
    ) as error:
        optimizer.make(config(groups=groups), STEPS)
    assert error.value.where == "config.optimizer.groups.encoder.learning_rat"


def test_a_group_that_fits_no_parameter_is_refused():
    settings = config(groups=ConfigDict({"encodr": {"learning_rate": 0.0}}))
    with pytest.raises(InputError, match="encoder/items") as error:
        optimizer.make(settings, STEPS).init(parameters())
    assert error.value.where == "config.optimizer.groups.encodr"


SHAPES = {"table": (70, 33), "kernel": (5, 4, 3), "bias": (17,), "one": ()}


def numpy_steps(settings, params, gradients, lazy):
    """Adam in float64, row by row; and sums of squares of the last step."""
    rate, decay = settings.learning_rate, settings.weight_decay
    b1, b2 = settings.beta1, settings.beta2
    x = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(a) for k, a in x.items()} for _ in range(2))
    for step, of in enumerate(gradients, 1):
        norm = np.sqrt(sum(np.square(g).sum() for g in of.values()))
        clip = settings.clip_norm
        factor = min(1, clip / norm) if clip else 1
        sums = {}
        for k, raw in of.items():
            rows = raw.reshape(len(raw), -1) if raw.ndim else raw
            there = np.ones(raw.shape, bool)
            if lazy and raw.ndim:
                there = np.broadcast_to(
                    rows.any(1).reshape(-1, *[1] * (raw.ndim - 1)), raw.shape
                )
            g = factor * raw.astype(np.float64)
            m[k] = np.where(there, b1 * m[k] + (1 - b1) * g, m[k])
            v[k] = np.where(there, b2 * v[k] + (1 - b2) * g * g, v[k])
            size = np.sqrt(v[k] / (1 - b2**step)) + settings.epsilon
            u = -rate * (m[k] / (1 - b1**step) / size + decay * x[k])
            u = np.where(there, u, 0)
            x[k] = x[k] + u
            sums[k] = np.square(raw).sum(), np.square(u).sum()
    return x, sums


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_norm": 3.0, "weight_decay": 0.1}, {"beta1": 0.0}],
    ids=["plain", "clipped", "without momentum"],
)
def test_steps_are_those_of_numpy(maker, changes, lazy):
    settings = config(learning_rate=0.01, lazy=lazy, **changes)
    rng = np.random.default_rng(0)
    params, *gradients = (
        {
            k: np.asarray(rng.normal(size=shape), np.float32)
            for k, shape in SHAPES.items()
        }
        for _ in range(5)
    )
    for number, of in enumerate(gradients):
        # Others in each step; a zero has a sign; a row may be nearly empty.
        of["table"][number::3] = -0.0
        of["table"][number, -1] = 1.0
        of["bias"][number::2] = 0
        of["kernel"][number] = 0
    want, sums = numpy_steps(settings, params, gradients, lazy)
    make = optimizer.make(settings, STEPS)
    apply = jax.jit(make.apply)
    state, got = make.init(params), params
    for of in gradients:
        made = apply(of, state, got)
        got, state = made.params, made.state
    for k in SHAPES:
        np.testing.assert_allclose(got[k], want[k], rtol=2e-5, atol=1e-6)
        said = made.gradients[k], made.updates[k]
        np.testing.assert_allclose(said, sums[k], rtol=1e-4)
    assert jax.tree.structure(state) == jax.tree.structure(make.init(params))


def test_a_lazy_one_leaves_what_is_not_read(maker):
    settings = config(lazy=True, weight_decay=0.1)
    make = optimizer.make(settings, STEPS)
    params = {"x": jnp.ones((6, 3))}
    state = make.init(params)
    for row in (2, 4):
        gradient = {"x": jnp.zeros((6, 3)).at[row].set(1.0)}
        made = make.apply(gradient, state, params)
        params, state = made.params, made.state
    moved = np.flatnonzero((np.asarray(params["x"]) != 1).any(axis=1))
    assert moved.tolist() == [2, 4]
    kept = np.asarray(optax.tree_utils.tree_get(state, "mu")["x"])
    assert np.flatnonzero(kept.any(axis=1)).tolist() == [2, 4]


def test_a_step_that_is_not_finite_shows(maker):
    make = optimizer.make(config(lazy=True), STEPS)
    params = {"x": jnp.ones((40, 3))}
    gradient = {"x": jnp.zeros((40, 3)).at[7, 1].set(jnp.nan)}
    made = make.apply(gradient, make.init(params), params)
    assert np.isnan(made.gradients["x"])
    assert np.isnan(made.updates["x"])


def test_groups_step_as_those_of_optax(maker):
    groups = {"kernel": {"learning_rate": 0.1, "clip_norm": 0.5, "beta1": 0.5}}
    settings = config(learning_rate=0.01, weight_decay=0.1, groups=groups)
    make = optimizer.make(settings, STEPS)
    rng = np.random.default_rng(0)
    params, *gradients = (
        {
            k: jnp.asarray(rng.normal(size=s), jnp.float32)
            for k, s in SHAPES.items()
        }
        for _ in range(4)
    )
    ended = []
    for one in (make, dataclasses.replace(make, one_cpu=False)):
        state, got = one.init(params), params
        for of in gradients:
            got, state, *sums = one.apply(of, state, got)
        ended.append((got, state, sums))
    assert jax.tree.structure(ended[0]) == jax.tree.structure(ended[1])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        *ended,
    )


@pytest.mark.usefixtures("maker")
def test_parameters_may_be_called_like_what_the_state_has():
    moved = train(config(), {"mu": jnp.ones((3, 2)), "count": jnp.ones(2)})
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, -1.5, rtol=1e-5)


def test_moments_are_optax_s_up_to_rounding():
    make = optimizer.make(config(), STEPS, one_cpu=True)
    rng = np.random.default_rng(0)
    params = {"x": jnp.asarray(rng.normal(size=(300, 64)), jnp.float32)}
    gradient = {"x": jnp.asarray(rng.normal(size=(300, 64)), jnp.float32)}
    states = []
    for one in (make, dataclasses.replace(make, one_cpu=False)):
        state = one.init(params)
        for _ in range(5):
            state = one.apply(gradient, state, params).state
        states.append(state)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6), *states
    )
