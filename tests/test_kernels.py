"""Kernels and their references do the same, and what is slower is told."""

import functools
import json
import re

import numpy as np
import pytest
from conftest import make_catalog
from test_cli import call

from neggen_jax import kernel_timing, kernels
from neggen_jax.errors import InputError
from neggen_jax.ops import library


@pytest.fixture(scope="module")
def made():
    return kernels.make(make_catalog())


def test_all_that_has_features_is_timed(made):
    assert set(made) == {
        "propagation",
        "propagation by segments",
        "propagation by BCSR",
        "ranking",
        "Adam",
        "projection",
        "projection in bfloat16",
    }


@pytest.mark.parametrize("form", ["", " by segments", " by BCSR"])
def test_layers_are_those_of_the_reference(made, form):
    kernel = made[f"propagation{form}"]
    ours, theirs = kernel.ours(), kernel.reference()
    np.testing.assert_allclose(ours[: len(theirs)], theirs, rtol=0, atol=1e-5)


def test_lists_are_those_of_the_reference(made):
    ranked, blocks = made["ranking"].ours(), made["ranking"].reference()
    lists, hits = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    # Items that are not to be ranked stand in any order at the end.
    real = ranked.lists >= 0
    np.testing.assert_array_equal(ranked.lists[real], lists[real])
    np.testing.assert_array_equal(ranked.hits[real], hits[real])


@pytest.mark.parametrize(
    ("dtype", "bound"), [("", 1e-6), (" in bfloat16", 2**-7)]
)
def test_projections_are_those_of_the_reference(made, dtype, bound):
    kernel = made[f"projection{dtype}"]
    (out, (gradient,)), expected = kernel.ours(), kernel.reference()
    for one, other in zip((out, gradient), expected, strict=True):
        atol = bound * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def test_adam_steps_as_the_reference_does(made):
    kernel = made["Adam"]
    np.testing.assert_allclose(kernel.ours(), kernel.reference(), atol=1e-5)


def test_floors_are_below(made):
    timings = kernel_timing.measure({"ranking": made["ranking"]}, 1)
    timing = timings["ranking"]
    assert 0 < timing.floor < timing.seconds
    assert timing.share == timing.floor / timing.seconds
    assert timing.ratio == timing.reference / timing.seconds


def some_timing(ratio):
    return kernel_timing.Timing(1.0, ratio, ratio, 0.5, "bytes")


def test_only_what_has_fallen_far_is_told():
    timings = {
        "a": some_timing(2.2),
        "b": some_timing(2.0),
        "new": some_timing(1),
    }
    assert kernel_timing.fallen(timings, {"a": 3.0, "b": 3.0}) == {
        "b": (2.0, 3.0)
    }


def test_ratios_of_other_sizes_and_processors_stay(tmp_path, monkeypatch):
    path = tmp_path / "kernels.json"
    on = functools.partial(monkeypatch.setattr, library, "kind")
    on(lambda: "AVX2")
    kernel_timing.accept(path, "baby", {"a": some_timing(1.234)})
    kernel_timing.accept(path, "demo", {"a": some_timing(2)})
    kernel_timing.accept(path, "demo", {"a": some_timing(3)})
    on(lambda: "other")
    kernel_timing.accept(path, "demo", {"a": some_timing(4)})
    assert json.loads(path.read_text()) == {
        "AVX2": {"baby": {"a": 1.23}, "demo": {"a": 3}},
        "other": {"demo": {"a": 4}},
    }
    assert kernel_timing.read_accepted(path, "baby") == {}
    on(lambda: "AVX2")
    assert kernel_timing.read_accepted(path, "baby") == {"a": 1.23}
    assert kernel_timing.read_accepted(path, "sports") == {}


@pytest.mark.parametrize(
    "text",
    [None, "[]", "{", f'{{"{library.kind()}": {{"demo": {{"a": "x"}}}}}}'],
)
def test_a_bad_file_is_told(tmp_path, text):
    path = tmp_path / "kernels.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="accepted ratios"):
        kernel_timing.read_accepted(path, "demo")


@pytest.mark.slow
def test_a_slower_kernel_fails_the_benchmark(tmp_path):
    path = tmp_path / "kernels.json"
    # Whatever else this machine is doing, only one of them is told.
    accepted = {"demo": {"ranking": 1e6, "projection": 0}}
    path.write_text(json.dumps({library.kind(): accepted}))
    done = call("benchmark", "--size=demo", f"--kernels={path}", "--turns=1")
    assert done.returncode == 2
    assert "Kernels have become slower" in done.stderr
    assert re.search(r"found: +ranking: [0-9.]+ of 1000000.0\n", done.stderr)
    assert "--accept" in done.stderr
    assert "propagation" in done.stdout
