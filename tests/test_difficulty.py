"""Levels of difficulty and their ramp against the formulas of GDNSM."""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_mesh
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.data.inputs import Needs, build
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives import RampedUniform, Uniform
from neggen_jax.negatives.difficulty import (
    LADDERS,
    Level,
    Ramp,
    guided,
    ladder,
)
from neggen_jax.negatives.source import UNITS, Clock

NAMES = ("text", "image", "audio")
# The ramp takes its time for 2^-20 more than it is, against eight roundings of
# 2^-24 at most from the step to the power, and a few within it. So a border
# is never late, and early by no more than this share of the time before it.
EARLY = 2e-6


def admitted(ramp, samples, most, steps, per_epoch, epochs):
    """What the ramp says at each of some steps, as a training step asks it."""

    @jax.jit
    def ask(steps):
        def one(step):
            epoch = step / per_epoch
            clock = Clock(step, epoch, epoch / epochs)
            return ramp.admitted(clock, samples, most)

        return jax.vmap(one)(steps)

    return np.asarray(ask(jnp.asarray(steps, jnp.int32)))


def formula(time, rate, samples, most, slack=0.0):
    """`min(most, int((time / start) ** rate * samples))`, 0 before `start`.

    Args:
      time: in units of `start`, exact.
      rate: exponent.
      samples: M.
      most: of all levels.
      slack: takes the time, and the power, for so much more than they are.
    """
    time = float(time * (1 + Fraction(slack)))
    if time < 1:
        return 0
    return math.floor(min(most, time**rate * samples * (1 + slack)))


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=25)
@given(
    start=st.one_of(st.integers(1, 60).map(float), st.floats(0.02, 200)),
    rate=st.one_of(st.just(1.0), st.sampled_from((0.5, 2.0, 3.0))),
    samples=st.integers(1, 10),
    levels=st.integers(1, 4),
    per_epoch=st.integers(1, 5000),
    epochs=st.integers(1, 300),
    others=st.lists(st.integers(0, 10**6), min_size=8, max_size=8),
)
def test_the_ramp_is_the_formula(
    unit, start, rate, samples, levels, per_epoch, epochs, others
):
    if unit == "run":
        # Of the whole run as 1.
        start /= 200
    most = levels * samples
    length = {
        "steps": Fraction(1),
        "epochs": Fraction(per_epoch),
        "run": Fraction(per_epoch * epochs),
    }[unit] * Fraction(start)
    # The steps about each border, and some others.
    borders = [
        float(length) * (count / samples) ** (1 / rate)
        for count in (1, samples, samples + 1, most - 1, most)
    ]
    about = [math.floor(at) + more for at in borders for more in (-1, 0, 1)]
    steps = [min(max(step, 0), 2**30) for step in (0, 1, *about, *others)]
    ramp = Ramp(start, rate, unit)
    got = admitted(ramp, samples, most, steps, per_epoch, epochs)
    for step, count in zip(steps, got, strict=True):
        rest = step / length, rate, samples, most
        low, high = formula(*rest), formula(*rest, EARLY)
        assert low <= count <= max(low, high), (step, float(step / length))
        assert count == 0 or samples <= count <= most


@pytest.mark.parametrize("start", [1, 3, 10, 30, 41, 47, 55, 97])
def test_borders_that_are_reached_exactly_count_as_reached(start):
    """Also where float32 has no reciprocal, as of 41, that leads back."""
    ramp = Ramp(float(start), 1.0, "epochs")
    for per_epoch in (1, 41, 58, 97, 1000):
        whole = start * per_epoch
        steps = [whole - 1, whole, 2 * whole - 1, 2 * whole, 3 * whole]
        got = admitted(ramp, 2, 6, steps, per_epoch, 100)
        # Half way from M to 2M the odd number in between is let in, and one
        # epoch of one step before 2 is already beyond it.
        between = [formula(Fraction(step, whole), 1, 2, 6) for step in steps]
        np.testing.assert_array_equal(got, between)
        assert between[1::2] == [2, 4]
        assert between[0] == 0


