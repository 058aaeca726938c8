"""The kernels in C++ give what XLA's give, to the last bit."""

import ctypes
import multiprocessing
import pathlib
import subprocess
import sys
import textwrap
import tomllib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from neggen_jax.ops import library, native

ROOT = pathlib.Path(__file__).parents[1]
ODD = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 1e-45, -1e-45]

needs_compiler = pytest.mark.skipif(
    not native.available(), reason="there is no C++ compiler"
)


def mesh():
    return jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])


def same(x, k):
    x = np.asarray(x, np.float32)
    ours = jax.jit(native.top_k, static_argnums=(1, 2))(x, k, mesh())
    theirs = jax.lax.top_k(x, k)
    for one, other in zip(ours, theirs, strict=True):
        # Bits: a zero has a sign, and a NaN is equal to none.
        np.testing.assert_array_equal(
            np.asarray(one).view(np.int32), np.asarray(other).view(np.int32)
        )


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_row_is_as_xla_has_it(data):
    # Few shapes, as each is compiled; whole blocks of values and rests.
    width, k = data.draw(st.sampled_from([(1, 1), (31, 31), (75, 2), (200, 5)]))
    value = st.one_of(st.sampled_from(ODD), st.floats(width=32))
    rows = st.lists(value, min_size=width, max_size=width)
    same(data.draw(st.lists(rows, min_size=3, max_size=3)), k)


@needs_compiler
@pytest.mark.parametrize("k", [1, 20, 50, 300, 7000])
def test_long_rows_with_ties(k):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (37, 7000)).astype(np.float32)
    x[3], x[4, 5:] = -np.inf, -np.inf
    same(x, k)


@needs_compiler
def test_rows_in_order_and_against_it():
    rising = np.arange(5000, dtype=np.float32)
    same(np.stack([rising, rising[::-1], np.roll(rising, 1234)]), 64)


@needs_compiler
def test_no_rows():
    same(np.zeros((0, 40)), 3)


needs_simd = pytest.mark.skipif(
    not native.ranks(mesh()), reason="neither AVX2 nor AVX-512, or no compiler"
)


def ranked(queries, items, pairs, count, k):
    """Lists by the kernel, -1 where nothing is left to be shown."""
    given = np.asarray(pairs, np.int32).reshape(-1, 2).T
    call = jax.jit(native.rank, static_argnums=4)
    scores, found = call(queries, items, tuple(given), count, k)
    return np.asarray(scores), np.where(scores == -np.inf, -1, found)


@needs_simd
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_lists_are_those_of_a_stable_sort(data):
    # Few shapes, as each is compiled: panels of 64 queries, groups of 12
    # items, chunks of 3,072 and their rests.
    rows, held, dim, k = data.draw(
        st.sampled_from(
            [(1, 5, 1, 7), (70, 40, 3, 2), (64, 700, 2, 50), (3, 7000, 2, 5)]
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    most = data.draw(st.integers(0, 3))
    queries, items = (
        rng.integers(-most, most + 1, (n, dim)).astype(np.float32)
        for n in (rows, held)
    )
    count = data.draw(st.integers(0, held + 3))
    # Out of range some of them, and some twice.
    pairs = np.stack(
        [rng.integers(-2, rows + 2, 300), rng.integers(-9, held + 9, 300)], 1
    )
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    scores[:, count:] = -np.inf
    for row, item in pairs:
        if 0 <= row < rows and 0 <= item < held:
            scores[row, item] = -np.inf
    scores = np.pad(scores, ((0, 0), (0, k)), constant_values=-np.inf)
    want = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, want, axis=1)
    got = ranked(queries, items, pairs, count, k)
    np.testing.assert_array_equal(got[0], best)
    np.testing.assert_array_equal(got[1], np.where(best == -np.inf, -1, want))


@needs_simd
@pytest.mark.parametrize("rows", [1, 64, 65])
def test_what_is_no_number_comes_first(rows):
    rng = np.random.default_rng(rows)
    items = rng.normal(size=(9000, 1)).astype(np.float32)
    items[rng.permutation(9000)[:90]] = np.nan
    items[5], items[8999], items[4000:4020] = np.inf, -np.inf, 0.0
    got = ranked(np.ones((rows, 1), np.float32), items, [], 9000, 200)
    scores, found = jax.lax.top_k(items.T, 200)
    for row in range(rows):
        np.testing.assert_array_equal(got[1][row], found[0])
        np.testing.assert_array_equal(got[0][row], scores[0])


@needs_simd
def test_products_too_small_for_a_float_are_equal():
    # Among the best are scores that processors may take for zeros.
    items = np.full((4000, 1), 1e-30, np.float32)
    items[[7, 3500]] = 1.0
    _, found = ranked(np.float32([[1e-15], [0.0]]), items, [[1, 0]], 4000, 60)
    np.testing.assert_array_equal(found[0, :2], [7, 3500])
    assert sorted(found[0, 2:]) == [n for n in range(59) if n != 7]
    np.testing.assert_array_equal(found[1], np.arange(1, 61))


@needs_simd
@pytest.mark.parametrize("count", [5000, 2000])
def test_zeros_of_either_sign_are_equal(count):
    # In one chunk, and in several.
    items = np.full((count + 2000, 1), -1e-30, np.float32)
    items[count:] = 1e-30
    _, found = ranked(np.float32([[1e-15]]), items, [], len(items), 5)
    np.testing.assert_array_equal(found[0], np.arange(5))


@needs_simd
def test_nobody_asks_and_nothing_is_asked_for():
    items = np.ones((20, 4), np.float32)
    assert ranked(items[:0], items, [], 20, 3)[1].shape == (0, 3)
    assert ranked(items, items, [], 20, 0)[1].shape == (20, 0)


@needs_compiler
@pytest.mark.parametrize("d", [1, 7, 16, 64, 100, 128])
def test_products_are_as_xla_has_them(d, monkeypatch):
    rng = np.random.default_rng(d)
    degrees = rng.integers(0, 9, 700)
    degrees[[0, 5, 699]] = 0, 500, 0
    starts = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int32)
    # With padding past the last row.
    columns = rng.integers(0, 90, starts[-1] + 13).astype(np.int32)
    weights = rng.normal(size=columns.size).astype(np.float32)
    x = rng.normal(size=(90, d)).astype(np.float32)
    ours = jax.jit(native.multiply)(starts, columns, weights, x)
    real = slice(0, starts[-1])
    entries = weights[real].astype(np.float64), columns[real], starts
    matrix = sparse.csr_array(entries, shape=(700, 90))
    np.testing.assert_allclose(ours, matrix @ x, rtol=0, atol=1e-4)
    monkeypatch.setattr(native, "available", lambda: False)
    theirs = jax.jit(lambda *a: native.multiply(*a))(
        starts, columns, weights, x
    )
    np.testing.assert_array_equal(ours, theirs)


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="not 6 columns, but 5"):
        native.top_k(np.zeros((2, 5), np.float32), 6, mesh())


