"""The diffusion process against float64, the papers and `diffusers`.

The chains of `diffusers` are worked out in float64: in float32, an alpha-bar
of 1e-12 (five steps) is the product of differences 1 - 0.999 that have lost
five digits each, and its schedulers would be the less exact side.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import some
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.negatives import process
from neggen_jax.negatives.process import Process

LENGTHS = (5, 25, 50, 100)
# None, and one that many predicted entries of x_0 are above.
CLIPS = (0.0, 1.5)
# Float32 rounds by 6e-8 of each term. Coefficients are rounded once, and at
# most five more roundings follow: below 1e-6 of the terms' sizes together.
ROUNDING = 1e-6

schedules = pytest.mark.parametrize("schedule", process.SCHEDULES)
some_schedules = pytest.mark.parametrize(
    "schedule", some(process.SCHEDULES, "linear")
)
lengths = pytest.mark.parametrize("timesteps", LENGTHS)
targets = pytest.mark.parametrize("target", process.TARGETS)


def papers_betas(schedule, timesteps):
    """Betas as the papers have them; one by one.

    Of the schedules that are made for 1,000 steps, the product of as many
    factors as one of T steps stands for.
    """
    if schedule == "cosine":
        left = [
            math.cos((s / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
            for s in range(timesteps + 1)
        ]
        ratios = [after / before for before, after in itertools.pairwise(left)]
        return np.array([min(1 - ratio, 0.999) for ratio in ratios])
    first, last = 1e-4, 0.02
    found, product, done = [], 1.0, 0
    for t in range(1000):
        way = t / 999
        if schedule == "linear":
            beta = (1 - way) * first + way * last
        elif schedule == "quadratic":
            beta = ((1 - way) * first**0.5 + way * last**0.5) ** 2
        else:
            beta = first + (last - first) * 0.5 * (1 + math.tanh(6 * way - 3))
        product *= 1 - beta
        if t + 1 == -(-(done + 1) * 1000 // timesteps):
            found.append(1 - product)
            product, done = 1.0, done + 1
    return np.array(found)


def papers_signal(schedule, timesteps):
    signal, product = [], 1.0
    for beta in papers_betas(schedule, timesteps):
        product *= 1 - beta
        signal.append(product)
    return np.array(signal)


def papers_clean(target, now, x, output, clip):
    """x_0 from what was predicted: DDPM, eq. 15."""
    clean = output
    if target == "noise":
        clean = (x - np.sqrt(1 - now) * output) / np.sqrt(now)
    return np.clip(clean, -clip, clip) if clip else clean


def papers_ddim(now, after, x, clean, eta):
    """Mean and deviation of x_before: DDIM, eq. 12 and 16."""
    deviation = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
    noise = (x - np.sqrt(now) * clean) / np.sqrt(1 - now)
    along = np.sqrt(np.maximum(1 - after - deviation**2, 0))
    return np.sqrt(after) * clean + along * noise, deviation


def bayes(now, after, x, clean):
    """Mean and deviation of x_before given x_t and x_0, from Bayes' rule.

    x_before is N(sqrt(after) x_0, 1 - after) before x_t is seen, and x_t is
    N(sqrt(alpha) x_before, 1 - alpha), with alpha = now / after: precisions
    add, and means are weighted by them.
    """
    if after == 1:
        return clean, 0.0
    alpha = now / after
    prior, seen = 1 / (1 - after), alpha / (1 - alpha)
    mean = prior * np.sqrt(after) * clean + seen * x / np.sqrt(alpha)
    return mean / (prior + seen), (prior + seen) ** -0.5


def papers_times(timesteps, steps):
    """The last step of each of `steps` equal parts, from the last part on."""
    ends = [-(-part * timesteps // steps) for part in range(1, steps + 1)]
    return np.array(ends[::-1]) - 1


def chain(signal, times):
    """alpha-bar before and after each step back."""
    now = signal[times]
    return list(zip(now, [*now[1:], 1.0], strict=True))


def sizes(target, now, after, x, output, noise, eta):
    """What the magnitudes of all terms of a step back sum to."""
    read = np.abs(output)
    if target == "noise":
        read = (np.abs(x) + np.sqrt(1 - now) * read) / np.sqrt(now)
    straight, deviation = papers_ddim(now, after, np.abs(x), 0.0, eta)
    return np.sqrt(after) * read + straight + deviation * np.abs(noise)


def each_step(reverse, x, outputs, noise):
    """Every step back by itself, from where the reference was."""
    arrays = (jnp.asarray(a, jnp.float32) for a in (x, outputs, noise))
    return np.asarray(jax.vmap(type(reverse).step)(reverse, *arrays))


# Betas and what is left of the signal


@schedules
@pytest.mark.parametrize("timesteps", [2, *LENGTHS, 1000])
def test_betas_and_signal_are_the_papers(schedule, timesteps):
    # Both in float64. A beta of 1e-4 is 1 minus a product of up to 1,000
    # factors, and so has lost four digits of 1e-16 times their number; one
    # near 1 leaves 1 - beta with an error of 1e-16 / 1e-3, a step at a time.
    np.testing.assert_allclose(
        process.betas(schedule, timesteps),
        papers_betas(schedule, timesteps),
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        Process(timesteps, schedule, "x0", 0.0).signal,
        papers_signal(schedule, timesteps),
        rtol=1e-10,
    )


@given(st.sampled_from(process.SCHEDULES), st.integers(2, 1000))
def test_betas_rise_and_the_signal_falls(schedule, timesteps):
    betas = process.betas(schedule, timesteps)
    assert betas.shape == (timesteps,)
    assert betas.dtype == np.float64
    assert betas.min() > 0
    assert betas.max() < 1
    # Where T does not divide 1,000, some steps stand for one more of them.
    if schedule == "cosine" or 1000 % timesteps == 0:
        # Rounding: see above. Betas of a step of 1,000 differ by 1e-9 at the
        # flat ends of the sigmoid.
        assert (np.diff(betas) > -1e-12).all()
    signal = Process(timesteps, schedule, "x0", 0.0).signal
    assert signal[0] < 1
    assert (np.diff(signal) < 0).all()
    assert signal[-1] > 0


@given(st.sampled_from(process.SCHEDULES), st.integers(3, 1000))
def test_little_is_left_after_the_last_step(schedule, timesteps):
    # 1 - beta <= exp(-beta), so alpha-bar <= exp(-sum of the 1,000 betas).
    # Linear and sigmoid betas are symmetric about their mean. Those of the
    # quadratic schedule are convex in t, so that their mean over a grid that
    # holds both ends is no less than the integral, (a^2 + a b + b^2) / 3 with
    # a, b the roots of the ends. The cosine schedule's last step leaves a
    # thousandth of cos^2 one step before its zero, at most
    # (pi / 2T)^2 / cos^2(0.0125).
    low, high = 1e-4, 0.02
    bound = {
        "linear": math.exp(-500 * (low + high)),
        "sigmoid": math.exp(-500 * (low + high)),
        "quadratic": math.exp(-(low + high + math.sqrt(low * high)) / 0.003),
        "cosine": 1e-3 * (math.pi / 2 / timesteps) ** 2 * 1.0002,
    }[schedule]
    assert bound < 8e-4
    left = Process(timesteps, schedule, "x0", 0.0).signal[-1]
    assert left <= bound * (1 + 1e-9)


# The forward process


@lengths
@schedules
def test_unit_variance_stays_unit_variance(schedule, timesteps):
    """x_0 and the noise are independent: squares of their shares add."""
    forward = Process(timesteps, schedule, "x0", 0.0)
    times = np.arange(timesteps)
    one, zero = np.ones((timesteps, 1)), np.zeros((timesteps, 1))
    kept = np.asarray(forward.noised(one, times, zero), np.float64)
    added = np.asarray(forward.noised(zero, times, one), np.float64)
    assert kept.min() > 0
    # Each was rounded to float32 once.
    np.testing.assert_allclose(kept**2 + added**2, 1, atol=2.4e-7)


def test_the_denoiser_should_predict_its_target():
    clean, noise = np.ones((2, 3)), np.zeros((2, 3))
    assert Process(5, "linear", "x0", 0.0).wanted(clean, noise) is clean
    assert Process(5, "linear", "noise", 0.0).wanted(clean, noise) is noise


# The way back


@given(st.integers(1, 400), st.data())
def test_times_fall_evenly_from_the_last(timesteps, data):
    steps = data.draw(st.integers(1, timesteps))
    reverse = Process(timesteps, "cosine", "x0", 0.0).reverse(steps, 1.0)
    times = np.asarray(reverse.time)
    assert len(times) == steps
    assert times[0] == timesteps - 1
    # The step to x_0 is one of them, no longer and no shorter than another:
    # it leaves from 0 only where every step is taken.
    gaps = -np.diff(np.append(times, -1))
    assert set(gaps) <= {timesteps // steps, -(-timesteps // steps)}
    assert gaps.min() >= 1
    assert times[-1] == -(-timesteps // steps) - 1
    # Wherever it leaves from, it ends at the predicted x_0, without noise.
    last = jax.tree.map(lambda a: np.asarray(a)[-1], reverse)
    assert last.step(np.float32(5), np.float32(3), 7.0) == 3


@schedules
@pytest.mark.parametrize(
    ("timesteps", "steps"),
    # Some where the steps do not divide T.
    [(1, 1), (5, 5), (5, 2), (25, 25), (25, 7), (50, 6), (100, 30)],
)
def test_steps_back_are_the_papers(schedule, timesteps, steps):
    rng = np.random.default_rng(0)
    times = papers_times(timesteps, steps)
    # papers_signal divides by T - 1.
    signal = (
        papers_signal(schedule, timesteps)
        if timesteps > 1
        else 1 - process.betas(schedule, 1)
    )
    x, output, noise = rng.normal(size=(3, steps, 4, 6)).astype(np.float32)
    for target, clip, eta in itertools.product(
        process.TARGETS, CLIPS, (0.0, 0.5, 1.0)
    ):
        reverse = Process(timesteps, schedule, target, clip).reverse(steps, eta)
        got = each_step(reverse, x, output, noise)
        np.testing.assert_array_equal(reverse.time, times)
        for n, (now, after) in enumerate(chain(signal, times)):
            args = (x[n].astype(float), output[n].astype(float))
            clean = papers_clean(target, now, *args, clip)
            mean, deviation = papers_ddim(now, after, args[0], clean, eta)
            if eta == 1:
                other = bayes(now, after, args[0], clean)
                np.testing.assert_allclose(mean, other[0], atol=1e-8)
                np.testing.assert_allclose(deviation, other[1], atol=1e-9)
            size = sizes(target, now, after, *args, noise[n], eta)
            off = np.abs(got[n] - mean - deviation * noise[n])
            assert (off <= ROUNDING * size).all(), (target, clip, eta, n)


def watched(forward, steps, eta, denoise, shape):
    """A draw, and (time, x_t) of every step that the denoiser saw."""
    seen = []

    def see(time, x):
        seen.append((int(time), np.asarray(x, np.float64)))

    def watch(x, time):
        jax.debug.callback(see, time, x, ordered=True)
        return denoise(x, time)

    reverse = forward.reverse(steps, eta)
    sample = jax.jit(lambda key: reverse.sample(watch, shape, key))
    drawn = np.asarray(sample(jax.random.key(3)), np.float64)
    jax.effects_barrier()
    times, states = zip(*seen, strict=True)
    return np.array(times), np.array([*states, drawn])


@targets
@pytest.mark.parametrize(("steps", "eta"), [(25, 0.0), (25, 1.0), (7, 0.5)])
def test_sampling_goes_all_the_way_back(target, steps, eta):
    """Each state follows from the one before it, with fresh noise."""
    forward = Process(25, "sigmoid", target, 2.5)
    signal = papers_signal("sigmoid", 25)
    # For standard normal x_0 the best prediction is this share of x_t.
    share = np.sqrt(signal if target == "x0" else 1 - signal)
    table = jnp.asarray(share, jnp.float32)
    shape = (2, 1000, 5)
    times, states = watched(
        forward, steps, eta, lambda x, t: table[t] * x, shape
    )
    np.testing.assert_array_equal(times, papers_times(25, steps))
    fresh = [states[0].ravel()]
    for n, (now, after) in enumerate(chain(signal, times)):
        x, output = states[n], share[times[n]] * states[n]
        clean = papers_clean(target, now, x, output, 2.5)
        mean, deviation = papers_ddim(now, after, x, clean, eta)
        off = states[n + 1] - mean
        if deviation:
            fresh.append(off.ravel() / deviation)
        else:
            # Outputs were computed in float32 too: one more rounding.
            size = sizes(target, now, after, x, output, 0.0, eta)
            assert (np.abs(off) <= ROUNDING * size).all()
    # The last step is without noise, and so are all of DDIM's; and what each
    # step draws is standard normal and new. 10,000 numbers: five standard
    # errors are 0.05 for a mean and a correlation, 0.07 for a variance.
    assert len(fresh) == (steps if eta else 1)
    products = np.atleast_2d(np.cov(np.array(fresh)))
    assert np.abs(np.mean(fresh, axis=1)).max() < 0.05
    np.testing.assert_allclose(products, np.eye(len(fresh)), atol=0.07)


# A denoiser that is right: x_0 is N(MEAN, VARIANCE), entry by entry

MEAN = np.array([-1.0, 0.0, 0.5, 2.0])
VARIANCE = np.array([0.05, 0.25, 1.0, 1.5])


def perfect(forward):
    """E[x_0 | x_t] of a Gaussian x_0, or the noise that goes with it."""
    left = jnp.asarray(forward.signal, jnp.float32)

    def denoise(x, time):
        now = left[time]
        gain = VARIANCE * jnp.sqrt(now) / (VARIANCE * now + 1 - now)
        clean = MEAN + gain * (x - jnp.sqrt(now) * MEAN)
        if forward.target == "x0":
            return clean
        # (x - sqrt(now) clean) / sqrt(1 - now), without its cancellation.
        return (
            (1 - gain * jnp.sqrt(now))
            * (x - jnp.sqrt(now) * MEAN)
            / jnp.sqrt(1 - now)
        )

    return denoise


def expected(schedule, timesteps, eta):
    """Mean and variance that a perfect denoiser's samples have.

    Every step is affine in x and in its noise, so both can be followed
    through the chain, in float64.
    """
    signal = papers_signal(schedule, timesteps)
    times = papers_times(timesteps, timesteps)
    mean, variance = np.zeros(4), np.ones(4)
    for now, after in chain(signal, times):
        gain = VARIANCE * np.sqrt(now) / (VARIANCE * now + 1 - now)

        def back(x, now=now, after=after, gain=gain):
            clean = MEAN + gain * (x - np.sqrt(now) * MEAN)
            return papers_ddim(now, after, x, clean, eta)

        slope = back(np.ones(4))[0] - back(np.zeros(4))[0]
        mean, deviation = back(mean)
        variance = slope**2 * variance + deviation**2
    return mean, variance


def drawn_moments(forward, eta, rows=20_000):
    reverse = forward.reverse(forward.timesteps, eta)
    sample = jax.jit(
        lambda key: reverse.sample(perfect(forward), (rows, 4), key)
    )
    drawn = np.asarray(sample(jax.random.key(1)), np.float64)
    return drawn.mean(axis=0), drawn.var(axis=0)


@some_schedules
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_perfect_denoiser_draws_what_it_should(schedule, eta):
    mean, variance = expected(schedule, 100, eta)
    for target in process.TARGETS:
        forward = Process(100, schedule, target, 0.0)
        got_mean, got_variance = drawn_moments(forward, eta)
        # Five standard errors of 20,000 draws.
        error = 5 / math.sqrt(20_000)
        assert (np.abs(got_mean - mean) < error * np.sqrt(variance)).all()
        np.testing.assert_allclose(
            got_variance, variance, rtol=error * math.sqrt(2)
        )


@schedules
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_more_steps_bring_samples_closer_to_the_truth(schedule, eta):
    """Steps of finite length lose variance; the loss shrinks with 1 / T."""
    losses = {}
    for timesteps in (100, 1000):
        mean, variance = expected(schedule, timesteps, eta)
        # Sampling starts at mean 0 instead of sqrt(alpha-bar) times that of
        # x_0, and DDIM hands this on; a deviation is worth one of noise.
        left = papers_signal(schedule, timesteps)[-1]
        start = np.sqrt(left * np.maximum(VARIANCE, 1)) * np.abs(MEAN)
        assert (np.abs(mean - MEAN) <= start + 1e-12).all()
        losses[timesteps] = 1 - variance / VARIANCE
    assert (losses[1000] > 0).all()
    assert (losses[1000] < 0.05).all()
    np.testing.assert_allclose(losses[100] / losses[1000], 8.5, atol=3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_thousand_steps_recover_mean_and_variance(eta):
    mean, variance = drawn_moments(Process(1000, "cosine", "x0", 0.0), eta)
    # Five standard errors of 20,000 draws, and 1 or 2 per cent (the smallest
    # variance) that the steps' finite length takes off the variance.
    error = 5 / math.sqrt(20_000)
    assert (np.abs(mean - MEAN) < error * np.sqrt(VARIANCE)).all()
    np.testing.assert_allclose(
        variance, VARIANCE, rtol=error * math.sqrt(2) + 0.02
    )


# diffusers


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers(torch):
    return pytest.importorskip("diffusers")


NAMES = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}
PREDICTED = {"x0": "sample", "noise": "epsilon"}


@lengths
@schedules
def test_the_signal_is_that_of_diffusers(diffusers, schedule, timesteps):
    """At the steps that their "trailing" spacing takes of 1,000."""
    made_for = timesteps if schedule == "cosine" else 1000
    theirs = diffusers.DDPMScheduler(
        made_for, beta_schedule=NAMES[schedule], timestep_spacing="trailing"
    )
    theirs.set_timesteps(timesteps)
    left = theirs.alphas_cumprod.numpy()[theirs.timesteps.numpy()[::-1]]
    # Theirs is a product of up to 1,000 factors in float32; of the cosine
    # schedule's last one, 1 - 0.999, five digits are lost.
    np.testing.assert_allclose(
        Process(timesteps, schedule, "x0", 0.0).signal,
        left,
        rtol=1e-4 if schedule == "cosine" else 6e-8 * 1000,
    )


@pytest.fixture(scope="module")
def scheduler(diffusers, torch):
    """Makes one of theirs, with our betas and tables in float64."""

    def make(kind, schedule, timesteps, target, clip):
        betas = process.betas(schedule, timesteps)
        more = (
            {"variance_type": "fixed_small"}
            if kind == "DDPM"
            else {"set_alpha_to_one": True}
        )
        made = getattr(diffusers, f"{kind}Scheduler")(
            timesteps,
            trained_betas=betas,
            prediction_type=PREDICTED[target],
            clip_sample=bool(clip),
            clip_sample_range=clip or 1.0,
            timestep_spacing="trailing",
            **more,
        )
        made.alphas_cumprod = torch.cumprod(1 - torch.from_numpy(betas), 0)
        return made

    return make


@lengths
@schedules
def test_noise_is_added_as_in_diffusers(scheduler, torch, schedule, timesteps):
    theirs = scheduler("DDPM", schedule, timesteps, "x0", 0.0)
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, timesteps, 6)).astype(np.float32)
    times = rng.permutation(timesteps)
    want = theirs.add_noise(
        *(torch.from_numpy(a.astype(float)) for a in (clean, noise)),
        torch.from_numpy(times),
    )
    got = Process(timesteps, schedule, "x0", 0.0).noised(clean, times, noise)
    size = np.abs(clean) + np.abs(noise)
    assert (np.abs(np.asarray(got) - want.numpy()) <= ROUNDING * size).all()


def outputs_for(rng, target, now, x):
    """What a fair denoiser may say; one in eight entries is above 1.5."""
    clean = rng.normal(size=x.shape)
    if target == "x0":
        return clean.astype(np.float32)
    noise = (x - np.sqrt(now) * clean) / np.sqrt(1 - now)
    return noise.astype(np.float32)


def walk(torch, theirs, target, signal, take):
    """All the way back with one of theirs.

    Returns what each step was given and what it made of it: x_t, output and
    noise, and x_before in float64.
    """
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    path = []
    for time in theirs.timesteps.tolist():
        output = outputs_for(rng, target, signal[time], x)
        seed = int(rng.integers(2**31))
        noise = torch.randn(
            x.shape,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
        before = take(
            time,
            torch.from_numpy(output.astype(float)),
            torch.from_numpy(x.astype(float)),
            noise,
            torch.Generator().manual_seed(seed),
        ).prev_sample.numpy()
        path.append((x, output, noise.numpy(), before))
        x = before.astype(np.float32)
    return [np.array(part) for part in zip(*path, strict=True)]


def compare(path, forward, steps, eta, signal):
    x, outputs, noise, before = path
    got = each_step(forward.reverse(steps, eta), x, outputs, noise)
    times = papers_times(forward.timesteps, steps)
    for n, (now, after) in enumerate(chain(signal, times)):
        size = sizes(
            forward.target, now, after, x[n], outputs[n], noise[n], eta
        )
        off = np.abs(got[n] - before[n])
        assert (off <= ROUNDING * size).all(), (forward.clip, eta, steps, n)


@targets
@lengths
@schedules
def test_ancestral_sampling_is_ddpm_of_diffusers(
    scheduler, torch, schedule, timesteps, target
):
    signal = papers_signal(schedule, timesteps)
    for clip in CLIPS:
        theirs = scheduler("DDPM", schedule, timesteps, target, clip)

        def take(time, output, x, noise, generator, theirs=theirs):
            return theirs.step(output, time, x, generator=generator)

        path = walk(torch, theirs, target, signal, take)
        forward = Process(timesteps, schedule, target, clip)
        compare(path, forward, timesteps, 1.0, signal)


@targets
@lengths
@some_schedules
def test_ddim_is_that_of_diffusers(
    scheduler, torch, schedule, timesteps, target
):
    signal = papers_signal(schedule, timesteps)
    # Theirs takes steps of T // steps: the same only where that divides T.
    for clip, eta, steps in itertools.product(
        CLIPS, (0.0, 0.5, 1.0), (timesteps, timesteps // 5)
    ):
        theirs = scheduler("DDIM", schedule, timesteps, target, clip)
        theirs.set_timesteps(steps)
        times = papers_times(timesteps, steps)
        np.testing.assert_array_equal(theirs.timesteps.numpy(), times)

        def take(
            time, output, x, noise, generator, theirs=theirs, eta=eta, clip=clip
        ):
            return theirs.step(
                output,
                time,
                x,
                eta=eta,
                use_clipped_model_output=bool(clip),
                variance_noise=noise,
            )

        path = walk(torch, theirs, target, signal, take)
        forward = Process(timesteps, schedule, target, clip)
        compare(path, forward, steps, eta, signal)


# The loss


@pytest.mark.parametrize("criterion", process.CRITERIA)
def test_distance(criterion):
    rng = np.random.default_rng(0)
    output, wanted = rng.normal(size=(2, 50, 7)).astype(np.float32)
    # Errors of exactly 1, where huber turns linear, and of 0.
    output[0], output[1] = wanted[0] + 1, wanted[1]
    want = []
    for row in output.astype(float) - wanted:
        total = 0.0
        for off in np.abs(row):
            if criterion == "l2":
                total += off * off
            elif criterion == "l1" or off > 1:
                total += off - 0.5 * (criterion == "huber")
            else:
                total += off * off / 2
        want.append(total / 7)
    got = process.distance(output, wanted, criterion)
    # A difference of two numbers below 5 is rounded by 3e-7, and squared.
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="cubic"):
        process.betas("cubic", 5)
    with pytest.raises(ValueError, match="cubic"):
        _ = Process(5, "cubic", "x0", 0.0).signal
    with pytest.raises(ValueError, match="l3"):
        process.distance(np.ones((1, 2)), np.ones((1, 2)), "l3")
