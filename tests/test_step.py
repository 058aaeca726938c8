"""The training step: what a dispatch does, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import some
from training import make_run, numbers, small

from neggen_jax.step import Program

EPS = float(np.finfo(np.float32).eps)


def assert_same(left, right) -> None:
    left, right = numbers(left), numbers(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def differ(left, right) -> bool:
    left, right = numbers(left), numbers(right)
    return any((left[name] != right[name]).any() for name in left)


@pytest.mark.parametrize(
    "argument", some(["mf", "freedom,popularity"], "freedom,popularity")
)
def test_a_dispatch_is_its_steps_one_after_another(argument):
    it = small(argument, train__ema=0.75)
    got, report = it.dispatch(it.state, it.inputs, it.stack, jnp.int32(3))
    assert int(got.step) == 3
    assert int(report.bad_step) == -1

    # One batch at a time, through the very same program.
    state, losses = it.state, []
    for number in range(3):
        alone = {k: jnp.roll(v, -number, axis=0) for k, v in it.stack.items()}
        state, said = it.dispatch(state, it.inputs, alone, jnp.int32(1))
        losses.append(said.means["loss"])
    assert_same(got, state)
    np.testing.assert_allclose(
        report.means["loss"], np.mean(losses), rtol=3 * EPS
    )


def test_a_dispatch_does_what_the_step_does():
    """XLA may fuse the two in other ways: some roundings of numbers below 1.

    Adam divides by the root of the second moment, so a gradient's relative
    error, not its absolute one, reaches the parameters: times the learning
    rate .01, times three steps.
    """
    it = small("mf", train__ema=0.75)
    got, _ = it.dispatch(it.state, it.inputs, it.stack, jnp.int32(3))
    state = it.state
    for number in range(3):
        state, _ = it.step(state, it.inputs, it.batch(number))
    for name, value in numbers(got.params).items():
        np.testing.assert_allclose(
            value, numbers(state.params)[name], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_rest_of_a_short_stack_is_not_read(count):
    it = small("mf", train__ema=0.75)
    got, report = it.dispatch(it.state, it.inputs, it.stack, jnp.int32(count))
    assert int(got.step) == count
    other = {k: v.at[count:].set(0) for k, v in it.stack.items()}
    again, same = it.dispatch(it.state, it.inputs, other, jnp.int32(count))
    assert_same(got, again)
    if count:
        assert_same(report, same)
    else:
        assert_same(got, it.state)
    more = jnp.int32(count + 1)
    here, there = (
        it.dispatch(it.state, it.inputs, stack, more)[0]
        for stack in (it.stack, other)
    )
    assert differ(here.params, there.params)


def test_random_numbers_follow_from_seed_and_step():
    """The same batch at another step, or seed, draws other negatives."""
    it = small("mf", train__ema=0.75)
    batch = it.batch(0)
    here, _ = it.step(it.state, it.inputs, batch)
    again, _ = it.step(it.state, it.inputs, batch)
    assert_same(here, again)
    later = it.state.replace(step=it.state.step + 1)
    assert differ(here.params, it.step(later, it.inputs, batch)[0].params)
    other = make_run("mf", train__ema=0.75, seed=1)
    state, _ = jax.jit(other.program.step)(it.state, it.inputs, batch)
    assert differ(here.params, state.params)


def test_each_epoch_is_prepared_with_its_own_key():
    it = small("freedom,popularity", train__ema=0.75)
    prepare = jax.jit(it.run.program.prepare)
    one, same, two = (
        prepare(it.run.inputs, jnp.int32(epoch)).user_item
        for epoch in (0, 0, 1)
    )
    assert_same(one, same)
    assert differ(one, two)


def test_the_average_is_the_recurrence():
    it = small("mf", train__ema=0.75)
    state = it.state
    assert_same(state.average, state.params)
    want = {k: v.astype(np.float64) for k, v in numbers(state.params).items()}
    for number in range(3):
        state, _ = it.step(state, it.inputs, it.batch(number))
        for name, value in numbers(state.params).items():
            want[name] = 0.75 * want[name] + 0.25 * value
    for name, value in numbers(state.average).items():
        # Three roundings of numbers below 1.
        np.testing.assert_allclose(value, want[name], rtol=0, atol=3 * EPS)
    assert state.evaluated is state.average
    assert differ(state.average, state.params)


def test_no_average_is_kept_where_none_is_asked_for():
    state, _ = make_run("mf").start()
    assert state.average is None
    assert state.evaluated is state.params


def test_the_state_is_donated_and_nothing_else_moves():
    """What the loop does passes its guard; a planted transfer does not."""
    run = make_run("mf", train__ema=0.75)
    it, (state, _) = small("mf", train__ema=0.75), run.start()
    dispatch = jax.jit(run.program.dispatch, donate_argnums=0)
    count = run.partition.put(np.int32(3))
    before = jax.tree.leaves(state)
    with jax.transfer_guard("disallow"):
        state, _ = dispatch(state, it.inputs, it.stack, count)
    assert all(leaf.is_deleted() for leaf in before)
    others = jax.tree.leaves((it.inputs, it.stack, count))
    assert not any(leaf.is_deleted() for leaf in others)
    assert_same(
        state, it.dispatch(it.state, it.inputs, it.stack, jnp.int32(3))[0]
    )
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(Exception, match="Disallowed host-to-device"),
    ):
        dispatch(state, it.inputs, it.stack, np.int32(3))


def test_bfloat16_runs_and_differs():
    exact, rough = (
        small("mf", train__ema=0.75, **changes)
        for changes in ({}, {"train__dtype": "bfloat16"})
    )
    (want, report), (got, other) = (
        it.dispatch(it.state, it.inputs, it.stack, jnp.int32(3))
        for it in (exact, rough)
    )
    # Parameters, moments and losses stay in float32.
    for name, leaf in numbers((got, other.means)).items():
        assert leaf.dtype in (np.float32, np.int32), name
    loss, close = float(report.means["loss"]), float(other.means["loss"])
    # bfloat16 keeps 8 bits of each factor.
    assert 0 < abs(loss - close) < 2**-7 * abs(loss)
    assert differ(want.params, got.params)


class Planted(Program):
    """A program in which one term of one step is not finite."""

    def __init__(self, program: Program, term: str, value: float):
        for name, field in vars(program).items():
            object.__setattr__(self, name, field)
        object.__setattr__(self, "planted", (term, value))

    def step(self, state, inputs, batch):
        term, value = self.planted
        new, terms = super().step(state, inputs, batch)
        terms[term] = jnp.where(state.step == 1, value, terms[term])
        return new, terms


@pytest.mark.parametrize(
    ("term", "value"), [("loss", np.nan), ("gradient_norm", np.inf)]
)
def test_the_first_bad_step_is_told_with_its_terms(term, value):
    it = small("mf", train__ema=0.75)
    dispatch = jax.jit(Planted(it.run.program, term, value).dispatch)
    _, report = dispatch(it.state, it.inputs, it.stack, jnp.int32(3))
    assert int(report.bad_step) == 1
    assert not np.isfinite(report.bad_terms[term])
    finite = {k for k, v in report.bad_terms.items() if np.isfinite(v)}
    assert finite == report.means.keys() - {term}


def test_a_step_that_ruins_the_parameters_is_told():
    """The loss of a step is that of the parameters before it.

    If it is the last of an epoch, nothing else would keep ruined parameters
    from being evaluated and saved.
    """
    run = make_run("mf", optimizer__learning_rate=1e30)
    it, (state, _) = small("mf", train__ema=0.75), run.start()
    dispatch = jax.jit(run.program.dispatch)
    state, report = dispatch(state, it.inputs, it.stack, jnp.int32(1))
    assert np.isfinite(report.means["loss"])
    assert np.abs(numbers(state.params)["['encoder']['items']"]).max() > 1e20
    assert int(report.bad_step) == 0
