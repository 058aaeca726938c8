"""Losses against float64 NumPy, at extremes, and their errors."""

import functools

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax import losses
from neggen_jax.errors import InputError
from neggen_jax.losses import logits
from neggen_jax.models.causal import Effect
from neggen_jax.models.encoder import Encoded
from neggen_jax.negatives.source import Negatives, Shared

USERS, ITEMS, DIM, BATCH, COUNT = 9, 14, 6, 12, 4


def tables(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return tuple(
        (scale * rng.normal(size=(rows, DIM))).astype(np.float32)
        for rows in (USERS, ITEMS)
    )


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    batch = {
        "users": rng.integers(USERS, size=BATCH),
        "items": rng.integers(ITEMS, size=BATCH),
    }
    views = {"ego": tables(1), "text": tables(2), "image": tables(3, 2.0)}
    encoded = Encoded(*tables(0), views)
    items = rng.integers(ITEMS, size=(BATCH, COUNT)).astype(np.int32)
    return encoded, batch, items


def drawn(encoded, items, weights=None):
    weights = np.ones(items.shape, np.float32) if weights is None else weights
    return {"sampled": Negatives(encoded.items[items], weights, items)}


def in_float64(pair):
    return tuple(table.astype(np.float64) for table in pair)


def test_bpr(problem):
    encoded, batch, items = problem
    got = losses.bpr(encoded, batch, drawn(encoded, items))
    pair = in_float64((encoded.users, encoded.items))
    np.testing.assert_allclose(got, dense.bpr(*pair, batch, items), rtol=1e-6)


def test_bpr_of_a_view(problem):
    encoded, batch, items = problem
    got = losses.bpr(encoded, batch, drawn(encoded, items), view="text")
    pair = in_float64(encoded.views["text"])
    np.testing.assert_allclose(got, dense.bpr(*pair, batch, items), rtol=1e-6)


def test_bpr_scores_vectors_that_belong_to_no_item(problem):
    encoded, batch, items = problem
    vectors = encoded.items[items] + 1
    negatives = {"made": Negatives(vectors, np.ones(items.shape))}
    got = losses.bpr(encoded, batch, negatives, source="made")
    users, table = in_float64((encoded.users, encoded.items))
    positive = (users[batch["users"]] * table[batch["items"]]).sum(-1)
    negative = np.einsum("bd,bkd->bk", users[batch["users"]], vectors)
    want = dense.softplus(negative - positive[:, None]).mean()
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_softmax_of_each_pairs_own(problem):
    """Negatives count by their weights, and those of 0 not at all."""
    encoded, batch, items = problem
    weights = np.random.default_rng(3).uniform(size=items.shape)
    weights[:, 1] = 0
    weights[4] = 0
    negatives = drawn(encoded, items, weights.astype(np.float32))
    got = losses.softmax(encoded, batch, negatives, temperature=0.5)
    users, table = in_float64((encoded.users, encoded.items))
    users = users[batch["users"]]
    own = np.exp((users * table[batch["items"]]).sum(-1) / 0.5)
    others = np.exp(np.einsum("bd,bkd->bk", users, table[items]) / 0.5)
    total = own + (weights * others).sum(axis=1)
    np.testing.assert_allclose(got, -np.log(own / total).mean(), rtol=1e-5)


def test_softmax_of_one_negative_is_bpr(problem):
    encoded, batch, items = problem
    negatives = drawn(encoded, items[:, :1])
    np.testing.assert_allclose(
        losses.softmax(encoded, batch, negatives),
        losses.bpr(encoded, batch, negatives),
        rtol=1e-6,
    )


def test_softmax_of_shared_and_own_negatives(problem):
    """Shared by all pairs, they are what each has of its own."""
    encoded, batch, items = problem
    shared = Shared(
        items[0],
        np.zeros((BATCH, COUNT), bool),
        np.zeros(COUNT, np.float32),
        np.zeros(BATCH, np.float32),
    )
    mine = drawn(encoded, items)["sampled"]
    both = losses.softmax(
        encoded, batch, {"sampled": mine.replace(shared=shared)}
    )
    every = np.concatenate([items, np.tile(items[0], (BATCH, 1))], axis=1)
    want = losses.softmax(encoded, batch, drawn(encoded, every))
    np.testing.assert_allclose(both, want, rtol=1e-6)


def test_what_all_pairs_share_is_of_no_pair(problem):
    encoded, batch, items = problem
    none = drawn(encoded, items[:, :0])
    with pytest.raises(InputError, match="all pairs share"):
        losses.bpr(encoded, batch, none)
    # Their norms count where they are positives.
    assert losses.l2(encoded, batch, none) > 0


@pytest.mark.parametrize("loss", [losses.bpr, losses.l2])
def test_what_weighs_nothing_is_left_out(problem, loss):
    encoded, batch, items = problem
    weights = np.ones(items.shape, np.float32)
    weights[:, 1] = 0
    other = items.copy()
    other[:, 1] = (other[:, 1] + 1) % ITEMS

    def run(table, items):
        changed = encoded.replace(items=table)
        return loss(changed, batch, drawn(changed, items, weights))

    encoded = jax.tree.map(jnp.asarray, encoded)
    step = jax.jit(jax.value_and_grad(run))
    value, gradient = step(encoded.items, items)
    again, same = step(encoded.items, other)
    assert value == again
    np.testing.assert_array_equal(gradient, same)
    kept = np.delete(items, 1, axis=1)
    if loss is losses.bpr:
        # As if it had not been drawn at all.
        only = losses.bpr(encoded, batch, drawn(encoded, kept))
        np.testing.assert_allclose(value, only, rtol=1e-6)


def test_a_batch_without_negatives_costs_nothing(problem):
    encoded, batch, items = problem
    weights = np.zeros(items.shape, np.float32)
    assert losses.bpr(encoded, batch, drawn(encoded, items, weights)) == 0


@pytest.mark.parametrize("score", [-1e4, -60.0, 0.0, 60.0, 1e4])
def test_bpr_is_stable(score):
    """`-log(sigmoid(x))` overflows from about 88 on."""
    encoded = Encoded(jnp.ones((1, 1)), jnp.array([[score], [0.0]]), {})
    batch = {"users": np.zeros(1, int), "items": np.zeros(1, int)}

    def run(items):
        changed = encoded.replace(items=items)
        return losses.bpr(changed, batch, drawn(changed, np.ones((1, 1), int)))

    value, gradient = jax.jit(jax.value_and_grad(run))(encoded.items)
    np.testing.assert_allclose(value, dense.softplus(-score), rtol=1e-6)
    slope = -np.exp(-dense.softplus(score))
    np.testing.assert_allclose(gradient[:, 0], [slope, -slope], rtol=1e-5)


def test_means_are_in_float32(problem):
    """In bfloat16 257 weights would count as 256."""
    encoded, _, _ = problem
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), encoded)
    rows = np.zeros(257, int)
    batch = {"users": rows, "items": rows}
    items = np.ones((257, 1), int)
    weights = jnp.ones((257, 1), jnp.bfloat16)
    got = jax.jit(losses.bpr)(half, batch, drawn(half, items, weights))
    assert got.dtype == jnp.float32
    pair = (np.asarray(x, np.float64) for x in (half.users, half.items))
    np.testing.assert_allclose(got, dense.bpr(*pair, batch, items), rtol=1e-6)


