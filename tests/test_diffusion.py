"""GDNSM's source of negatives inside the step of a real recommender."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ABSENT, MESHES, make_catalog, some
from generated import LEAST, QUICK, start, with_generated
from training import numbers

from neggen_jax.errors import InputError
from neggen_jax.models import ENCODERS
from neggen_jax.negatives import diffusion
from neggen_jax.negatives.difficulty import ORDERS

# All items that lack a modality, and some that lack none.
SOME = sorted({0, 1, 2, *ABSENT["text"], *ABSENT["image"]})
# From easy to hard.
LEVELS = ("text", "image", "text+image")


@functools.cache
def small(argument="mf", mesh=(1, 1), **part):
    """A run that tests share, because compiling takes seconds."""
    return start(with_generated(argument, part), mesh)


def largest(tree, beginning):
    """Largest magnitude of each leaf whose path begins so."""
    return {
        name: np.abs(value).max()
        for name, value in numbers(tree).items()
        if name.startswith(beginning)
    }


def some_pairs():
    """A batch of the items `SOME`, many times over."""
    items = np.resize(SOME, 64).astype(np.int32)
    return {"users": np.arange(64, dtype=np.int32) % 61, "items": items}


def with_features(it, name, rows, change):
    """The inputs, with some rows of one modality changed."""
    matrix = it.inputs.features[name]
    values = matrix.values.at[np.asarray(rows)].apply(change)
    features = {**it.inputs.features, name: matrix.replace(values=values)}
    return it.inputs.replace(features=features)


# Two trainings in one step


@pytest.mark.parametrize("encoder", some(ENCODERS, "lightgcn", "vbpr"))
def test_neither_trains_the_other(encoder):
    """With any encoder; that of VBPR has vectors of another width."""
    it = small(encoder, **LEAST)
    seen = it.see()
    dim = seen.encoded.users.shape[1]
    assert dim == (16 if encoder == "vbpr" else 8)
    assert seen.negatives.vectors.shape == (64, 1, dim)
    assert np.abs(seen.negatives.vectors).max(axis=-1).all()
    assert np.isfinite(seen.terms["loss"])

    own, rest = seen.gradients
    assert not any(largest(own, "['encoder']").values())
    assert not any(largest(rest, "['sources_generated']").values())
    # Each trains all that is its own, null embeddings among it.
    assert all(largest(rest, "['encoder']").values())
    trained = largest(own, "['sources_generated']")
    assert all(trained.values())
    assert sum("null_" in name for name in trained) == len(ABSENT)


def losses_with(recommender, inputs, batch, generated):
    """What trains the encoder, for generated negatives that are given."""
    encoded = recommender.encoder(inputs)
    sampled = recommender.sources["sampled"](encoded, inputs, batch, None)
    drawn = {"sampled": sampled, "generated": generated}
    return sum(
        weight * loss(encoded, batch, drawn)
        for weight, loss in recommender.losses.values()
    )


@pytest.mark.parametrize("encoder", ["mf", "mci"])
def test_gradients_are_finite_differences_with_the_other_held(encoder):
    """Central ones, along the gradient and along some other direction.

    To hold the generator is to take its negatives for numbers. To hold the
    encoder is to look at the generator's loss alone: though the other losses
    change with its parameters too, they have no gradient into them.
    """
    it = small(encoder, **LEAST)
    seen, params = it.see(), it.state.params
    program, pairs = it.run.program, it.batch(0)
    given = jax.tree.map(jnp.asarray, seen.negatives)
    keys = {"negatives": jax.random.fold_in(program.key(2), 0)}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def encoders(params):
        apply = nn.apply(losses_with, program.recommender)
        return apply({"params": params}, it.inputs, pairs, given, rngs=keys)

    def terms(params):
        return it.see(state=it.state.replace(params=params)).terms

    def generators(params):
        return terms(params)["generated/denoiser"]

    np.testing.assert_allclose(
        encoders(params),
        seen.terms["loss"] - seen.terms["generated/denoiser"],
        rtol=1e-6,
    )
    gradient = jax.tree.map(np.add, *seen.gradients)
    rng = np.random.default_rng(0)
    for part, loss in (
        ("encoder", encoders),
        ("sources_generated", generators),
    ):
        here = gradient[part]
        other = jax.tree.map(lambda x: rng.normal(size=x.shape), here)
        for way in (here, other):
            # So far that the loss moves by 1e-4 and more, of which float32
            # loses 1e-7; and so little that the square of the step, which is
            # the error of central differences, stays below that.
            size = optax.tree.norm(way)
            way = jax.tree.map(lambda x, s=size: 0.03 / s * x, way)
            ahead, behind = (
                {**params, part: jax.tree.map(np.add, params[part], move)}
                for move in (way, jax.tree.map(np.negative, way))
            )
            np.testing.assert_allclose(
                (float(loss(ahead)) - float(loss(behind))) / 2,
                optax.tree.vdot(here, way),
                rtol=3e-3,
            )
    assert terms(ahead)["generated"] != terms(behind)["generated"]


def test_a_group_of_its_own_freezes_exactly_the_generator():
    """And mixed precision keeps parameters, moments and losses in float32."""
    config = with_generated("mf", LEAST, train__dtype="bfloat16")
    with config.unlocked():
        config.optimizer.groups.sources_generated = {"learning_rate": 0.0}
    it = start(config)
    step = jax.jit(it.run.program.step, compiler_options=QUICK)
    state, terms = step(it.state, it.inputs, it.batch(0))
    kinds = {x.dtype for x in jax.tree.leaves((state.params, state.opt_state))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert all(np.isfinite(value) for value in terms.values())
    assert terms["generated/denoiser"].dtype == jnp.float32
    before, after = numbers(it.state.params), numbers(state.params)
    for name, value in after.items():
        same = (value == before[name]).all()
        assert same == name.startswith("['sources_generated']"), name
    # Of bfloat16: parameters and features lose what is beyond their eighth
    # bit, and a few layers of that stay within a few hundredths.
    whole = small("mf", **LEAST).see().terms
    for name in ("bpr", "generated", "generated/denoiser"):
        assert terms[name] != whole[name]
        np.testing.assert_allclose(terms[name], whole[name], rtol=0.03)


# What it reads


def test_what_an_item_lacks_is_never_read():
    it = small()
    want = it.see(9, batch=some_pairs())
    for name, rows in ABSENT.items():
        given = with_features(it, name, rows, lambda x: x + 1000)
        got = it.see(9, batch=some_pairs(), inputs=given)
        for path, value in numbers(got).items():
            np.testing.assert_array_equal(
                value, numbers(want)[path], err_msg=path
            )


def test_what_an_item_has_is_read_by_the_levels_that_have_it():
    it = small()
    want = it.see(12, batch=some_pairs())
    items = np.resize(SOME, 64)
    for name, rows in ABSENT.items():
        given = with_features(it, name, np.arange(41), lambda x: x * 1.1)
        got = it.see(12, batch=some_pairs(), inputs=given)
        loss = "generated/denoiser"
        assert got.terms[loss] != want.terms[loss]
        changed = (got.negatives.vectors != want.negatives.vectors).any(-1)
        reads = np.repeat([name in level for level in LEVELS], 2)
        has = ~np.isin(items, rows)
        np.testing.assert_array_equal(changed, has[:, None] & reads)


def test_users_are_told_apart():
    it = small()
    want = it.see(12, batch=some_pairs()).negatives.vectors
    pairs = some_pairs()
    pairs["users"] = pairs["users"].copy()
    pairs["users"][7] = 60
    got = it.see(12, batch=pairs).negatives.vectors
    changed = (got != want).all(axis=(1, 2))
    np.testing.assert_array_equal(changed, np.arange(64) == 7)


def test_one_modality_makes_two_levels():
    """The user alone, and the user with the item's text."""
    catalog = make_catalog()
    text = {"text": catalog.features["text"]}
    catalog = dataclasses.replace(catalog, features=text)
    config = with_generated("mf", {"samples": 1})
    it = start(config, catalog=catalog)
    want = it.see(8, batch=some_pairs())
    assert want.negatives.vectors.shape == (64, 2, 8)
    names = {n.rpartition("/")[2] for n in want.terms if "/score/" in n}
    assert names == {"1-user", "2-text", "positive", "uniform"}
    given = with_features(it, "text", np.arange(41), lambda x: x * 1.1)
    got = it.see(8, batch=some_pairs(), inputs=given)
    changed = (got.negatives.vectors != want.negatives.vectors).any(-1)
    has = ~np.isin(np.resize(SOME, 64), ABSENT["text"])
    assert not changed[:, 0].any()
    np.testing.assert_array_equal(changed[:, 1], has)


