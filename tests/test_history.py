"""What is read back of a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import make_run, write_log

from neggen_jax import history
from neggen_jax.errors import InputError


def test_a_resumed_log_counts_the_later_value_and_drops_a_cut_line(tmp_path):
    workdir = make_run(tmp_path)
    lines = [
        '{"step": 20, "epoch": 2.0, "train/loss": 0.9}',
        '{"step": 10, "epoch": 1.0, "train/loss": 1.0}',
        '{"step": 20, "epoch": 2.0, "valid/recall@20": 0.1}',
        '{"step": 20, "epoch": 2.0, "train/loss": 0.8}',
    ]
    write_log(workdir, [*lines, '{"step": 30, "tra'])
    assert history.read_metrics(workdir) == [
        {"step": 10, "epoch": 1.0, "train/loss": 1.0},
        {"step": 20, "epoch": 2.0, "train/loss": 0.8, "valid/recall@20": 0.1},
    ]
    write_log(workdir, [lines[0], "nonsense", lines[1]])
    with pytest.raises(InputError, match="line 2"):
        history.read_metrics(workdir)
    write_log(workdir, ['{"train/loss": 1.0}', lines[1]])
    with pytest.raises(InputError, match="line 1"):
        history.read_metrics(workdir)


def test_missing_and_broken_files_say_what_to_run(tmp_path):
    workdir = make_run(tmp_path)
    (workdir / "results.json").write_text('{"test": ')
    with pytest.raises(InputError, match=r"launch/train\.py"):
        history.read_results(workdir)
    (workdir / "results.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        history.read_results(workdir)
    with pytest.raises(InputError, match=r"no results\.json"):
        history.read_results(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        history.read_metrics(tmp_path / "nowhere")


@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    per_epoch=st.integers(7, 40),
    seed=st.integers(0, 99),
)
def test_means_by_epoch_are_of_the_lines_that_end_in_it(
    counts, per_epoch, seed
):
    """`counts` dispatches in each epoch, the last at its very end."""
    generator = np.random.default_rng(seed)
    log, want = [], []
    for epoch, count in enumerate(counts):
        ends = generator.choice(np.arange(1, per_epoch), count - 1, False)
        values = generator.normal(size=count)
        want.append(values.mean())
        for end, value in zip([*sorted(ends), per_epoch], values, strict=True):
            step = int(epoch * per_epoch + end)
            # As train.py computes it.
            log.append({"step": step, "epoch": step / per_epoch, "x": value})
    epochs, means = history.by_epoch(log, "x")
    assert epochs == list(range(1, len(counts) + 1))
    # Sums of up to seven float64 in another order.
    np.testing.assert_allclose(means, want, rtol=1e-12, atol=1e-14)


def test_an_epoch_without_a_value_is_left_out():
    log = [
        {"step": 1, "epoch": 0.5, "x": 1.0},
        {"step": 2, "epoch": 1.0},
        {"step": 4, "epoch": 2.0, "y": 5.0},
        {"step": 6, "epoch": 3.0, "x": 2.0},
        {"step": 7, "x": 9.0},
    ]
    assert history.by_epoch(log, "x") == ([1, 3], [1.0, 2.0])
    assert history.by_epoch(log, "z") == ([], [])


def test_the_best_step_is_the_first_of_the_highest_values(tmp_path):
    log = history.read_metrics(make_run(tmp_path))
    assert history.best_step(log) == 30
    assert history.best_step([*log, {**log[2], "step": 50}]) == 30
    assert history.best_step([{"step": 1, "train/loss": 2.0}]) is None


def test_labels_name_what_a_config_composes():
    assert history.label({"name": "mf", "dim": 8}) == "mf"
    sources = {"easy": {"name": "uniform"}, "hard": {"name": "diffusion"}}
    assert history.label(sources) == "uniform + diffusion"
    assert history.label([]) == history.label(None) == "-"