def test_content_bpr_adds_views_up(problem):
    encoded, batch, items = problem
    negatives = drawn(encoded, items)
    text, image = (
        dense.bpr(*in_float64(encoded.views[name]), batch, items)
        for name in ("text", "image")
    )
    run = functools.partial(losses.content_bpr, encoded, batch, negatives)
    np.testing.assert_allclose(run(), text + image, rtol=1e-6)
    np.testing.assert_allclose(run(views=("image",)), image, rtol=1e-6)


def test_l2(problem):
    encoded, batch, items = problem
    weights = np.random.default_rng(1).random(items.shape).astype(np.float32)
    negatives = drawn(encoded, items, weights)
    for view in ("ego", ""):
        pair = encoded.views.get(view, (encoded.users, encoded.items))
        users, table = in_float64(pair)
        want = np.square(users[batch["users"]]).sum()
        want += np.square(table[batch["items"]]).sum()
        norms = np.square(table[items]).sum(-1)
        want += (norms * weights).sum() / COUNT
        got = losses.l2(encoded, batch, negatives, view=view)
        np.testing.assert_allclose(got, want / 2 / BATCH, rtol=1e-6)


def numpy_infonce(left, right, batch, temperature):
    total = 0
    for a, b, rows in zip(left, right, batch.values(), strict=True):
        a, b = a[rows].astype(np.float64), b[rows].astype(np.float64)
        a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-6)
        b /= np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-6)
        logits = a @ b.T / temperature
        top = logits.max(axis=1, keepdims=True)
        sums = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        total += (sums - np.diagonal(logits)).mean()
    return total


