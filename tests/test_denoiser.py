"""The conditional denoiser: against float64, and on a toy that it must learn.

The toy's items are a sum of three parts, one that the user tells, one that
the text and one that the image does, and noise. What the best denoiser says
of it is known in closed form, and so is what sampling with it gives.
"""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neggen_jax.models.denoiser import Conditions, Denoiser
from neggen_jax.negatives.difficulty import Level, ladder
from neggen_jax.negatives.diffusion import Rows, dropped
from neggen_jax.negatives.draw import generate
from neggen_jax.negatives.process import TARGETS, Process, distance

DIM, ROWS = 8, 7
WIDTHS = {"text": 5, "image": 3, "audio": 4}
# One, two and three modalities.
SOME = [tuple(WIDTHS)[:count] for count in (1, 2, 3)]

modalities = pytest.mark.parametrize(
    "names", SOME, ids=[str(len(names)) for names in SOME]
)


def make_rows(names, count=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(2, count, DIM)).astype(np.float32)
    features = {
        name: rng.normal(size=(count, WIDTHS[name])).astype(np.float32)
        for name in names
    }
    present = {name: np.ones(count, bool) for name in names}
    return Rows(users, items, features, present)


def forward(denoiser, rows, noisy, steps, keeps, weights=(1.0,)):
    """Rows of `denoiser` told of what each of `keeps` keeps."""
    conditions = denoiser.conditions(rows.users, rows.features)
    drives = tuple(conditions.drive(keep) for keep in keeps)
    return denoiser(noisy, denoiser.times()[steps], drives, weights)


def make_denoiser(names, timesteps=25, hidden=16, seed=0):
    """A denoiser, and parameters of which none is 0, biases included."""
    denoiser = Denoiser(DIM, names, timesteps, hidden)
    rows = make_rows(names)
    variables = nn.init(forward, denoiser)(
        jax.random.key(seed),
        rows,
        rows.items,
        np.zeros(ROWS, int),
        (rows.present,),
    )
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(
        lambda a: (a + 0.3 * rng.normal(size=a.shape)).astype(np.float32),
        variables,
    )
    return denoiser, moved


# What the modules should compute, in float64 and the long way


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def linear(x, *layers):
    """One Linear over all of x; the layers' kernels are stacked."""
    kernel = np.concatenate([layer["kernel"] for layer in layers])
    return x @ kernel + sum(layer.get("bias", 0) for layer in layers)


def two_layers(x, params, name):
    return linear(gelu(linear(x, params[f"{name}_0"])), params[f"{name}_1"])