def test_all_of_it_is_installed():
    """What pyproject.toml names of the C++ is what there is."""
    text = (ROOT / "pyproject.toml").read_text()
    named = tomllib.loads(text)["tool"]["setuptools"]["package-data"]
    ops = ROOT / "neggen_jax" / "ops"
    found = {f for glob in named["neggen_jax.ops"] for f in ops.glob(glob)}
    assert found == set(library.sources()) == set((ops / "cc").iterdir())


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "kind"),
    [
        ("sse2", "other"),
        ("sse2 avx avx2", "other"),
        ("sse2 avx avx2 fma", "AVX2"),
        ("sse2 avx2 fma avx512f", "AVX-512"),
        ("avx512f avx512_vnni", "AVX-512 VNNI"),
    ],
)
def test_it_compiles_for_each_kind_of_processor(
    tmp_path, monkeypatch, processor, kind
):
    said = f"processor\t: 0\nflags\t\t: fpu {processor}\nbugs\t\t: avx512f\n"
    monkeypatch.setattr(library.Path, "read_text", lambda self: said)
    assert library.kind() == kind
    tmp_path.chmod(0o700)
    made = ctypes.cdll.LoadLibrary(str(library.build(tmp_path)))
    assert made.neggen_has_simd() == (kind != "other")
    assert made.neggen_has_vnni() == ("VNNI" in kind)


@needs_compiler
def test_what_others_may_write_is_not_run(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write"):
        library.build(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "none"),
        pytest.param(
            {"XDG_CACHE_HOME": "not/absolute"}, "none", marks=pytest.mark.slow
        ),
        pytest.param({"NEGGEN_NATIVE": "0"}, "", marks=pytest.mark.slow),
    ],
)
def test_without_kernels_xla_ranks(tmp_path, change, said):
    code = """
        import jax, numpy as np
        from neggen_jax.ops import native
        mesh = jax.make_mesh((1,), ("data",))
        x = np.float32([[1, 3, 2]])
        print(native.available(), native.top_k(x, 2, mesh)[1].tolist())
    """
    environment = {
        "PATH": "",
        "CXX": str(tmp_path / "none"),
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        **change,
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False [[1, 2]]\n", done.stderr
    assert ("No kernels in C++" in done.stderr) == bool(said)
    assert said in done.stderr


@pytest.mark.slow
@needs_compiler
def test_several_processes_compile_at_once(tmp_path, monkeypatch):
    # As on a machine's first run of several processes: none is done before
    # the other has begun.
    log, compiler = tmp_path / "log", tmp_path / "slow"
    compiler.write_text(
        f"""#!/bin/sh
echo begun >> {log}
while [ "$(wc -l < {log})" -lt 2 ]; do sleep 0.1; done
exec c++ "$@"
"""
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    cache = tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        made = pool.map(library.build, [cache, cache], chunksize=1)
    assert made[0] == made[1]
    assert list(cache.iterdir()) == [made[0]]