infonce = jax.jit(losses.infonce, static_argnames=("left", "right"))


# Both ways of summing exponentials, and where one takes over.
@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.0251, 0.0249, 0.002])
def test_infonce(problem, temperature):
    encoded, batch, items = problem
    # One user's two views point in opposite directions.
    views = {name: tuple(map(np.copy, v)) for name, v in encoded.views.items()}
    views["image"][0][3] = -views["text"][0][3]
    encoded = encoded.replace(views=views)
    got = losses.infonce(
        encoded,
        batch,
        drawn(encoded, items),
        left="text",
        right="image",
        temperature=temperature,
    )
    want = numpy_infonce(views["text"], views["image"], batch, temperature)
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize("temperature", [0.2, 0.002])
def test_infonce_by_chunks_is_the_same(problem, temperature, monkeypatch):
    """Also where there is no room for one anchor at a time."""
    encoded, batch, _ = problem

    def loss(views):
        some = encoded.replace(views=views)
        options = {"left": "text", "right": "image", "temperature": temperature}
        return losses.infonce(some, batch, {}, **options)

    want = jax.value_and_grad(loss)(encoded.views)
    for room in (BATCH * BATCH // 3, 1):
        monkeypatch.setattr(logits, "LIMIT", room)
        text = str(jax.make_jaxpr(loss)(encoded.views))
        assert f"f32[{BATCH},{BATCH}]" not in text
        got = jax.value_and_grad(loss)(encoded.views)
        jax.tree.map(
            # Roundings of logits, which are as large as 1 / temperature.
            lambda x, y: np.testing.assert_allclose(
                x, y, rtol=2e-6 / temperature, atol=1e-6
            ),
            got,
            want,
        )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=30)
def test_infonce_is_bounded(problem, seed, scale):
    _, batch, _ = problem
    views = {"text": tables(seed, scale), "image": tables(seed + 1, scale)}
    views["text"][1][seed % ITEMS] = 0
    encoded = Encoded(*tables(0), views)
    for left, right in (("text", "image"), ("text", "text")):
        value = infonce(encoded, batch, {}, left=left, right=right)
        # Cosines lie in [-1, 1]: between -log of a whole share, and all
        # others as near as can be while one's own is opposite.
        assert -1e-5 < value <= 2 * (np.log(BATCH) + 2 / 0.2)


def test_zero_rows_have_finite_gradients(problem):
    encoded, batch, _ = problem

    def run(text):
        views = {"text": text, "image": encoded.views["image"]}
        changed = encoded.replace(views=views)
        return losses.infonce(changed, batch, {}, left="text", right="image")

    text = tuple(map(np.copy, encoded.views["text"]))
    text[0][batch["users"][0]] = 0
    text[1][:] = 0
    value, gradient = jax.jit(jax.value_and_grad(run))(text)
    assert np.isfinite(value)
    for table in gradient:
        assert np.isfinite(table).all()
        assert np.abs(table).max() > 0


@pytest.mark.parametrize("name", ["bpr", "content_bpr", "l2"])
def test_an_unknown_source_is_refused_with_the_nearest(problem, name):
    encoded, batch, items = problem
    with pytest.raises(InputError, match="did you mean 'sampled'"):
        losses.LOSSES[name](
            encoded, batch, drawn(encoded, items), source="smapled"
        )


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("bpr", {"view": "txt"}),
        ("content_bpr", {"views": ("image", "txt")}),
        ("l2", {"view": "txt"}),
        ("infonce", {"left": "txt", "right": "image"}),
        ("infonce", {"left": "image", "right": "txt"}),
    ],
)
def test_an_unknown_view_is_refused_with_the_nearest(problem, name, keywords):
    encoded, batch, items = problem
    negatives = drawn(encoded, items)
    with pytest.raises(InputError, match="did you mean 'text'") as error:
        losses.LOSSES[name](encoded, batch, negatives, **keywords)
    assert error.value.where == "config.losses"


@pytest.mark.parametrize(
    ("name", "keywords"),
    [("bpr", {"view": "text"}), ("content_bpr", {}), ("l2", {})],
)
def test_tables_have_no_vectors_that_belong_to_no_item(problem, name, keywords):
    encoded, batch, items = problem
    made = {"sampled": Negatives(encoded.items[items], np.ones(items.shape))}
    with pytest.raises(InputError, match="stand in none"):
        losses.LOSSES[name](encoded, batch, made, **keywords)


