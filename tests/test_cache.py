"""Programs that were compiled are found by the next process."""

import os
import subprocess
import sys
import textwrap

import pytest

from neggen_jax import cache

# Compiles one program, and says what JAX says of its cache.
PROGRAM = """
    import collections
    from neggen_jax import cache
    cache.keep_programs()
    import jax
    seen = collections.Counter()
    def count(event, **_):
        seen[event.rpartition("/")[2]] += 1
    jax.monitoring.register_event_listener(count)
    assert jax.jit(lambda x: x * 2 + 1)(3.0) == 7
    print(seen["cache_hits"] > 0, seen["cache_misses"] > 0)
"""


def run(home, **change):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = kept | {
        "XDG_CACHE_HOME": str(home),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **change,
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def programs(home):
    return sorted(home.glob("neggen_jax/programs-*/*-cache"))


def test_the_next_process_finds_what_was_compiled(tmp_path):
    assert run(tmp_path) == ["False", "True"]
    assert programs(tmp_path)
    assert run(tmp_path) == ["True", "False"]


def test_one_that_was_not_written_to_its_end_is_written_again(tmp_path):
    run(tmp_path)
    for path in programs(tmp_path):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        path.with_name(path.name.replace("-cache", "-atime")).unlink()
    assert run(tmp_path) == ["False", "True"]
    assert run(tmp_path) == ["True", "False"]


def test_without_a_bound_nothing_is_taken_for_a_half(tmp_path):
    bound = {"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    run(tmp_path, **bound)
    assert run(tmp_path, **bound) == ["True", "False"]


def test_one_may_want_none_or_another_place(tmp_path):
    run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "elsewhere"))
    assert not programs(tmp_path)
    assert list((tmp_path / "elsewhere").glob("*-cache"))


def test_what_others_may_write_is_not_run(tmp_path):
    run(tmp_path)
    (kept,) = tmp_path.glob("neggen_jax/programs-*")
    kept.chmod(0o777)
    assert run(tmp_path) == ["False", "False"]


@pytest.mark.parametrize("home", ["", "not/absolute"])
def test_without_a_cache_home_it_is_in_the_usual_place(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(cache.directory()) == "/somewhere/.cache/neggen_jax"