def test_modalities_that_are_not_there_are_refused():
    catalog = dataclasses.replace(make_catalog(), features={})
    with pytest.raises(InputError) as caught:
        start(with_generated("mf", {}), catalog=catalog)
    assert "'tiny'" in caught.value.where
    assert caught.value.expected == "at least one modality"
    with pytest.raises(InputError) as caught:
        start(with_generated("mf", {"modalities": ("text", "smell")}))
    assert caught.value.expected == "some of image, text, once"
    assert caught.value.found == ("text", "smell")


def test_more_steps_than_the_process_has_are_refused():
    with pytest.raises(InputError) as caught:
        start(with_generated("mf", {**LEAST, "steps": 7, "timesteps": 6}))
    assert caught.value.where == "config.negatives.generated.steps"
    assert caught.value.expected == "at most timesteps, 6"
    assert caught.value.found == 7


# When negatives are let in


def test_the_first_are_let_in_and_no_further_level_is_drawn():
    it = small()
    counts = []
    for step in range(16):
        seen = it.see(step)
        count = int(seen.terms["generated/admitted"])
        want = np.broadcast_to(np.arange(6) < count, (64, 6))
        np.testing.assert_array_equal(seen.negatives.weights, want)
        # A level is drawn whole, or is zeros and costs nothing.
        drawn = (seen.negatives.vectors != 0).any(axis=-1)
        want = np.broadcast_to(np.arange(6) < 2 * -(-count // 2), (64, 6))
        np.testing.assert_array_equal(drawn, want)
        counts.append(count)
    assert counts == [0] * 4 + [2, 2, 3, 3, 4, 4, 5, 5] + [6] * 4
    assert it.see(3).terms["generated"] == 0


def test_more_negatives_leave_the_first_as_they_are():
    """Of the same random key, whether or not harder ones follow.

    Random numbers are counted along the negatives (jax' threefry, which is
    partitionable by default, does so), and each depends on its own alone.
    """
    it = small()
    every = it.see(12).negatives.vectors
    for step, drawn in ((4, 2), (6, 4), (8, 4), (10, 6)):
        some = it.see(step).negatives.vectors[:, :drawn]
        # Branches of the program are compiled one by one, and may fuse the
        # same products in other ways: some roundings of numbers below 10.
        np.testing.assert_allclose(some, every[:, :drawn], rtol=0, atol=1e-5)
        assert some.all()


# M = 10; and one linear layer in one step, which compiles sooner.
FALLING = {
    "order": "falling",
    "samples": 10,
    "start": 10.0,
    "eta": 0.0,
    "steps": 1,
    "hidden": 0,
}
RANDOM = {"order": "random", "first": ("image",), "samples": 1}


def test_many_samples():
    """Each is let in by itself, and its level is drawn whole."""
    it = small(**FALLING)
    for step in (9, 10, 11, 17, 20, 21, 29, 30, 31):
        count = min(step, 30) if step >= 10 else 0
        seen = it.see(step)
        assert seen.terms["generated/admitted"] == count
        want = np.broadcast_to(np.arange(30) < count, (64, 30))
        np.testing.assert_array_equal(seen.negatives.weights, want)
        drawn = (seen.negatives.vectors != 0).any(axis=-1).sum(axis=1)
        np.testing.assert_array_equal(drawn, 10 * -(-count // 10))
    # What weighs nothing has no part in the loss.
    seen = it.see(17)
    pairs = it.batch(0)
    users, items = (
        getattr(seen.encoded, name)[pairs[name]] for name in ("users", "items")
    )
    gap = seen.negatives.vectors[:, :17] - items[:, None]
    gap = np.einsum("bd,bkd->bk", users, gap, dtype=np.float64)
    np.testing.assert_allclose(
        # Some hundred roundings of terms of size one.
        seen.terms["generated"],
        np.logaddexp(0, gap).mean(),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("part", "levels"),
    [
        ({}, LEVELS),
        (FALLING, LEVELS[::-1]),
        (RANDOM, ("image", "text", "text+image")),
    ],
    ids=ORDERS,
)
def test_orders(part, levels):
    """Which modalities a place depends on says which level stands there."""
    it = small(**part)
    want = it.see(30)
    vectors = want.negatives.vectors
    samples = vectors.shape[1] // 3
    for name in ABSENT:
        given = with_features(it, name, np.arange(41), lambda x: x * 1.1)
        got = it.see(30, inputs=given).negatives.vectors
        changed = (got != vectors).any(axis=(0, 2))
        reads = np.repeat([name in level for level in levels], samples)
        np.testing.assert_array_equal(changed, reads)
    # Labels go with the levels, and are counted from the easiest.
    users = want.encoded.users[it.batch(0)["users"]]
    scores = np.einsum("bd,bqd->q", users, vectors) / len(vectors)
    scores = scores.reshape(3, samples).mean(axis=1)
    way = -1 if part is FALLING else 1
    for number, level in enumerate(levels[::way], 1):
        # Means of some hundred numbers of size one.
        np.testing.assert_allclose(
            want.terms[f"generated/score/{number}-{level}"],
            scores[::way][number - 1],
            atol=1e-5,
        )


def test_in_random_order_any_is_let_in_first():
    it = small(**RANDOM)
    chosen = []
    for step, count in ((3, 0), (4, 1), (8, 2), (12, 3)):
        for draw in range(20):
            seen = it.see(step, draw=draw)
            weights = seen.negatives.weights
            # The same of all pairs, and drawn.
            assert (weights == weights[0]).all()
            assert weights[0].sum() == count
            assert set(weights.ravel()) <= {0, 1}
            assert seen.negatives.vectors[weights > 0].any(axis=-1).all()
            if count == 1:
                chosen.append(int(weights[0].argmax()))
    # Twenty draws leave one of three out once in a thousand times.
    assert set(chosen) == {0, 1, 2}


# Where it runs

BANK = {"samples": 1, "bank": 3}


def bank(seen):
    """The tables, and how many count."""
    (kept,) = seen.variables["bank"]["sources_generated"].values()
    return kept["vectors"], kept["valid"]


@pytest.mark.parametrize(
    ("part", "mesh"),
    [
        (BANK, (4, 2)),
        *(
            pytest.param(part, mesh, marks=pytest.mark.slow)
            for part in (BANK, {})
            for mesh in MESHES[1:]
        ),
    ],
)
def test_every_mesh_does_the_same(part, mesh):
    """Embeddings, negatives, losses, gradients, bank, over two steps.

    Random numbers are the same; sums of some hundred terms are taken in
    another order: ten roundings, and guidance and the way back from noise
    weigh them by ten or so. (2e-6 was seen.)
    """
    seen = []
    for it in (small("mf", **part), small("mf", mesh, **part)):
        first = it.see(11)
        state = it.state.replace(variables=first.variables)
        second = it.see(12, state, batch=it.batch(1), draw=1)
        seen.append((numbers(first), numbers(second)))
    for one, other in zip(*seen, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            # Tables are padded where they are cut, and padding stays zero.
            got, want = np.atleast_1d(other[name], value)
            got, padding = got[: len(want)], got[len(want) :]
            assert not padding.any()
            np.testing.assert_allclose(
                got,
                want,
                rtol=0,
                atol=1e-5 * np.abs(want).max(initial=0),
                err_msg=name,
            )


def test_a_bank_keeps_what_was_drawn_for_one_pair_in_three():
    it = small(**BANK)
    users = np.asarray(it.batch(0)["users"])
    none = it.see(3)
    assert not any(table.any() for table in bank(none))
    assert not none.negatives.weights.any()

    early = it.see(8)
    vectors, valid = bank(early)
    drawn = np.isin(np.arange(61), users[::3])
    np.testing.assert_array_equal(valid, 2 * drawn)
    known = drawn[users]
    assert 0 < known.sum() < len(known)
    np.testing.assert_array_equal(
        early.negatives.weights, known[:, None] & (np.arange(3) < 2)
    )
    assert early.negatives.vectors[known][:, :2].all()
    np.testing.assert_allclose(
        early.negatives.vectors,
        vectors[users] * early.terms["generated/scale"],
        rtol=1e-6,
    )

    # Four steps later all three are let in, of whoever has them.
    state = it.state.replace(variables=early.variables)
    late = it.see(12, state, batch=it.batch(1), draw=1)
    others = np.asarray(it.batch(1)["users"])
    anew = np.isin(np.arange(61), others[::3])
    vectors_then, valid = bank(late)
    np.testing.assert_array_equal(valid, np.where(anew, 3, 2 * drawn))
    assert (drawn & ~anew).any()
    np.testing.assert_array_equal(vectors_then[~anew], vectors[~anew])
    assert vectors_then[anew].all()
    np.testing.assert_array_equal(
        late.negatives.weights, np.arange(3) < valid[others][:, None]
    )


def test_of_several_counterfactuals_one_that_is_there_is_told():
    there = np.tile([[1, 0, 1], [0, 1, 0], [0, 0, 0]], (1000, 1)).astype(bool)
    drawn = np.asarray(diffusion.one_that_is(jax.random.key(0), there))
    counts = [np.bincount(drawn[k::3], minlength=3) for k in range(3)]
    assert counts[1].tolist() == [0, 1000, 0]
    assert counts[0][1] == 0
    assert counts[2].sum() == 1000
    # Five standard deviations of a fair coin.
    assert abs(counts[0][0] - 500) < 80