def test_the_authors_schedule():
    """S = 30, rate 1, M = 2: none, then two, one more each 15 epochs."""
    ramp = Ramp(30.0, 1.0, "epochs")
    epochs = [0, 29, 30, 44, 45, 59, 60, 75, 89, 90, 299]
    got = admitted(ramp, 2, 6, epochs, 1, 300)
    np.testing.assert_array_equal(got, [0, 0, 2, 2, 3, 3, 4, 5, 5, 6, 6])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rate", [0.0, 1.0, 2.5])
def test_without_a_start_all_are_let_in_at_once(unit, rate):
    got = admitted(Ramp(0.0, rate, unit), 2, 6, [0, 1, 10**9], 10, 10)
    np.testing.assert_array_equal(got, [6, 6, 6])


def test_rates_bend_the_ramp():
    """At twice and three times S: 2^rate and 3^rate of M."""
    for rate, want in ((0.0, [4, 4]), (0.5, [5, 6]), (3.0, [32, 99])):
        got = admitted(Ramp(10.0, rate, "steps"), 4, 99, [9, 20, 30], 1, 1)
        np.testing.assert_array_equal(got, [0, *want])


def test_what_is_more_than_any_integer_lets_all_in():
    for rate in (2.0, 1000.0):
        got = admitted(Ramp(1e-30, rate, "steps"), 2, 6, [0, 1, 7], 1, 1)
        np.testing.assert_array_equal(got, [0, 6, 6])


# Guidance


def telescoped(outputs, modalities, scales):
    """METHODS' sum, one modality after another."""
    total = outputs[()]
    for count, name in enumerate(modalities):
        before, after = modalities[:count], modalities[: count + 1]
        step = outputs[after] - outputs[before]
        total = total + scales.get(name, 1.0) * step
    return total


@given(
    count=st.integers(0, 3),
    scales=st.dictionaries(
        st.sampled_from(NAMES),
        st.one_of(st.sampled_from((0.0, 1.0, 1.1, 2.0)), st.floats(-5, 5)),
    ),
    seed=st.integers(0, 9),
)
def test_guidance_is_the_telescoped_sum(count, scales, seed):
    modalities = NAMES[:count]
    rng = np.random.default_rng(seed)
    outputs = {modalities[:n]: rng.normal(size=5) for n in range(count + 1)}
    level = guided(modalities, scales)
    assert level.modalities == modalities
    assert sum(w for _, w in level.branches) == pytest.approx(1, abs=1e-14)
    assert all(weight for _, weight in level.branches)
    # Each is computed once.
    assert len({kept for kept, _ in level.branches}) == len(level.branches)
    np.testing.assert_allclose(
        sum(weight * outputs[kept] for kept, weight in level.branches),
        telescoped(outputs, modalities, scales),
        # Some roundings of numbers below 5 times 3 times 3.
        atol=1e-13,
    )


def test_guidance_of_the_paper():
    """`e0 + s_t (e_t - e0)`, and `... + s_v (e_tv - e_t)` on top of it."""
    scales = {"text": 5.0, "image": 2.0}
    one, two, both = (
        dict(guided(names, scales).branches)
        for names in (("text",), ("image",), ("text", "image"))
    )
    assert one == {(): -4.0, ("text",): 5.0}
    assert two == {(): -1.0, ("image",): 2.0}
    assert both == {(): -4.0, ("text",): 3.0, ("text", "image"): 2.0}


def test_a_scale_of_one_is_no_guidance():
    """The condition itself: one branch, of weight 1."""
    for count in range(4):
        names = NAMES[:count]
        for scales in ({}, dict.fromkeys(NAMES, 1.0)):
            assert guided(names, scales) == Level(names, ((names, 1.0),))