def test_content_needs_views(problem):
    encoded, batch, items = problem
    bare = encoded.replace(views={"ego": encoded.views["ego"]})
    with pytest.raises(InputError, match="none but 'ego'"):
        losses.content_bpr(bare, batch, drawn(bare, items))


def effects(known, present):
    """Causal effects of the batch's items; an item's are the same each time."""
    rng = np.random.default_rng(7)
    c = rng.normal(size=(ITEMS, DIM)).astype(np.float32)
    counter = rng.normal(size=(ITEMS, COUNT, DIM)).astype(np.float32)
    return Effect(c, known, counter, present)


def aligned(encoded, batch, effect, temperature, others, anchor):
    """Alignment in float64, pair by pair."""

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    total, count = 0.0, 0
    c, counter, users, items = in_float64(
        (effect.factual, effect.counterfactual, encoded.users, encoded.items)
    )
    pairs = list(zip(batch["users"], batch["items"], strict=True))
    apart = pairs
    if 0 < others < len(pairs):
        apart = [pairs[n * len(pairs) // others] for n in range(others)]
    for u, i in pairs:
        present = effect.present[i]
        if not effect.known[i] or not (others or present.any()):
            continue
        e = users[u] if anchor == "user" else items[i]
        logits = [cosine(e, c[i])]
        logits += [cosine(e, x) for x in counter[i][present]]
        if others:
            logits += [
                cosine(e, c[j])
                for v, j in apart
                if j != i
                and effect.known[j]
                and not (anchor == "user" and v == u)
            ]
        logits = np.array(logits) / temperature
        total += np.log(np.exp(logits).sum()) - logits[0]
        count += 1
    return total / count


@pytest.mark.parametrize("others", [0, 3, 8, 1000])
@pytest.mark.parametrize("anchor", ["item", "user"])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_alignment(problem, others, anchor, temperature):
    encoded, batch, _ = problem
    present = np.random.default_rng(8).random((ITEMS, COUNT)) < 0.6
    known = present.any(axis=1)
    # One pair has an effect and no counterfactual, another has neither.
    present[batch["items"][:2]] = False
    known[batch["items"][1]] = False
    assert known[batch["items"][0]]
    # A user is there twice, with different items.
    batch["users"][2] = batch["users"][3]
    assert batch["items"][2] != batch["items"][3]
    given = effects(known, present)
    rows = jax.tree.map(lambda x: x[batch["items"]], given)
    made = Negatives(
        rows.counterfactual, rows.present.astype(np.float32), effect=rows
    )
    got = losses.alignment(
        encoded,
        batch,
        {"counterfactual": made},
        temperature=temperature,
        anchor=anchor,
        others=others,
    )
    want = aligned(encoded, batch, given, temperature, others, anchor)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_alignment_of_nothing_is_nothing(problem):
    encoded, batch, _ = problem
    effect = Effect(
        jnp.zeros((BATCH, DIM)),
        jnp.zeros(BATCH, bool),
        jnp.zeros((BATCH, COUNT, DIM)),
        jnp.zeros((BATCH, COUNT), bool),
    )

    def loss(effect):
        weights = effect.present.astype(jnp.float32)
        made = Negatives(effect.counterfactual, weights, effect=effect)
        return losses.alignment(encoded, batch, {"counterfactual": made})

    value, grads = jax.value_and_grad(loss, allow_int=True)(effect)
    assert value == 0
    assert not np.asarray(grads.factual).any()


def test_alignment_wants_effects(problem):
    encoded, batch, items = problem
    with pytest.raises(InputError, match="causal effects"):
        losses.alignment(
            encoded, batch, drawn(encoded, items), source="sampled"
        )


def bootstrapped(encoded, present=None):
    """What an encoder like BM3 gives: each view, and its target."""
    rest = {name: tables(n, 2.0) for n, name in enumerate(("target", "text"))}
    views = {**encoded.views, **rest}
    views["text_target"], views["image_target"] = tables(5), tables(6)
    return encoded.replace(views=views, present=present or {})


def kept(key, dropout):
    """Which entries of the batch's targets remain."""
    return np.asarray(jax.random.bernoulli(key, 1 - dropout, (BATCH, DIM)))


def cosines(x, y):
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return (x * y).sum(axis=1) / np.maximum(norms, 1e-30)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_bootstrap(problem, dropout):
    encoded, batch, _ = problem
    encoded, key = bootstrapped(encoded), jax.random.key(3)
    got = losses.bootstrap(encoded, batch, {}, key=key, dropout=dropout)
    users, items = batch["users"], batch["items"]
    online = in_float64((encoded.users[users], encoded.items[items]))
    met = in_float64(encoded.views["target"])
    masks = [kept(one, dropout) for one in jax.random.split(key)]
    targets = [
        table[ids] * mask
        for table, ids, mask in zip(met, (users, items), masks, strict=True)
    ]
    want = 2 - cosines(online[0], targets[1]) - cosines(online[1], targets[0])
    np.testing.assert_allclose(got, want.mean(), rtol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_content_bootstrap(problem, dropout):
    encoded, batch, _ = problem
    items, key = batch["items"], jax.random.key(4)
    there = np.ones((ITEMS, 1), np.float32)
    there[items[:3]] = 0
    encoded = bootstrapped(encoded, {"text": there})
    run = functools.partial(
        losses.content_bootstrap, encoded, batch, {}, dropout=dropout
    )
    views = {k: in_float64(v)[1][items] for k, v in encoded.views.items()}
    masks = [kept(one, dropout) for one in jax.random.split(key, 3)]
    item = views["target"] * masks[0]
    terms = {}
    for name, mask in zip(("image", "text"), masks[1:], strict=True):
        own = views[f"{name}_target"] * mask
        apart = 2 - cosines(views[name], item) - cosines(views[name], own)
        known = there[items, 0] if name == "text" else np.ones(BATCH)
        terms[name] = (apart * known).sum() / known.sum()
    np.testing.assert_allclose(run(key=key), sum(terms.values()), rtol=1e-6)
    if dropout == 0:
        np.testing.assert_allclose(
            run(key=key, views=("image",)), terms["image"], rtol=1e-6
        )


def test_targets_have_no_gradient(problem):
    encoded, batch, _ = problem
    encoded = jax.tree.map(jnp.asarray, bootstrapped(encoded))

    def loss(encoded):
        key = jax.random.key(0)
        return losses.bootstrap(encoded, batch, {}, key=key) + (
            losses.content_bootstrap(encoded, batch, {}, key=key)
        )

    gradient = jax.jit(jax.grad(loss))(encoded)
    for name, pair in gradient.views.items():
        # Of modalities, items predict.
        moved = name in ("text", "image")
        assert not np.asarray(pair[0]).any()
        assert np.asarray(pair[1]).any() == moved, name
    assert np.asarray(gradient.users).any()
    assert np.asarray(gradient.items).any()


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.95))
@settings(max_examples=20, deadline=None)
def test_bootstraps_lie_between_0_and_4(problem, seed, dropout):
    encoded, batch, _ = problem
    none = np.zeros((ITEMS, 1), np.float32)
    encoded = bootstrapped(encoded, {"image": none})
    key = jax.random.key(seed)
    value = losses.bootstrap(encoded, batch, {}, key=key, dropout=dropout)
    assert -1e-5 <= value <= 4 + 1e-5
    # Where no item has a modality, it costs nothing.
    run = functools.partial(
        losses.content_bootstrap, encoded, batch, {}, key=key, dropout=dropout
    )
    assert run(views=("image",)) == 0
    assert -1e-5 <= run(views=("text",)) <= 4 + 1e-5


@pytest.mark.parametrize("loss", ["bootstrap", "content_bootstrap"])
def test_bootstraps_want_targets(problem, loss):
    encoded, batch, _ = problem
    key = jax.random.key(0)
    with pytest.raises(InputError, match="'target', which the encoder lacks"):
        losses.LOSSES[loss](encoded, batch, {}, key=key)


def test_l2_of_pairs_alone(problem):
    encoded, batch, _ = problem
    users, table = in_float64(encoded.views["text"])
    want = np.square(users[batch["users"]]).sum()
    want += np.square(table[batch["items"]]).sum()
    got = losses.l2(encoded, batch, {}, source="", view="text")
    np.testing.assert_allclose(got, want / 2 / BATCH, rtol=1e-6)


def test_bpr_of_positives_with_a_score_of_their_own(problem):
    encoded, batch, items = problem
    rng = np.random.default_rng(9)
    own = rng.normal(size=(BATCH, DIM)).astype(np.float32)
    made = drawn(encoded, items)["sampled"].replace(positives=own)
    got = losses.bpr(encoded, batch, {"sampled": made})
    users, table = in_float64((encoded.users, encoded.items))
    left = users[batch["users"]]
    positive = (left * own).sum(-1, keepdims=True)
    negative = np.einsum("bd,bkd->bk", left, table[items])
    want = dense.softplus(negative - positive).mean()
    np.testing.assert_allclose(got, want, rtol=1e-6)
