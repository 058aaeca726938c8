"""The training loop: what a run leaves, and how it goes on."""

import gc
import json
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog, some
from training import digests, fill, make_config, numbers

from neggen_jax import run as runs
from neggen_jax import train as loop
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.errors import InputError
from neggen_jax.saving import Meta
from neggen_jax.step import Program
from neggen_jax.train import train_and_evaluate

# A test may not take turns with the clock: everything but these two.
TIMED = {"timing"}


def train(workdir, **changes):
    """Trains MF on the tiny catalogue, on all eight virtual devices."""
    config = make_config("mf", **{"train__epochs": 2, **changes})
    return train_and_evaluate(config, workdir, make_catalog())


def log(workdir, key=""):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if key in json.dumps(line)]


def final(workdir, step=None):
    """Parameters, optimiser state and host state of a checkpoint."""
    run = runs.Run.make(make_config("mf"), make_catalog())
    _, abstract = run.start()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state, meta = checkpoints.restore(abstract, step)
    return numbers(state), {
        k: v for k, v in meta.items() if not k.endswith("seconds")
    }


def untimed(results):
    return {
        k: v for k, v in results.items() if k not in TIMED and k != "config"
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two epochs; not to be changed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, train(workdir)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same run, trained for three epochs at once."""
    workdir = tmp_path_factory.mktemp("three") / "run"
    return workdir, train(workdir, train__epochs=3)


@pytest.fixture
def copy(two, tmp_path):
    return shutil.copytree(two[0], tmp_path / "run")


def test_results_hold_what_was_promised(two):
    workdir, results = two
    assert json.loads((workdir / "results.json").read_text()) == results
    promised = {"dataset", "config", "step", "valid", "test", "timing"}
    assert promised <= results.keys()
    popular = results["most_popular"]
    assert 0 < popular["recall@5"] < popular["recall@20"] < 1
    assert popular.keys() < results["test"].keys()
    timing = results["timing"]
    names = ("seconds_per_epoch", "examples_per_second", "evaluation_seconds")
    for name in (*names, "compile_seconds"):
        assert timing[name] > 0, name
    assert timing["examples_per_second"] * timing["seconds_per_epoch"] == (
        pytest.approx(9 * 64)
    )
    for split in ("valid", "test"):
        for metric in ("recall", "ndcg", "precision", "map", "mrr", "hitrate"):
            assert 0 <= results[split][f"{metric}@20"] <= 1
        for name in ("coverage", "gini", "popularity", "novelty"):
            assert f"{name}@20" in results[split]
        for name in ("diversity_text@20", "diversity_image@20"):
            assert 0 < results[split][name] < 2
        with np.load(workdir / f"per_user_{split}.npz") as per_user:
            assert len(per_user["users"]) == 61
            mean = per_user["ndcg@20"].mean()
            assert mean == pytest.approx(results[split]["ndcg@20"])


@pytest.mark.parametrize("over", [True, False])
def test_batches_are_waited_for_where_devices_have_nothing_to_do(
    tmp_path, monkeypatch, over
):
    """By a clock that goes while batches are made, and else stands still."""
    now, made, noted, met = 0.0, runs.Run.batches, Meta.note, []

    def batches(self, first):
        nonlocal now
        for stack in made(self, first):
            now += 1.0
            yield stack

    def note(self, value, step):
        met.append(self.input_seconds[:])
        noted(self, value, step)

    monkeypatch.setattr(runs.Run, "batches", batches)
    monkeypatch.setattr(Meta, "note", note)
    monkeypatch.setattr(loop, "_over", lambda said: over)
    clock = SimpleNamespace(perf_counter=lambda: now, time=time.time)
    monkeypatch.setattr(loop, "time", clock)
    train(tmp_path / "run")
    # Of three dispatches an epoch; the very first batches come before it.
    first, second = (2, 3) if over else (0, 1)
    assert met == [[first], [first, second]]


def test_what_is_hardly_meant_is_said_before_it_trains(tmp_path, capsys):
    late = {"name": "ramped_uniform", "start": 1.0}
    config = make_config("mf", train__epochs=1, train__batch_size=576)
    with config.unlocked():
        config.negatives.late = late
    train_and_evaluate(config, tmp_path / "run", make_catalog())
    said = capsys.readouterr().err
    assert "warning: negatives.late are let in from 1 epochs on" in said
    assert "warning: an epoch has few steps (1, of 576 interactions)" in said


def test_devices_are_at_work_until_they_are_not():
    large = jnp.ones((1500, 1500))
    product = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: y @ x, x))
    product(large).block_until_ready()
    report = SimpleNamespace(bad_step=product(large)[0, 0])
    assert not loop._over(report)
    report.bad_step.block_until_ready()
    assert loop._over(report)


def test_the_best_step_is_the_one_of_the_log(two):
    workdir, results = two
    values = {line["step"]: line for line in log(workdir, "valid/")}
    assert sorted(values) == [9, 18]
    best = max(values, key=lambda s: (values[s]["valid/recall@20"], -s))
    assert results["step"] == best
    assert results["epoch"] == best / 9
    for name, value in values[best].items():
        if name.startswith("valid/"):
            assert results["valid"][name.removeprefix("valid/")] == value
    assert [line["step"] for line in log(workdir, "train/")] == [
        3, 6, 9, 12, 15, 18,
    ]  # fmt: skip
    for line in log(workdir, "train/"):
        assert line["train/loss"] > 0
        assert line["epoch"] == line["step"] / 9


def test_a_finished_run_called_again_changes_nothing(two):
    workdir, results = two
    before = digests(workdir)
    assert train(workdir) == results
    assert digests(workdir) == before


def test_reopening_reads_and_changes_nothing(two, tmp_path):
    workdir, results = two
    before = digests(workdir)
    config = make_config("mf")
    run = runs.Run.make(config, make_catalog())
    _, abstract = run.start()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(abstract, results["step"])
    for split in ("valid", "test"):
        values, _ = runs.evaluate_state(run, state, split)
        assert values == results[split]
    assert digests(workdir) == before


def test_a_longer_run_goes_on(copy, three):
    """Two epochs, and then one more, are three."""
    results = train(copy, train__epochs=3)
    assert untimed(results) == untimed(three[1])
    assert log(copy) == log(three[0])
    (got, meta), (want, same) = final(copy), final(three[0])
    assert meta == same
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    identity = json.loads((copy / "run.json").read_text())
    assert identity["config"]["train"]["epochs"] == 3


@pytest.mark.parametrize(
    "meshes",
    some([((8, 1), (4, 2)), ((1, 8), (8, 1))], ((1, 8), (8, 1))),
)
def test_goes_on_on_another_mesh(meshes, three, tmp_path):
    """Tables have other padding there; it comes, and it goes.

    Losses differ by the order of sums alone. Each is a mean over 64 pairs or
    fewer, and Adam's steps of .01 turn a relative error of a gradient into
    as much of a hundredth of a parameter.
    """
    for epochs, (data, model) in zip((2, 3), meshes, strict=True):
        mesh = {"mesh__data": data, "mesh__model": model}
        train(tmp_path, train__epochs=epochs, **mesh)
    got, want = log(tmp_path, "train/"), log(three[0], "train/")
    for left, right in zip(got, want, strict=True):
        assert left["step"] == right["step"]
        assert left["train/loss"] == pytest.approx(
            right["train/loss"], rel=1e-5
        )


def test_a_longer_run_does_not_keep_the_results_of_the_shorter(
    copy, monkeypatch
):
    """Killed before it was done, it has no results yet."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Program, "dispatch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(copy, train__epochs=3)
    assert not (copy / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"optimizer__learning_rate": 0.5}, "learning_rate: 0.01 -> 0.5"),
        ({"train__batch_size": 128}, "train.batch_size: 64 -> 128"),
        ({"evaluate__cutoffs": (5, 10, 20)}, "[5, 20] -> [5, 10, 20]"),
    ],
)
def test_refuses_another_config(copy, changes, found):
    before = digests(copy)
    with pytest.raises(InputError) as caught:
        train(copy, **changes)
    assert found in caught.value.found
    assert digests(copy) == before


