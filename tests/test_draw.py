"""Drawing in one kernel: as XLA draws, which test_denoiser.py measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from neggen_jax.models.denoiser import Conditions, Denoiser
from neggen_jax.negatives.difficulty import ladder
from neggen_jax.negatives.draw import generate
from neggen_jax.negatives.process import Process
from neggen_jax.ops import native

pytestmark = pytest.mark.skipif(
    not native.has_simd(), reason="there is neither AVX2 nor AVX-512"
)

DIM = 64
NAMES = "text", "image"


@pytest.fixture
def alone(monkeypatch):
    """As if there were one device, which the kernel wants."""
    monkeypatch.setattr(native, "alone", lambda: True)


def make_denoiser(hidden=64, timesteps=25, seed=0):
    """A denoiser, and parameters of which none is 0."""
    denoiser = Denoiser(DIM, NAMES, timesteps, hidden)

    def beginning(module):
        features = {name: jnp.ones((1, 3)) for name in NAMES}
        told = module.conditions(jnp.ones((1, DIM)), features)
        return module(jnp.ones((1, DIM)), module.times()[0], (told.user,))

    variables = denoiser.init(jax.random.key(seed), method=beginning)
    rng = np.random.default_rng(seed)
    return denoiser, jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
        variables,
    )


def make_conditions(rows, hidden, seed=0):
    rng = np.random.default_rng(seed)
    width = hidden or DIM
    parts = rng.normal(size=(3, rows, width)).astype(np.float32)
    null = rng.normal(size=(2, width)).astype(np.float32)
    return Conditions(
        jnp.asarray(parts[0]),
        {n: jnp.asarray(x) for n, x in zip(NAMES, parts[1:], strict=True)},
        {n: jnp.asarray(x) for n, x in zip(NAMES, null, strict=True)},
    )


def draw(hidden=64, rows=7, samples=2, steps=3, **process):
    """What `generate` draws on each level."""
    eta, scale = process.pop("eta", 0.0), process.pop("scale", 1.0)
    said = {"schedule": "linear", "target": "x0", "clip": 0.0} | process
    denoiser, variables = make_denoiser(hidden)
    rng = np.random.default_rng(1)
    present = {name: jnp.asarray(rng.random(rows) < 0.7) for name in NAMES}
    levels = ladder("ladder", NAMES, dict.fromkeys(NAMES, scale))
    reverse = Process(25, **said).reverse(steps, eta)
    told = make_conditions(rows, hidden)
    return jax.jit(
        lambda key: generate(
            denoiser, variables, reverse, levels, samples, told, present, key
        )
    )(jax.random.key(3))


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"eta": 1.0, "hidden": 128, "samples": 1},
        {"eta": 0.5, "target": "noise", "clip": 2.0, "scale": 1.3},
        {"scale": 2.0, "rows": 1},
        {"steps": 25, "eta": 1.0, "schedule": "cosine"},
        # More rows than one thread takes at once, and a part of a product.
        {"rows": 451, "samples": 3},
    ],
    ids=str,
)
def test_the_kernel_draws_what_xla_does(part, monkeypatch):
    want = draw(**part)
    monkeypatch.setattr(native, "alone", lambda: True)
    called = []
    real = native.draw
    monkeypatch.setattr(
        native, "draw", lambda *given: called.append(0) or real(*given)
    )
    got = draw(**part)
    assert len(called) == 3  # once for each level
    assert got.shape == want.shape
    # Rounding in products of 64 and 128, step after step.
    bound = 2e-5 * (1 + np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    assert np.abs(np.asarray(want)).max() > 0.5


@pytest.mark.parametrize("hidden", [0, 16])
def test_xla_draws_by_other_layers(hidden, alone, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(native, "draw", never)
    assert np.isfinite(draw(hidden=hidden)).all()


def test_noise_of_other_kinds_is_left_to_xla(alone, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(native, "draw", never)
    denoiser, variables = make_denoiser()
    levels = ladder("ladder", NAMES, {})
    reverse = Process(25, "linear", "x0", 0.0).reverse(3, 0.0)
    present = {name: jnp.ones(7, bool) for name in NAMES}
    given = denoiser, variables, reverse, levels, 2, make_conditions(7, 64)
    made = generate(*given, present, jax.random.key(0, impl="rbg"))
    assert np.isfinite(made).all()
    with jax.threefry_partitionable(new_val=False):
        assert np.isfinite(generate(*given, present, jax.random.key(0))).all()


def by_kernel(steps, first, shifts, last, bias, drives, weights, **more):
    """`native.draw` of given coefficients, for keys that are counted."""
    keys = jax.random.split(jax.random.key(more.get("seed", 0)), len(steps) + 1)
    layers = tuple(map(jnp.float32, (first, shifts, last, bias)))
    return native.draw(
        jax.random.key_data(keys),
        jnp.float32(steps),
        layers,
        tuple(map(jnp.float32, drives)),
        weights,
        more.get("samples", range(1)),
        more.get("clip", 0.0),
    ), keys


def test_noise_is_that_of_jax(alone):
    """A step that keeps x and adds its noise, with layers that are 0."""
    count, rows, samples = 2, 301, range(3, 8)
    zeros = np.zeros((DIM, DIM)), np.zeros((count, DIM)), np.zeros((DIM, DIM))
    for kept in (0, 1):
        # From x, from the output, keep clean, keep x, deviation.
        steps = np.array([[0, 0, 0, kept, 1], [0, 0, 0, 1, 0]])
        got, keys = by_kernel(
            steps,
            *zeros,
            np.zeros(DIM),
            [np.zeros((rows, DIM))],
            (1.0,),
            samples=samples,
            seed=5,
        )
        # As of a draw of eight samples, of which these are the last.
        shape = samples.stop, rows, DIM
        start, noise = (jax.random.normal(k, shape) for k in keys[:2])
        want = (kept * start + noise)[samples.start :]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)
        # Of 96,320 draws, some lie in the tail.
        assert np.abs(want).max() > 4


def test_noise_is_counted_past_32_bits(alone):
    """The counter of the first is 2^32; both words of it are read."""
    zeros = np.zeros((DIM, DIM)), np.zeros((1, DIM)), np.zeros((DIM, DIM))
    one, many = [[0, 0, 0, 1, 0]], range(2**26, 2**26 + 1)
    rest = np.zeros(DIM), [np.zeros((1, DIM))], (1.0,)
    got, keys = by_kernel(one, *zeros, *rest, samples=many)
    low = jnp.arange(DIM, dtype=jnp.uint32)
    words = threefry_2x32(
        jax.random.key_data(keys[0]), jnp.stack([jnp.ones_like(low), low])
    )
    bits = (words[0] ^ words[1]) >> 9 | 0x3F800000
    unit = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1
    low = np.nextafter(np.float32(-1), np.float32(0))
    want = np.sqrt(2) * jax.lax.erf_inv(jnp.maximum(low, unit * 2 + low))
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-5, atol=2e-6)


def test_what_is_no_number_stays_none(alone):
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(2, DIM, DIM))
    drive = np.zeros((7, DIM))
    drive[3, 5] = np.nan
    got, _ = by_kernel(
        [[0, 1, 1, 0, 0]],
        first,
        np.zeros((1, DIM)),
        last,
        np.zeros(DIM),
        [drive],
        (1.0,),
        clip=0.5,
    )
    there = np.isfinite(got[0]).all(axis=1)
    np.testing.assert_array_equal(there, np.arange(7) != 3)
    assert np.isnan(got[0, 3]).all()
    assert np.nanmax(np.abs(got)) == 0.5


def test_no_gradient_comes_back(alone):
    """Not even where levels are let in one after another, or over keys."""
    denoiser, variables = make_denoiser()
    levels = ladder("ladder", NAMES, {})
    reverse = Process(25, "linear", "x0", 0.0).reverse(3, 0.0)
    present = {name: jnp.ones(7, bool) for name in NAMES}
    keys = jax.random.split(jax.random.key(0), 2)

    def total(variables, told, count):
        def some(number):
            def drawn(key):
                given = denoiser, variables, reverse, levels[:number], 2
                return generate(*given, told, present, key).sum()

            return lambda: jax.vmap(drawn)(keys).sum()

        return jax.lax.switch(count, [some(number) for number in (1, 2, 3)])

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    for leaf in jax.tree.leaves(gradient(variables, make_conditions(7, 64), 1)):
        np.testing.assert_array_equal(leaf, 0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_one_step_is_that_of_float64(rows, width, alone):
    """Far out, too, where GELU is 0 or the identity."""
    rng = np.random.default_rng(rows)
    first, last = (
        0.3 * rng.normal(size=shape) for shape in ((DIM, width), (width, DIM))
    )
    shift, bias = rng.normal(size=(1, width)), rng.normal(size=DIM)
    drives = 4 * rng.normal(size=(3, rows, width)) ** 3
    far = -1e15, -1e6, -200, -20, 20, 1e3, 1e6, 1e12
    for row, value in enumerate(far[:rows]):
        drives[:, row, 5] = value
    drives = np.float32(drives).astype(float)
    weights = 0.5, -0.7, 1.2
    # x_0 is the output, and the result.
    step = np.array([[0, 1, 1, 0, 0]])
    given = step, first, shift, last, bias, drives, weights
    got, keys = by_kernel(*given, samples=range(2))
    x = np.float64(jax.random.normal(keys[0], (2, rows, DIM)))
    base = x @ first + shift
    want = sum(
        w * gelu(base + drive) for w, drive in zip(weights, drives, strict=True)
    )
    want = want @ last + bias
    bound = 1e-5 * (1 + np.abs(want).max(axis=-1, keepdims=True))
    assert (np.abs(got - want) < bound).all()


def test_other_platforms_do_without_the_kernel(alone):
    denoiser, variables = make_denoiser()
    levels = ladder("ladder", NAMES, {})
    reverse = Process(25, "linear", "x0", 0.0).reverse(3, 0.0)
    present = {name: jnp.ones(7, bool) for name in NAMES}
    told = make_conditions(7, 64)

    def drawn(key):
        return generate(
            denoiser, variables, reverse, levels, 2, told, present, key
        )

    text = {
        platform: jax.jit(drawn)
        .trace(jax.random.key(0))
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "tpu")
    }
    assert "neggen_draw" in text["cpu"]
    assert "neggen" not in text["tpu"]