@pytest.mark.parametrize(
    ("kind", "modalities", "names"),
    [
        ("ladder", NAMES[:2], ["text", "image", "text+image"]),
        ("single", NAMES[:2], ["text", "image"]),
        ("joint", NAMES[:2], ["text+image"]),
        ("ladder", NAMES, ["text", "image", "audio", "text+image+audio"]),
        ("ladder", ("text",), ["user", "text"]),
        ("single", ("text",), ["text"]),
        ("joint", ("text",), ["text"]),
    ],
)
def test_levels_go_from_easy_to_hard(kind, modalities, names):
    scales = {"text": 2.0, "image": 3.0}
    levels = ladder(kind, modalities, scales)
    assert [level.name for level in levels] == names
    for level in levels:
        assert level == guided(level.modalities, scales)
    assert kind in LADDERS


def test_every_kind_of_ladder_is_one():
    for kind in LADDERS:
        assert ladder(kind, NAMES, {})


# What is left of it without a diffusion model

BATCH, COUNT = 128, 6


@functools.cache
def drawer(source, catalog):
    """A source, compiled for a batch; the clock is an argument."""
    inputs = build(catalog, Needs(), on_mesh(1, 1))
    table = np.random.default_rng(0).normal(size=(catalog.num_items, 4))
    encoded = Encoded(jnp.zeros((1, 4)), jnp.asarray(table, jnp.float32), {})
    users = jnp.arange(BATCH, dtype=jnp.int32) % catalog.num_users

    @jax.jit
    def draw(step):
        epoch = step / 10
        return source.apply(
            {},
            encoded,
            inputs,
            {"users": users, "items": jnp.zeros_like(users)},
            Clock(step, epoch, epoch / 20),
            rngs={"negatives": jax.random.key(1)},
        )

    return lambda step: jax.device_get(draw(jnp.int32(step)))


RAMPED = RampedUniform(count=COUNT, samples=2, start=4.0, rate=1.0)


@pytest.mark.parametrize(
    ("source", "counts"),
    [
        # By epochs of 10 steps; and by the run, which is 20 of them.
        (RAMPED, {0: 0, 39: 0, 40: 2, 60: 3, 79: 3, 80: 4, 120: 6, 200: 6}),
        (
            dataclasses.replace(RAMPED, unit="run", start=0.5, rate=2.0),
            {0: 0, 99: 0, 100: 2, 123: 3, 150: 4, 199: 7, 200: 8},
        ),
        (
            dataclasses.replace(RAMPED, unit="steps", samples=1),
            {3: 0, 4: 1, 8: 2, 23: 5, 24: 6, 99: 6},
        ),
    ],
)
def test_so_many_uniform_negatives_count(catalog, source, counts):
    for step, count in counts.items():
        drawn = drawer(source, catalog)(step)
        count = min(count, COUNT)
        want = np.broadcast_to(np.arange(COUNT) < count, (BATCH, COUNT))
        np.testing.assert_array_equal(drawn.weights, want)
        assert drawn.metrics == {"admitted": count}


def test_ramped_uniform_never_gives_a_train_positive(catalog):
    taken = np.zeros((catalog.num_users, catalog.num_items), bool)
    taken[catalog.train.users, catalog.train.items] = True
    users = np.arange(BATCH) % catalog.num_users
    for step in (0, 60, 200):
        items = drawer(RAMPED, catalog)(step).items
        assert items.shape == (BATCH, COUNT)
        assert not taken[users[:, None], items].any()


def test_ramped_uniform_with_all_let_in_is_uniform(catalog):
    want = drawer(Uniform(count=COUNT), catalog)(0)
    at_once = dataclasses.replace(RAMPED, start=0.0)
    for drawn in (
        drawer(at_once, catalog)(0),
        drawer(RAMPED, catalog)(120),
        drawer(RAMPED, catalog)(5000),
    ):
        np.testing.assert_array_equal(drawn.items, want.items)
        np.testing.assert_array_equal(drawn.vectors, want.vectors)
        np.testing.assert_array_equal(drawn.weights, want.weights)