def test_refuses_other_data(copy):
    before = digests(copy)
    with pytest.raises(InputError, match="other data"):
        train_and_evaluate(
            make_config("mf", train__epochs=2), copy, make_catalog(seed=1)
        )
    assert digests(copy) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_goes_on_from_the_one_before_a_damaged_checkpoint(copy, three, capsys):
    for path in (copy / "checkpoints" / "18" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-7])
    damaged = digests(copy / "checkpoints" / "18")
    # Readers fall back too, and touch nothing.
    before = digests(copy)
    assert final(copy)[1]["epochs"] == 1
    assert digests(copy) == before
    capsys.readouterr()
    results = train(copy, train__epochs=3)
    said = capsys.readouterr().err
    assert "step 18 cannot be read" in said
    assert "going on from step 9" in said
    assert digests(copy / "damaged" / "18") == damaged
    assert untimed(results) == untimed(three[1])
    assert log(copy) == log(three[0])
    (got, meta), (want, same) = final(copy), final(three[0])
    assert meta == same
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    gc.collect()  # what Orbax leaves behind, while the mark is there


def test_a_full_disk_stops_a_run_that_room_lets_go_on(small_disk, two, three):
    workdir = shutil.copytree(two[0], small_disk / "run")
    filler = fill(small_disk, leave=200_000)
    before = digests(workdir / "checkpoints")
    with pytest.raises(InputError, match="could not be written") as caught:
        train(workdir, train__epochs=3)
    assert "make room" in caught.value.fix
    assert digests(workdir / "checkpoints") == before
    filler.unlink()
    results = train(workdir, train__epochs=3)
    assert untimed(results) == untimed(three[1])
    assert log(workdir) == log(three[0])


