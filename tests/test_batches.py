"""Batches as a pure function of (seed, step): properties of the stream."""

import dataclasses
import itertools
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neggen_jax.data import order
from neggen_jax.data.batches import (
    PIPELINES,
    Schedule,
    Stream,
    make_stream,
    numpy_batches,
    prefetched,
    tf_batches,
)
from neggen_jax.data.order import (
    by_age,
    count_parts,
    hashed,
    permute,
    stream_order,
)
from neggen_jax.errors import InputError
from neggen_jax.ops import native

SEEDS = st.integers(0, 2**32 - 1)


def permutation(size, key):
    keys = np.full(size, key, np.uint32)
    return permute(np.arange(size, dtype=np.int64), keys, size)


def some_stream(interactions=103, batch_size=8, stack=3, seed=0, **options):
    """Distinct users, so that a row of a batch says which one it is."""
    users = np.arange(interactions, dtype=np.int32)
    return Stream(
        users=users,
        items=users % 17,
        batch_size=batch_size,
        seed=seed,
        schedule=Schedule.make(interactions, batch_size, stack),
        **options,
    )


def take(stream, dispatches, first=0, pipeline=numpy_batches):
    return list(itertools.islice(pipeline(stream, first), dispatches))


def steps(stream, number):
    """The first steps one by one, as training runs them."""
    stacks, out = numpy_batches(stream), []
    for dispatch, stack in enumerate(stacks):
        count = stream.schedule.count(dispatch)
        out.extend(stack["users"][:count])
        if len(out) >= number:
            return np.stack(out[:number])


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name, column in one.items():
            assert column.dtype == other[name].dtype
            np.testing.assert_array_equal(column, other[name])


def test_permute_is_a_bijection_of_every_small_range():
    for size in range(1, 301):
        order = permutation(size, size * 7)
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


@given(st.integers(1, 70_000), SEEDS)
@settings(max_examples=40)
def test_permute_is_a_bijection(size, key):
    order = permutation(size, key)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_permute_reaches_past_32_bits():
    size = 2**33 + 12345
    index = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    out = permute(index, np.full(index.shape, 5, np.uint32), size)
    assert len(np.unique(out)) == len(index)
    assert 0 <= out.min() < 2**30
    assert size - 2**30 < out.max() < size


@pytest.mark.skipif(not native.available(), reason="there is no C++ compiler")
@given(
    st.lists(st.integers(1, 2**34), min_size=1, max_size=5), SEEDS, st.data()
)
def test_permute_is_the_same_without_a_compiler(sizes, seed, data):
    """Also where the ranges differ, and there is more than one block."""
    # Not much smaller than another.
    sizes = np.maximum(sizes, max(sizes) // 2 + 1)[:, None]
    rng = np.random.default_rng(seed)
    count = data.draw(st.sampled_from([1, 300, 2500]))
    index = rng.integers(0, sizes, (len(sizes), count))
    keys = rng.integers(0, 2**32, index.shape, np.uint32)
    out = permute(index, keys, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "load", lambda: None)
        np.testing.assert_array_equal(out, permute(index, keys, sizes))


def test_orders_are_those_that_runs_were_begun_with():
    """Whoever changes these counts `batches.ORDER` on."""
    some = np.arange(4)
    for start, expected in (
        (0, [333, 640, 229, 531]),
        (2**33, [967, 155, 466, 272]),
    ):
        found = stream_order(start, some, 7, 1000, 1, 4)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        hashed(2**33, some[:2], 7, 1),
        [3722146112794337152, 2296091078305632268],
    )