def reference(variables, names, timesteps, rows, noisy, step, keep):
    """`[B, d]`, at one step for all rows."""
    params = jax.tree.map(np.float64, variables["params"])
    place = step * 1000 / timesteps
    waves = []
    for wave in (np.sin, np.cos):
        for n in range(DIM // 2):
            waves.append(wave(place / 10_000 ** (n / (DIM // 2))))
    time = two_layers(np.array([waves]), params, "time")
    parts = [noisy, np.repeat(time, len(noisy), axis=0), rows.users]
    for name in names:
        side = two_layers(rows.features[name], params, f"side_{name}")
        null = params[f"null_{name}"]
        parts.append(
            np.array(
                [
                    s if k else null
                    for s, k in zip(side, keep[name], strict=True)
                ]
            )
        )
    layers = [params[f"from_{part}"] for part in ("noisy", "time", "user")]
    layers += [params[f"from_side_{name}"] for name in names]
    hidden = linear(np.concatenate(parts, axis=1), *layers)
    if "head" not in params:
        return hidden
    return linear(gelu(hidden), params["head"])


def guidance(level, scales, predict):
    """e0 + s_t (e_t - e0) + s_v (e_tv - e_t) ..., on outputs."""
    told = ()
    before = total = predict(told)
    for name in level.modalities:
        told = (*told, name)
        after = predict(told)
        total = total + scales[name] * (after - before)
        before = after
    return total


# A float32 product over some fifty numbers of magnitude one, twice; guidance
# multiplies what is off by its scales.
EXACT = {"rtol": 2e-5, "atol": 2e-5}


@modalities
@pytest.mark.parametrize("hidden", [16, 0])
@pytest.mark.parametrize("timesteps", [5, 50])
def test_denoiser_is_the_textbook_one(names, hidden, timesteps):
    denoiser, variables = make_denoiser(names, timesteps, hidden)
    assert ("head" in variables["params"]) == bool(hidden)
    rows = make_rows(names, seed=1)
    noisy = make_rows(names, seed=2).items
    rng = np.random.default_rng(3)
    keep = {name: rng.random(ROWS) < 0.5 for name in names}
    # A step of its own for each row, with the first and the last.
    steps = np.array([0, timesteps - 1, *rng.integers(timesteps, size=5)])
    got = nn.apply(forward, denoiser)(variables, rows, noisy, steps, (keep,))
    for row, step in enumerate(steps):
        want = reference(variables, names, timesteps, rows, noisy, step, keep)
        np.testing.assert_allclose(got[row], want[row], **EXACT)


@modalities
@pytest.mark.parametrize("hidden", [16, 0])
def test_guidance_weights_outputs(names, hidden):
    """It weights hidden units, which only the last layer's bias could tell."""
    denoiser, variables = make_denoiser(names, hidden=hidden)
    rows = make_rows(names, seed=1)
    # An item that lacks the first modality is not told of it on any level.
    rows.present[names[0]][2] = False
    # Several samples of each row at once.
    noisy = np.random.default_rng(2).normal(size=(3, ROWS, DIM))
    scales = dict(zip(names, (1.1, 5.0, 2.0), strict=False))

    def kept(told):
        return {n: rows.present[n] & (n in told) for n in names}

    levels = ladder("ladder", names, scales)
    assert len(levels) == max(len(names) + 1, 2)
    for level in levels:
        told, weights = zip(*level.branches, strict=True)
        got = nn.apply(forward, denoiser)(
            variables, rows, noisy, 4, tuple(map(kept, told)), weights
        )
        assert got.shape == noisy.shape
        for sample in range(3):
            want = guidance(
                level,
                scales,
                lambda told, x=noisy[sample]: reference(
                    variables, names, 25, rows, x, 4, kept(told)
                ),
            )
            np.testing.assert_allclose(got[sample], want, **EXACT)


@modalities
def test_parts_begin_as_one_matrix(names):
    """LeCun's initialization over the width of the concatenation."""
    dim, hidden = 64, 128
    denoiser = Denoiser(dim, names, 5, hidden)
    wide = make_rows(names)
    wide = dataclasses.replace(
        wide, users=np.ones((ROWS, dim)), items=np.ones((ROWS, dim))
    )
    params = nn.init(forward, denoiser)(
        jax.random.key(0),
        wide,
        wide.items,
        np.zeros(ROWS, int),
        (wide.present,),
    )["params"]
    parts = ["noisy", "time", "user", *(f"side_{name}" for name in names)]
    for part in parts:
        kernel = np.asarray(params[f"from_{part}"]["kernel"])
        assert kernel.shape == (dim, hidden)
        # A variance over 8,192 entries: five standard errors are 8 %.
        assert kernel.var() * dim * len(parts) == pytest.approx(1, rel=0.08)
    # One bias, as one matrix has.
    assert [p for p in parts if "bias" in params[f"from_{p}"]] == ["noisy"]


@modalities
def test_drive_takes_the_side_or_its_null(names):
    rng = np.random.default_rng(0)
    # Whole numbers: their sums are exact.
    whole = functools.partial(rng.integers, -9, 9)
    user = whole(size=(ROWS, 4)).astype(np.float32)
    sides = {n: whole(size=(ROWS, 4)).astype(np.float32) for n in names}
    nulls = {n: whole(size=4).astype(np.float32) for n in names}
    keep = {n: rng.random(ROWS) < 0.5 for n in names}
    want = user.copy()
    for row in range(ROWS):
        for name in names:
            want[row] += sides[name][row] if keep[name][row] else nulls[name]
    got = Conditions(user, sides, nulls).drive(keep)
    np.testing.assert_array_equal(got, want)


# Which conditions are dropped


@modalities
@pytest.mark.parametrize("drop", [0.05, 0.2, 1 / 3])
def test_every_set_is_dropped_as_often(names, drop):
    count = 200_000
    present = {name: np.ones(count, bool) for name in names}
    kept = dropped(jax.random.key(0), present, drop)
    assert list(kept) == list(names)
    # A row's set of dropped modalities, of which it has exactly one.
    pattern = np.stack([~np.asarray(kept[n]) for n in names], axis=1)
    sets, counts = np.unique(pattern, axis=0, return_counts=True)
    found = {tuple(s): c / count for s, c in zip(sets, counts, strict=True)}
    each = 3 * drop / (2 ** len(names) - 1)
    for chosen in itertools.product([False, True], repeat=len(names)):
        want = each if any(chosen) else 1 - 3 * drop
        # Five standard errors of a binomial share; none where it cannot vary.
        error = 5 * np.sqrt(max(want * (1 - want), 0) / count) + 1e-9
        assert abs(found.get(chosen, 0) - want) <= error


@modalities
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_what_is_missing_is_never_kept(names, drop):
    rng = np.random.default_rng(0)
    present = {name: rng.random(5000) < 0.5 for name in names}
    kept = dropped(jax.random.key(0), present, drop)
    for name in names:
        assert not (kept[name] & ~present[name]).any()
        same = np.asarray(kept[name] == present[name])
        # Nothing else is touched where nothing is dropped.
        assert same.all() == (drop == 0)


# The loss, as the generator has it


def loss(denoiser, process, drop, rows, key):
    time_key, noise_key, drop_key = jax.random.split(key, 3)
    count = len(rows.items)
    steps = jax.random.randint(time_key, (count,), 0, process.timesteps)
    noise = jax.random.normal(noise_key, rows.items.shape)
    noisy = process.noised(rows.items, steps, noise)
    keep = dropped(drop_key, rows.present, drop)
    output = forward(denoiser, rows, noisy, steps, (keep,))
    return distance(output, process.wanted(rows.items, noise), "l2").mean()


def gradients(names, drop, rows):
    denoiser, variables = make_denoiser(names)
    process = Process(25, "linear", "x0", 0.0)

    @jax.jit
    def gradient(variables, rows):
        apply, key = nn.apply(loss, denoiser), jax.random.key(0)
        return jax.grad(apply)(variables, process, drop, rows, key)

    return gradient(variables, rows)["params"]


def moves(gradient):
    return any(np.any(np.asarray(g)) for g in jax.tree.leaves(gradient))


@modalities
def test_nulls_learn_where_rows_drop_them(names):
    rows = make_rows(names, 64)
    found = gradients(names, 0.2, rows)
    assert all(moves(found[f"null_{name}"]) for name in names)
    assert all(moves(found[f"side_{name}_0"]) for name in names)


@modalities
def test_nulls_do_not_learn_where_nothing_is_dropped(names):
    found = gradients(names, 0.0, make_rows(names, 64))
    assert not any(moves(found[f"null_{name}"]) for name in names)
    assert all(moves(found[f"side_{name}_0"]) for name in names)


@modalities
def test_the_null_of_what_is_missing_learns(names):
    rows = make_rows(names, 64)
    *others, lost = names
    rows.present[lost][5] = False
    found = gradients(names, 0.0, rows)
    assert moves(found[f"null_{lost}"])
    assert not any(moves(found[f"null_{name}"]) for name in others)
    # And its features, whatever they are, teach nothing.
    rows.present[lost][:] = False
    assert not moves(gradients(names, 0.0, rows)[f"side_{lost}_0"])


# Drawing


def beginning(reverse, shape, key):
    """The noise that sampling with this key starts from."""
    seen = []

    def watch(x, time):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return x

    reverse.sample(watch, shape, key)
    jax.effects_barrier()
    return seen[0].astype(float)


@modalities
@pytest.mark.parametrize("target", TARGETS)
def test_levels_are_drawn_together_as_each_alone(names, target):
    denoiser, variables = make_denoiser(names)
    rows = make_rows(names, seed=1)
    rows.present[names[-1]][3] = False
    scales = dict(zip(names, (2.0, 1.1, 5.0), strict=False))
    levels = ladder("ladder", names, scales)
    process = Process(25, "cosine", target, 3.0)
    reverse, key = process.reverse(3, 0.0), jax.random.key(7)
    told = denoiser.apply(
        variables, rows.users, rows.features, method="conditions"
    )
    got = generate(
        denoiser, variables, reverse, levels, 2, told, rows.present, key
    )
    assert got.shape == (2 * len(levels), ROWS, DIM)

    x = beginning(reverse, got.shape, key)
    np.testing.assert_allclose(
        np.asarray(reverse.time), [24, 16, 8], err_msg="ceil(25 n / 3) - 1"
    )
    of = [level for level in levels for _ in range(2)]
    for step, before in ((24, 16), (16, 8), (8, None)):
        now = process.signal[step]
        after = 1.0 if before is None else process.signal[before]
        for n, level in enumerate(of):
            output = guidance(
                level,
                scales,
                lambda told, x=x[n], step=step: reference(
                    variables,
                    names,
                    25,
                    rows,
                    x,
                    step,
                    {m: rows.present[m] & (m in told) for m in names},
                ),
            )
            clean = output
            if target == "noise":
                clean = (x[n] - np.sqrt(1 - now) * output) / np.sqrt(now)
            clean = np.clip(clean, -3, 3)
            noise = (x[n] - np.sqrt(now) * clean) / np.sqrt(1 - now)
            x[n] = np.sqrt(after) * clean + np.sqrt(1 - after) * noise
    # Guided noise is divided by sqrt(alpha-bar), 0.002 at first; what it is
    # off by is clipped there, and multiplied by 2 or so later.
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-3)


# The toy: x_0 = USER[u] + TEXT[t] + IMAGE[v] + SPREAD * noise


def centred(rng, count, size):
    values = rng.normal(size=(count, 4))
    values -= values.mean(axis=0)
    return size * values / np.sqrt(np.square(values).mean())


_rng = np.random.default_rng(0)
# Each has a mean of 0 over its values, all equally likely: so the mean of
# items of a user and a text, say, is USER[u] + TEXT[t].
USER = centred(_rng, 3, 0.5)
TEXT = centred(_rng, 3, 0.4)
IMAGE = centred(_rng, 2, 0.4)
SPREAD = 0.6
PARTS = (USER, TEXT, IMAGE)
# What the denoiser reads says which values there are, and not their vectors.
CODES = [
    _rng.normal(size=(len(part), width)).astype(np.float32)
    for part, width in zip(PARTS, (4, 5, 3), strict=True)
]
# Every triple of values, [18, 3].
ALL = np.array(list(itertools.product(*(range(len(p)) for p in PARTS))))
DROP, STEPS = 0.1, 10


def toy_rows(values, items):
    users, text, image = (
        jnp.asarray(code)[values[:, n]] for n, code in enumerate(CODES)
    )
    there = jnp.ones(len(values), bool)
    return Rows(
        users,
        items,
        {"text": text, "image": image},
        {"text": there, "image": there},
    )


def toy_batch(key, count=512):
    *keys, noise_key = jax.random.split(key, 4)
    values = jnp.stack(
        [
            jax.random.randint(k, (count,), 0, len(part))
            for k, part in zip(keys, PARTS, strict=True)
        ],
        axis=1,
    )
    clean = sum(
        jnp.asarray(part, jnp.float32)[values[:, n]]
        for n, part in enumerate(PARTS)
    )
    noise = jax.random.normal(noise_key, clean.shape)
    return toy_rows(values, clean + SPREAD * noise)


def best(x, now, told):
    """E[x_0 | x_t, user and what is told], `[18, N, 4]`: a mixture's mean."""
    centres, logits = [], []
    variance = now * SPREAD**2 + 1 - now
    for text, image in itertools.product(range(3), range(2)):
        centre = (USER[ALL[:, 0]] + TEXT[text] + IMAGE[image])[:, None]
        ruled_out = ("text" in told) & (ALL[:, 1] != text)
        ruled_out |= ("image" in told) & (ALL[:, 2] != image)
        off = np.square(x - np.sqrt(now) * centre).sum(axis=-1)
        logits.append(
            np.where(ruled_out[:, None], -np.inf, -off / (2 * variance))
        )
        gain = SPREAD**2 * np.sqrt(now) / variance
        centres.append(centre + gain * (x - np.sqrt(now) * centre))
    weights = np.exp(np.array(logits) - np.max(logits, axis=0))
    weights /= weights.sum(axis=0)
    return (weights[..., None] * np.array(centres)).sum(axis=0)


def best_loss(process):
    """The loss of the denoiser that knows the toy."""
    rng = np.random.default_rng(0)
    centre = sum(part[ALL[:, n]] for n, part in enumerate(PARTS))
    clean = centre[:, None] + SPREAD * rng.normal(size=(18, 1000, 4))
    odds = {("text", "image"): 1 - 3 * DROP}
    odds |= dict.fromkeys([(), ("text",), ("image",)], DROP)
    losses = []
    for now in process.signal:
        noise = rng.normal(size=clean.shape)
        x = np.sqrt(now) * clean + np.sqrt(1 - now) * noise
        for told, share in odds.items():
            off = np.square(best(x, now, told) - clean).mean()
            # A prediction of x_0 that is off by some is one of the noise
            # that is off by this share of it.
            losses.append(
                share
                * off
                * (now / (1 - now) if process.target == "noise" else 1)
            )
    return sum(losses) / process.timesteps


def best_means(process, level, scales, count=2000):
    """Means of samples that are drawn with it, `[18, 4]`; ancestral."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(18, count, 4))
    after = [1.0, *process.signal]
    for step in range(process.timesteps - 1, -1, -1):
        now, left = process.signal[step], after[step]
        clean = guidance(level, scales, functools.partial(best, x, now))
        alpha = now / left
        mean = np.sqrt(left) * (1 - alpha) * clean
        mean += np.sqrt(alpha) * (1 - left) * x
        deviation = np.sqrt((1 - left) * (1 - alpha) / (1 - now))
        x = mean / (1 - now) + deviation * rng.normal(size=x.shape)
    return x.mean(axis=1)


@dataclasses.dataclass
class Toy:
    """A denoiser that was trained on it."""

    process: Process
    denoiser: Denoiser
    variables: dict
    losses: np.ndarray

    def means(self, scale, steps=STEPS, count=500):
        """Mean of samples of every level and triple, and the levels."""
        scales = {"text": scale, "image": scale}
        levels = ladder("ladder", ("text", "image"), scales)
        values = np.repeat(ALL, count, axis=0)
        rows = toy_rows(values, jnp.zeros((len(values), 4)))
        reverse = self.process.reverse(steps, 1.0)

        @jax.jit
        def draw(variables, key):
            told = self.denoiser.apply(
                variables, rows.users, rows.features, method="conditions"
            )
            return generate(
                self.denoiser,
                variables,
                reverse,
                levels,
                1,
                told,
                rows.present,
                key,
            )

        drawn = np.asarray(draw(self.variables, jax.random.key(2)))
        means = drawn.reshape(3, 18, count, 4).mean(axis=2)
        return list(zip(levels, means, strict=True)), scales


@pytest.fixture(
    scope="module",
    params=["noise", pytest.param("x0", marks=pytest.mark.slow)],
)
def toy(request):
    process = Process(STEPS, "cosine", request.param, 0.0)
    denoiser = Denoiser(4, ("text", "image"), STEPS, 64)
    args = process, DROP
    variables = nn.init(loss, denoiser)(
        jax.random.key(0),
        *args,
        toy_batch(jax.random.key(0)),
        jax.random.key(0),
    )
    apply = nn.apply(loss, denoiser)
    updates = 1500
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, updates))

    def update(state, key):
        variables, moments = state
        batch_key, loss_key = jax.random.split(key)
        value, gradient = jax.value_and_grad(apply)(
            variables, *args, toy_batch(batch_key), loss_key
        )
        change, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(variables, change), moments), value

    (variables, _), losses = jax.jit(functools.partial(jax.lax.scan, update))(
        (variables, optimizer.init(variables)),
        jax.random.split(jax.random.key(1), updates),
    )
    return Toy(process, denoiser, variables, np.asarray(losses))


def known(level: Level, scale=1.0):
    """Mean of items of which this much is known, `[18, 4]`."""
    mean = USER[ALL[:, 0]]
    for name, part, n in (("text", TEXT, 1), ("image", IMAGE, 2)):
        if name in level.modalities:
            mean = mean + scale * part[ALL[:, n]]
    return mean


def along(means, part, n):
    """How far means lie from the user's along what the modality adds.

    A least-squares fit over all triples: 1 is where it says, 0 is nowhere.
    """
    way = part[ALL[:, n]]
    return ((means - USER[ALL[:, 0]]) * way).sum() / np.square(way).sum()


def test_it_learns_all_there_is(toy):
    want = best_loss(toy.process)
    # The last fifth: 150,000 rows, with an error of half a per cent.
    got = toy.losses[-300:].mean()
    assert 0.99 * want < got < 1.05 * want


def test_samples_of_each_level_have_its_mean(toy):
    """Also where a modality is left out: the mean over all its values."""
    found, _ = toy.means(1.0)
    assert [level.name for level, _ in found] == ["text", "image", "text+image"]
    for level, means in found:
        off = means - known(level)
        # Samples spread by 0.6, and by 0.4 more where a part is not told:
        # over 500 of them a mean has an error of 0.03, and the denoiser adds
        # as much. Any part told wrongly would make it 0.4.
        assert np.sqrt(np.square(off).mean()) < 0.1
        for name, part, n in (("text", TEXT, 1), ("image", IMAGE, 2)):
            told = float(name in level.modalities)
            assert along(means, part, n) == pytest.approx(told, abs=0.1)


def test_guidance_moves_further_along(toy):
    """As far as it would move with the best denoiser.

    Where x_t is pure noise it moves twice as far at a scale of 2. Later, x_t
    itself shows more and more of what it was moved to, with or without being
    told, and the difference that is scaled vanishes.
    """
    found, scales = toy.means(2.0)
    for level, means in found:
        want = best_means(toy.process, level, scales)
        for name, part, n in (("text", TEXT, 1), ("image", IMAGE, 2)):
            far = along(want, part, n)
            assert far > 1.3 or name not in level.modalities
            assert along(means, part, n) == pytest.approx(far, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["x0"], indirect=True)
def test_one_step_moves_as_far_as_the_scale(toy):
    """x_T says nothing of x_0, and a mean given conditions is a sum."""
    for scale in (1.0, 2.0, 5.0):
        for level, means in toy.means(scale, steps=1)[0]:
            off = means - known(level, scale)
            # A prediction's error, 0.03, times the scale twice.
            assert np.sqrt(np.square(off).mean()) < 0.05 * scale
