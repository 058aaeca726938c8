"""What of a run is saved, and when."""

import tempfile

import jax
import pytest
from conftest import make_catalog
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from test_checkpoint import abstract, assert_equal, make_state, steps
from training import make_config

from neggen_jax import saving, storage
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.saving import Meta, Saving
from neggen_jax.train import train_and_evaluate


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(saving, "time", made)
    return made


def configured(**changes):
    return ConfigDict(
        {
            "epochs": 9,
            "patience": 0,
            "checkpoint_every": 1,
            "checkpoint_seconds": 10.0,
            **changes,
        }
    )


def end_epoch(saver, meta, value, partition):
    """Has an epoch of one step saved, and takes its memory away."""
    meta.epochs += 1
    if value is not None:
        meta.note(value, meta.epochs)
    state = make_state(meta.epochs, partition)
    saver.save(state, meta)
    return jax.block_until_ready(state)


def test_time_passes_between_two_and_the_best_is_kept(tmp_path, one, clock):
    said = []
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        saver = Saving(checkpoints, configured(), 1, lambda: said.append(0))
        meta = Meta()
        for value in (0.1, 0.3, 0.2):
            state = end_epoch(saver, meta, value, one)
            # The next step trains where this one lay.
            for leaf in jax.tree.leaves(state):
                leaf.delete()
        assert steps(tmp_path) == said == []
        clock.now = 10.0
        end_epoch(saver, meta, 0.2, one)
        checkpoints.wait()
        assert steps(tmp_path) == [2, 4]
        assert said
        state, known = checkpoints.restore(abstract(one), 2)
        assert_equal(state, make_state(2, one))
        assert known["best_step"] == known["epochs"] == 2
        # From then on it is written, and is not again.
        clock.now = 19.9
        end_epoch(saver, meta, 0.2, one)
        checkpoints.wait()
        assert steps(tmp_path) == [2, 4]
        clock.now = 20.0
        end_epoch(saver, meta, 0.2, one)
        checkpoints.wait()
        assert steps(tmp_path) == [2, 6]


def test_what_was_too_early_is_saved_when_it_is_not(tmp_path, one, clock):
    with Checkpoints(tmp_path) as checkpoints:
        config = configured(checkpoint_every=3)
        saver, meta = Saving(checkpoints, config, 1, lambda: None), Meta()
        for now in (1.0, 2.0, 9.0, 10.0, 30.0):
            clock.now = now
            end_epoch(saver, meta, None, one)
        checkpoints.wait()
        # The third was due; not the fifth, however late it is.
        assert steps(tmp_path) == [4]


def test_the_best_can_be_had_before_its_time(tmp_path, one, clock):
    with Checkpoints(tmp_path) as checkpoints:
        saver, meta = Saving(checkpoints, configured(), 1, lambda: None), Meta()
        saver.flush()
        end_epoch(saver, meta, 0.2, one)
        end_epoch(saver, meta, 0.1, one)
        saver.flush()
        checkpoints.wait()
        assert steps(tmp_path) == [1]


def test_what_stops_is_saved_with_its_best(tmp_path, one, clock):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        saver = Saving(checkpoints, configured(), 4, lambda: None)
        meta = Meta(epochs=1, best_value=0.5, best_step=4)
        saver.save(make_state(4, one), meta)
        # Within the second epoch.
        saver.save(make_state(6, one), meta)
        saver.save(make_state(6, one), meta, stopping=True)
        checkpoints.wait()
        assert steps(tmp_path) == [4, 6]
        assert checkpoints.restore(abstract(one), 6)[1]["best_step"] == 4


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_at_any_moment_the_best_step_is_there(one, data):
    values = data.draw(
        st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=9)
    )[:9]
    waits = data.draw(st.lists(st.integers(0, 12), min_size=9))
    every, keep = (data.draw(st.integers(1, 3)) for _ in range(2))
    patience = data.draw(st.sampled_from([0, 3]))
    config = configured(checkpoint_every=every, patience=patience)
    made = Clock()
    with (
        tempfile.TemporaryDirectory() as directory,
        pytest.MonkeyPatch.context() as patch,
        Checkpoints(directory, keep) as checkpoints,
    ):
        patch.setattr(saving, "time", made)
        saver = Saving(checkpoints, config, 1, lambda: None)
        meta, saved = Meta(), 0.0
        for value, wait in zip(values, waits, strict=False):
            made.now += wait
            end_epoch(saver, meta, value, one)
            checkpoints.wait()
            there = steps(storage.path(directory))
            if there:
                known = checkpoints.restore(abstract(one))[1]
                assert known["epochs"] == there[-1]
                assert known["best_step"] in {None, *there}
                if there[-1] == meta.epochs:
                    saved = made.now
            assert made.now - saved < 10 or every > 1
            if meta.over(config):
                break
        else:
            assert len(values) < config.epochs
            return
        there = steps(storage.path(directory))
        assert {meta.epochs, meta.best_step} - {None} <= set(there)


def test_how_often_a_run_is_saved_changes_nothing(tmp_path):
    told = []
    for seconds in (0.0, 3600.0):
        workdir = tmp_path / str(seconds)
        config = make_config("mf", train__checkpoint_seconds=seconds)
        results = train_and_evaluate(config, workdir, make_catalog())
        log = (workdir / "metrics.jsonl").read_text()
        told.append((results["test"], results["step"], log))
    assert told[0] == told[1]
    # Fewer are there: the last, and the best.
    assert steps(workdir) == sorted({results["step"], 27})
    # A run may go on with another number.
    config = make_config("mf", train__checkpoint_seconds=5.0)
    again = train_and_evaluate(config, workdir, make_catalog())
    assert again["test"] == told[0][0]