def test_permutations_look_random():
    """Where an index goes, and what follows it, over many keys."""
    size = 24
    orders = np.stack([permutation(size, key) for key in range(2400)])
    for index in (0, 1, 11, 23):
        counts = np.bincount(orders[:, index], minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-4
    step = (orders[:, 1:] - orders[:, :-1]) % size
    counts = np.bincount(step.ravel(), minlength=size)[1:]
    assert stats.chisquare(counts).pvalue > 1e-4


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9), SEEDS)
@settings(max_examples=60)
def test_each_pass_covers_every_interaction_once(size, batch, stack, seed):
    stream = some_stream(size, batch, stack, seed)
    order = steps(stream, -(-3 * size // batch)).ravel()[: 3 * size]
    for run in order.reshape(3, size):
        np.testing.assert_array_equal(np.sort(run), np.arange(size))


def test_passes_and_seeds_differ():
    orders = []
    for seed in (0, 1, 2**32 - 1):
        order = stream_order(0, np.arange(2000), seed, 1000)
        orders.extend(order.reshape(2, 1000))
    for left, right in itertools.combinations(orders, 2):
        # Two unrelated orders agree in one place on average.
        assert (left == right).sum() < 10


def test_a_pass_is_not_another_seeds_pass():
    """Keys mix the seed and the pass; they do not add up."""
    passes = {
        tuple(stream_order(64 * number, np.arange(64), seed, 64))
        for seed in range(20)
        for number in range(20)
    }
    assert len(passes) == 400


def test_users_and_items_stay_together():
    stream = some_stream()
    for stack in take(stream, 10):
        np.testing.assert_array_equal(stack["items"], stack["users"] % 17)
        assert stack["items"].dtype == stack["users"].dtype == np.int32


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_starting_anywhere_equals_skipping_to_it(pipeline):
    stream = some_stream(seed=3)
    whole = take(stream, 14, pipeline=pipeline)
    for first in (1, 4, 5, 9):
        rest = take(stream, 14 - first, first, pipeline)
        assert_same(rest, whole[first:])


@pytest.mark.parametrize(
    ("size", "batch", "stack", "seed"),
    [(103, 8, 3, 0), (1, 1, 1, 7), (4097, 64, 16, 2**32 - 1), (5, 16, 4, 1)],
)
@pytest.mark.parametrize("parts", [1, 4])
def test_both_pipelines_agree_bit_for_bit(size, batch, stack, seed, parts):
    rng = np.random.default_rng(0)
    tables = {
        "vectors": rng.normal(size=(17, 2, 3)).astype(np.float32),
        "flags": rng.random(17) < 0.5,
    }
    stream = some_stream(
        size,
        batch,
        stack,
        seed,
        item_tables=tables,
        parts=min(parts, batch, size),
    )
    for first in (0, 3, 1_000_003):
        left = take(stream, 5, first)
        assert_same(left, take(stream, 5, first, tf_batches))


def test_item_tables_give_the_rows_of_the_items():
    table = np.random.default_rng(0).normal(size=(17, 2, 3))
    stream = some_stream(item_tables={"vectors": table})
    for stack in take(stream, 4):
        assert stack["vectors"].shape == (*stack["items"].shape, 2, 3)
        np.testing.assert_array_equal(stack["vectors"], table[stack["items"]])


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_shares_of_processes_make_up_the_batch(pipeline, parts):
    options = {"batch_size": 12, "parts": parts}
    whole = take(some_stream(**options), 6, pipeline=pipeline)
    shares = [
        take(some_stream(**options, places=mine), 6, pipeline=pipeline)
        # The last but one has places of two parts that are not neighbours.
        for mine in np.split(np.arange(12), (2, 7, 8))
    ]
    together = [
        {k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(together, whole)


@given(st.integers(1, 300), st.sampled_from([2, 4, 8]), SEEDS)
@settings(max_examples=40)
def test_each_part_fills_its_own_places(size, parts, seed):
    """With all of its interactions, pass after pass."""
    stream = some_stream(size + 8, 8, 3, seed, parts=parts)
    share, epoch = 8 // parts, stream.schedule.steps_per_epoch
    order = steps(stream, 2 * epoch)
    bounds = (size + 8) * np.arange(parts + 1) // parts
    for part in range(parts):
        own = order[:, part * share : (part + 1) * share].ravel()
        first, last = bounds[part : part + 2]
        every = np.arange(first, last)
        for done in range(len(own) // len(every)):
            run = own[done * len(every) : (done + 1) * len(every)]
            np.testing.assert_array_equal(np.sort(run), every)
        # No epoch leaves anything out.
        assert set(own[: epoch * share]) == set(every)


def test_a_process_holds_the_parts_of_its_places_alone():
    for places, kept in (
        (np.arange(4), [0, 1]),
        (np.arange(5, 8), [2, 3]),
        (np.array([0, 6]), [0, 3]),
    ):
        stream = some_stream(400, 8, parts=4, places=places)
        (users, items), at = stream.held, stream.positions(0)
        want = np.concatenate([np.arange(100 * n, 100 * n + 100) for n in kept])
        np.testing.assert_array_equal(users, want)
        np.testing.assert_array_equal(items, want % 17)
        np.testing.assert_array_equal(users[at][0] // 100, places // 2)
    # Neighbours are no copy, so nothing of a mapped file is read for them.
    stream = some_stream(400, 8, parts=4, places=np.arange(4))
    assert np.shares_memory(stream.held[0], stream.users)


@given(st.integers(1, 10**10), st.integers(1, 10**6))
def test_parts_are_large_and_divide_the_batch(interactions, batch):
    parts = count_parts(interactions, batch)
    assert batch % parts == 0
    assert parts == 1 or interactions // parts >= 65_536
    assert count_parts(10**9, 8192) == 256
    assert count_parts(10**5, 8192) == 1


def test_parts_do_not_share_their_orders():
    orders = [
        tuple(stream_order(64 * number, np.arange(64), 3, 64, part, 4))
        for part in range(4)
        for number in range(20)
    ]
    assert len(set(orders)) == 80


def aged(interactions=40, half_life=300.0):
    """Times, and what interactions of these times weigh."""
    times = np.random.default_rng(0).integers(0, 1000, interactions)
    weights = by_age(times, half_life)
    exact = 2.0**20 * 0.5 ** ((times.max() - times) / half_life)
    np.testing.assert_allclose(weights, exact, atol=1)
    return weights


@pytest.mark.parametrize("parts", [1, 4])
def test_recent_interactions_are_drawn_more_often(parts):
    weights = aged()
    stream = some_stream(40, 64, parts=parts, cumulative=weights.cumsum())
    stacks = take(stream, 300)
    users = np.concatenate([stack["users"].ravel() for stack in stacks])
    counts = np.bincount(users, minlength=40)
    want = weights / weights.sum()
    if parts == 1:
        assert stats.chisquare(counts, want * len(users)).pvalue > 1e-4
    # Parts are of equal weight but for one interaction each.
    np.testing.assert_allclose(counts / len(users), want, rtol=0.3, atol=1e-3)
    other = some_stream(
        40, 64, seed=1, parts=parts, cumulative=weights.cumsum()
    )
    assert not np.array_equal(take(other, 1)[0]["users"], stacks[0]["users"])


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_draws_by_age_are_a_function_of_the_step(pipeline):
    options = {"batch_size": 12, "parts": 4, "cumulative": aged(103).cumsum()}
    whole = take(some_stream(**options), 9)
    assert_same(take(some_stream(**options), 9, 0, pipeline), whole)
    assert_same(take(some_stream(**options), 4, 5, pipeline), whole[5:])
    shares = [
        take(some_stream(**options, places=np.array(places)), 9, 0, pipeline)
        for places in ([0, 1, 8], [2, 3, 4, 5, 6, 7], [9, 10, 11])
    ]
    order = [0, 1, 8, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    for number, stack in enumerate(whole):
        got = np.concatenate([s[number]["users"] for s in shares], axis=1)
        np.testing.assert_array_equal(got, stack["users"][:, order])


def test_a_half_life_wants_times(catalog):
    with pytest.raises(InputError, match="by their age"):
        make_stream(catalog, 8, 3, 0, half_life=5.0)
    train = catalog.train
    times = np.arange(len(train), dtype=np.int64)
    timed = dataclasses.replace(
        catalog,
        splits=catalog.splits
        | {"train": dataclasses.replace(train, timestamps=times)},
    )
    with pytest.raises(InputError, match="by their age"):
        make_stream(timed, 8, 3, 0, half_life=-1.0)
    stream = make_stream(timed, 8, 3, 0, half_life=2.0)
    last = set(zip(train.users[-60:], train.items[-60:], strict=True))
    for stack in take(stream, 5):
        pairs = zip(stack["users"].flat, stack["items"].flat, strict=True)
        assert {*pairs} <= last


def test_a_batch_has_an_example():
    for batch in (0, -4):
        with pytest.raises(InputError, match="too small") as error:
            dataclasses.replace(some_stream(), batch_size=batch)
        assert error.value.where == "config.train.batch_size"


def test_the_stream_of_a_catalogue(catalog):
    stream = make_stream(catalog, 16, 4, seed=5)
    train = set(zip(catalog.train.users, catalog.train.items, strict=True))
    stack = next(numpy_batches(stream))
    drawn = set(zip(stack["users"].flat, stack["items"].flat, strict=True))
    assert drawn <= train
    assert stream.schedule.steps_per_epoch == -(-len(catalog.train) // 16)
    with pytest.raises(InputError):
        make_stream(catalog, 0, 4, seed=5)


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 40))
def test_a_schedule_covers_every_step_once(interactions, batch, stack):
    schedule = Schedule.make(interactions, batch, stack)
    epoch = schedule.steps_per_epoch
    assert (epoch - 1) * batch < interactions <= epoch * batch
    assert schedule.steps_per_dispatch <= stack
    # No more dispatches than the stack asks for, whatever their length.
    assert schedule.dispatches_per_epoch <= -(-epoch // stack)
    step = 0
    for dispatch in range(3 * schedule.dispatches_per_epoch):
        assert schedule.start(dispatch) == step
        assert schedule.dispatch(step) == dispatch
        assert 1 <= schedule.count(dispatch) <= schedule.steps_per_dispatch
        step += schedule.count(dispatch)
        # An epoch ends where a dispatch ends.
        done, within = divmod(step, epoch)
        assert within == 0 or dispatch // schedule.dispatches_per_epoch == done
    assert step == 3 * epoch


def test_no_dispatch_starts_between_two():
    schedule = Schedule(steps_per_epoch=10, steps_per_dispatch=4)
    starts = [schedule.start(dispatch) for dispatch in range(6)]
    assert starts == [0, 4, 8, 10, 14, 18]
    for step in set(range(20)) - set(starts):
        with pytest.raises(ValueError, match=f"at step {step}"):
            schedule.dispatch(step)


def test_a_thread_forms_what_comes_next():
    formed = []

    def batches():
        for number in itertools.count():
            formed.append(number)
            yield {"users": np.array([number])}

    ahead = prefetched(batches(), 2)
    assert int(next(ahead)["users"][0]) == 0
    deadline = time.monotonic() + 60
    while len(formed) < 3:
        assert time.monotonic() < deadline, "nothing was formed ahead"
        time.sleep(0.01)
    assert [int(next(ahead)["users"][0]) for _ in range(4)] == [1, 2, 3, 4]
    ahead.close()
    time.sleep(0.3)
    count = len(formed)
    # One in hand, two that wait, and one that found no room.
    assert 5 <= count <= 5 + 3
    time.sleep(0.3)
    assert len(formed) == count


def test_what_goes_wrong_in_the_thread_is_told():
    def batches():
        yield {"users": np.zeros(1)}
        raise OSError("the disk is gone")

    ahead = prefetched(batches())
    next(ahead)
    with pytest.raises(OSError, match="disk"):
        next(ahead)


def test_tensorflow_is_not_loaded_to_feed_numbers():
    code = """
        import sys
        from conftest import make_catalog
        from neggen_jax.data import batches
        stream = batches.make_stream(make_catalog(), 4, 2, 0)
        next(batches.PIPELINES["auto"](stream, 0))
        assert "tensorflow" not in sys.modules
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        cwd=Path(__file__).parent,
    )
