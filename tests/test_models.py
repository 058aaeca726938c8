"""Encoders against dense float64 ones, on every mesh.

Each reference is written from the paper and takes the encoder's parameters;
gradients are checked against central differences of the float64 loss, whose
own error is far below float32's.
"""

import dataclasses
import functools

import dense
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SOME_MESHES, on_mesh, some
from dense_encoders import KEYWORDS, NUMPY, numpy_mci
from flax.core import FrozenDict
from scipy import stats

from neggen_jax import losses
from neggen_jax.data.inputs import Needs, build, sizes
from neggen_jax.errors import InputError
from neggen_jax.models import ENCODERS, FREEDOM, MCI
from neggen_jax.negatives.catalogue import at_items

DIM, BATCH, COUNT = 8, 64, 3
# Those with layers of their own.
DEEP = "bm3", "mgcn", "smore"
# Biases that move all items alike.
CANCELLED = dict.fromkeys(ENCODERS, ()) | {
    "vbpr": ("projection/bias",),
    "freedom": ("image/bias", "text/bias"),
    "bm3": ("embed_image/bias", "embed_text/bias"),
}


def pairs(catalog):
    """A batch and its negatives; which ones is of no importance here."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(catalog.train), size=BATCH)
    batch = {
        "users": catalog.train.users[rows],
        "items": catalog.train.items[rows],
    }
    negatives = rng.integers(catalog.num_items, size=(BATCH, COUNT))
    return batch, negatives.astype(np.int32)


def loss(encoded, batch, negatives):
    """Reads everything that the encoder gives."""
    drawn = {"sampled": at_items(encoded, negatives, batch)}
    total = losses.bpr(encoded, batch, drawn)
    for name in encoded.views:
        total += losses.bpr(encoded, batch, drawn, view=name)
    return total


def numpy_loss(name, params, catalog):
    batch, negatives = pairs(catalog)
    users, items, views = NUMPY[name](params, catalog)
    # VBPR's free embeddings are its final ones.
    ego = params["users"], params["items"]
    ego = (users, items) if name == "vbpr" else ego
    tables = [(users, items), ego, *views.values()]
    return sum(dense.bpr(*pair, batch, negatives) for pair in tables)


def make(name, size, **changes):
    return ENCODERS[name](size, DIM, **{**KEYWORDS[name], **changes})


@functools.cache
def computed(catalog, data, model):
    """Parameters, embeddings, losses and gradients of all, on one mesh."""
    partition = on_mesh(data, model)
    size = sizes(catalog, partition)
    models = {name: make(name, size) for name in ENCODERS}
    inputs = {
        name: build(catalog, module.needs(), partition)
        for name, module in models.items()
    }

    def init(inputs):
        return {
            name: module.init(jax.random.key(1), inputs[name])["params"]
            for name, module in models.items()
        }

    @jax.jit
    def run(params, inputs, batch, negatives):
        out = {}
        for name, module in models.items():

            def total(params, module=module, inputs=inputs[name]):
                encoded = module.apply({"params": params}, inputs)
                return loss(encoded, batch, negatives), encoded

            out[name] = jax.value_and_grad(total, has_aux=True)(params[name])
        return out

    shardings = partition.tree_shardings(jax.eval_shape(init, inputs))
    params = jax.jit(
        lambda inputs: nn.unbox(init(inputs)), out_shardings=shardings
    )(inputs)
    batch, negatives = pairs(catalog)
    out = run(params, inputs, batch, negatives)
    return jax.device_get(params), jax.device_get(out)


def trimmed(tree, catalog):
    """Tables without the rows that pad them on some meshes."""

    def trim(path, leaf):
        names = [getattr(part, "key", "") for part in path]
        if names[-1] == "users":
            return leaf[: catalog.num_users]
        if names[-1] == "items" or names[-1].endswith("_features"):
            return leaf[: catalog.num_items]
        return leaf

    return jax.tree_util.tree_map_with_path(trim, tree)


def in_float64(tree, catalog):
    return jax.tree.map(lambda x: x.astype(np.float64), trimmed(tree, catalog))


@pytest.mark.parametrize("name", ENCODERS)
def test_equals_the_dense_reference(name, catalog):
    params, out = computed(catalog, 1, 1)
    (value, encoded), _ = out[name]
    reference = in_float64(params[name], catalog)
    users, items, views = NUMPY[name](reference, catalog)
    # Sums of at most a few dozen terms below 1, in float32.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
    close(encoded.users, users)
    close(encoded.items, items)
    assert set(encoded.views) == {"ego", *views}
    for view, (left, right) in views.items():
        close(encoded.views[view][0], left)
        close(encoded.views[view][1], right)
    np.testing.assert_allclose(
        value, numpy_loss(name, reference, catalog), rtol=1e-6
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_equal_central_differences(name, catalog):
    params, out = computed(catalog, 1, 1)
    reference, gradient = in_float64(params[name], catalog), out[name][1]
    rng = np.random.default_rng(0)
    leaves = jax.tree_util.tree_leaves_with_path(reference)
    for (path, leaf), got in zip(
        leaves, jax.tree.leaves(gradient), strict=True
    ):
        # Along one random direction in each parameter.
        direction = rng.normal(size=leaf.shape)
        start, ends = leaf.copy(), []
        for step in (1e-5, -1e-5):
            leaf[...] = start + step * direction
            ends.append(numpy_loss(name, reference, catalog))
        leaf[...] = start
        want = (ends[0] - ends[1]) / 2e-5
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if where in CANCELLED[name]:
            # A pairwise loss is a function of differences between items.
            assert abs(want) < 1e-9
            np.testing.assert_allclose(got, 0, atol=1e-7)
        else:
            # Attention to what hardly differs yet moves little.
            assert abs(want) > (1e-8 if name in DEEP else 1e-4)
            size = np.abs(got * direction).sum()
            # Central differences of a loss of about 4 end at its roundings.
            error = abs((got * direction).sum() - want)
            assert error < 1e-6 * size + 2e-10


@pytest.mark.parametrize("mesh", SOME_MESHES[1:], ids=str)
@pytest.mark.parametrize("name", some(ENCODERS, "vbpr", "lightgcn", "mci"))
def test_meshes_agree(name, mesh, catalog):
    one_params, one = computed(catalog, 1, 1)
    params, out = computed(catalog, *mesh)
    # Parameters begin the same, bit for bit ...
    jax.tree.map(
        np.testing.assert_array_equal,
        trimmed(params[name], catalog),
        trimmed(one_params[name], catalog),
    )
    # ... and only the order of float32 sums may differ: over 64 pairs in the
    # losses, and over an entry's contributions in the gradients.
    np.testing.assert_allclose(out[name][0][0], one[name][0][0], rtol=5e-7)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        trimmed(out[name][1], catalog),
        trimmed(one[name][1], catalog),
    )


@pytest.mark.parametrize("mesh", SOME_MESHES[1:], ids=str)
def test_padding_rows_get_no_gradient(mesh, catalog):
    _, out = computed(catalog, *mesh)
    for name in ENCODERS:
        gradient = out[name][1]
        assert not gradient["users"][catalog.num_users :].any()
        assert not gradient["items"][catalog.num_items :].any()


def test_tables_begin_xavier_uniform(catalog):
    params, _ = computed(catalog, 1, 1)
    for name, width in (("mf", DIM), ("vbpr", 2 * DIM)):
        table = params[name]["users"]
        limit = np.sqrt(6 / (catalog.num_users + width))
        assert 0.97 * limit < np.abs(table).max() <= limit
        assert stats.kstest(
            table.ravel() / limit, "uniform", (-1, 2)
        ).pvalue > (1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_activations_keep_the_dtype_of_the_parameters(name, catalog, one):
    module = make(name, sizes(catalog, one))
    inputs = build(catalog, module.needs(), one)
    half = functools.partial(
        jax.tree.map, lambda x: x.astype("bfloat16") if x.ndim else x
    )
    inputs = dataclasses.replace(inputs, features=half(inputs.features))

    def run(key):
        params = nn.unbox(module.init(key, inputs)["params"])
        return module.apply({"params": half(params)}, inputs).whole()

    encoded = jax.eval_shape(run, jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(encoded)} == {"bfloat16"}


def test_trained_features_begin_as_the_standardised_ones(catalog):
    params, _ = computed(catalog, 1, 1)
    for name, matrix in catalog.features.items():
        np.testing.assert_allclose(
            params["freedom"][f"{name}_features"],
            dense.standardised(matrix),
            rtol=0,
            atol=1e-6,
        )


def test_a_constant_modality_is_standardised_to_zero(catalog, one):
    matrix = catalog.features["text"]
    values = np.where(matrix.present[:, None], np.float32(7), np.float32(0))
    constant = dataclasses.replace(matrix, values=values)
    changed = dataclasses.replace(catalog, features={"text": constant})
    inputs = build(changed, Needs(features=True), one)
    assert not np.asarray(inputs.features["text"].values).any()


def test_mci_with_one_modality_gives_it_all_the_weight(catalog, one):
    module = make("mci", sizes(catalog, one), modalities=("image",))
    inputs = build(catalog, module.needs(), one)
    params, _ = computed(catalog, 1, 1)
    encoded = jax.jit(module.apply)({"params": params["mci"]}, inputs)
    reference = in_float64(params["mci"], catalog)
    users, items, _ = numpy_mci(reference, catalog, [("image", 1.0)])
    np.testing.assert_allclose(encoded.users, users, rtol=0, atol=2e-6)
    np.testing.assert_allclose(encoded.items, items, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_a_modality_without_a_weight_weighs_as_the_others_do(catalog, one):
    size = sizes(catalog, one)
    for make_one in (
        lambda given: MCI(size, DIM, modality_weights=given),
        lambda given: FREEDOM(size, DIM, graph_weights=given),
    ):
        encoded = []
        for given in ({"text": 2.0}, {"text": 0.5, "image": 0.5}):
            module = make_one(FrozenDict(given))
            inputs = build(catalog, module.needs(), one)
            params = module.init(jax.random.key(0), inputs)
            encoded.append(module.apply(params, inputs))
        np.testing.assert_allclose(
            encoded[0].items, encoded[1].items, rtol=0, atol=1e-7
        )


def test_a_catalogue_without_features_is_refused(catalog, one):
    bare = dataclasses.replace(catalog, features={})
    for name in ("vbpr", "freedom", "mci", *DEEP):
        needs = make(name, sizes(bare, one)).needs()
        with pytest.raises(InputError, match="does not have"):
            build(bare, needs, one)


def test_views_hold_what_losses_read(catalog):
    _, out = computed(catalog, 1, 1)
    views = {name: set(out[name][0][1].views) for name in ENCODERS}
    both = "image", "text"
    assert views == {
        "mf": {"ego"},
        "lightgcn": {"ego"},
        "vbpr": {"ego"},
        "freedom": {"ego", "image", "text"},
        "mci": {"ego", "content", "side"},
        "bm3": {"ego", "target", *both, *(f"{n}_target" for n in both)},
        "mgcn": {"ego", "content", "side"},
        "smore": {"ego", "content", "side"},
    }
    assert jnp.ndim(out["mf"][0][0]) == 0