def test_stops_when_valid_stops_improving(tmp_path, capsys):
    """A learning rate of nearly 0 changes no ranking."""
    changes = {"optimizer__learning_rate": 1e-12, "train__epochs": 9}
    results = train(tmp_path, train__patience=2, **changes)
    assert results["step"] == 9
    assert results["epochs_trained"] == 3
    said = capsys.readouterr().out
    assert "mf with uniform negatives on tiny: new; compiling first" in said
    assert "over, as nothing was better (train.patience)" in said
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "18", "27", "9",
    ]  # fmt: skip
    # More patience, and it goes on; the count of evaluations too.
    results = train(tmp_path, train__patience=3, **changes)
    assert results["epochs_trained"] == 4
    assert results["step"] == 9


def test_evaluates_and_saves_when_told_to(tmp_path):
    results = train(
        tmp_path,
        train__epochs=5,
        train__eval_every=2,
        train__checkpoint_every=3,
        train__keep=9,
        optimizer__learning_rate=1e-12,
    )
    # Every second epoch, and the last.
    steps = [line["step"] for line in log(tmp_path, "valid/")]
    assert steps == [18, 36, 45]
    # Every third epoch, the best, and the last.
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert saved == [18, 27, 45]
    assert results["step"] == 18


def test_diverging_stops_with_step_and_terms(tmp_path):
    with pytest.raises(InputError, match="diverged at step 0") as caught:
        train(tmp_path, optimizer__learning_rate=1e30)
    assert {"loss", "bpr", "l2", "gradient_norm"} <= caught.value.found.keys()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert log(tmp_path) == []


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_after_diverging_the_last_good_checkpoint_goes_on(
    tmp_path, monkeypatch, three, seconds
):
    """A fault at step 11 that comes once: it is gone when the run resumes."""
    step = Program.step

    def faulty(self, state, inputs, batch):
        state, terms = step(self, state, inputs, batch)
        bad = state.step == 12
        ruin = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), state.params)
        terms["update_norm"] = jnp.where(bad, jnp.nan, terms["update_norm"])
        return state.replace(params=ruin), terms

    with monkeypatch.context() as patched:
        patched.setattr(Program, "step", faulty)
        changes = {"train__epochs": 3, "train__checkpoint_seconds": seconds}
        with pytest.raises(InputError, match="diverged at step 11") as caught:
            train(tmp_path, **changes)
    assert np.isnan(caught.value.found["update_norm"])
    assert np.isfinite(caught.value.found["loss"])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["9"]
    assert not (tmp_path / "results.json").exists()
    results = train(tmp_path, train__epochs=3)
    assert untimed(results) == untimed(three[1])
    assert log(tmp_path) == log(three[0])


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("train__epochs", 0, "from 1"),
        ("train__batch_size", 0, "from 1"),
        ("train__batch_size", 12, "a multiple of 8"),
        ("train__steps_per_dispatch", 0, "from 1"),
        ("train__eval_every", 0, "from 1"),
        ("train__checkpoint_every", -1, "from 1"),
        ("train__keep", 0, "from 1"),
        ("train__ema", 1.0, "from 0"),
        ("train__dtype", "float16", "did you mean 'bfloat16'"),
        ("train__metric", "recal@20", "did you mean 'recall@20'"),
        ("train__metric", "recall@10", "known: "),
        ("data__pipeline", "tfdata", "did you mean 'tf.data'"),
        ("evaluate__cutoffs", (5, 20, 42), "to 41"),
        ("evaluate__cutoffs", (0, 20), "from 1"),
        ("evaluate__cutoffs", (), "from 1"),
        ("evaluate__block_size", 0, "from 1"),
        ("evaluate__recall_target", 1.5, "from 0.01 to 1.0"),
        ("seed", -1, "from 0"),
        ("mesh__model", 3, "data * model == 8"),
        ("mesh__exchange", "rnig", "did you mean 'ring'"),
        ("optimizer__schedule", "cosin", "did you mean 'cosine'"),
        ("encoder__name", "lightgnc", "did you mean 'lightgcn'"),
        ("negatives__sampled__name", "unifrom", "did you mean 'uniform'"),
        ("losses__bpr__name", "brp", "did you mean 'bpr'"),
        ("losses__bpr__source", "sample", "did you mean 'sampled'"),
        ("losses__l2__view", "egos", "did you mean 'ego'"),
        ("encoder__layer", 2, "takes no"),
        ("negatives__sampled__cuont", 2, "did you mean 'count'"),
    ],
)
def test_bad_values_leave_no_workdir(tmp_path, catalog, key, value, hint):
    config = make_config("mf")
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    with pytest.raises(InputError) as caught:
        train_and_evaluate(config, tmp_path / "run", catalog)
    assert hint in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_dataset(tmp_path):
    with pytest.raises(InputError, match="No dataset is named"):
        train_and_evaluate(make_config("mf"), tmp_path / "run")
    config = make_config("mf", data__path=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no such dataset"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_host_remembers_the_first_best():
    meta = Meta()
    for step, value in enumerate([0.1, 0.3, 0.3, 0.2], 1):
        meta.note(value, step)
    assert (meta.best_value, meta.best_step, meta.worse) == (0.3, 2, 2)
    config = make_config("mf", train__patience=2, train__epochs=9).train
    assert meta.over(config)
    config.patience = 3
    assert not meta.over(config)
    config.patience = 0
    assert not meta.over(config)
    meta.epochs = 9
    assert meta.over(config)
