"""Methods over several seeds, against NumPy and SciPy."""

import json

import numpy as np
import pytest
from scipy import stats

from neggen_jax import significance
from neggen_jax.errors import InputError

USERS = np.arange(40) * 3


def write(directory, seed, recall, config=(), dataset="toy", users=USERS):
    directory.mkdir()
    results = {
        "config": {"seed": seed, **dict(config)},
        "dataset": dataset,
        "test": {"recall@20": 7.0, "coverage@20": recall.sum()},
    }
    (directory / "results.json").write_text(json.dumps(results))
    columns = {"recall@20": recall, "ndcg@20": recall / 2}
    np.savez_compressed(directory / "per_user_test.npz", users=users, **columns)
    return directory


@pytest.fixture
def values():
    draw = np.random.default_rng(0)
    plain = draw.random((3, len(USERS)))
    return {"plain": plain, "better": plain + draw.random(plain.shape) * 0.2}


@pytest.fixture
def groups(tmp_path, values):
    return [
        significance.read(
            name,
            [
                # In the wrong order: seeds put them right.
                write(tmp_path / f"{name}-{seed}", seed, values[name][seed])
                for seed in (2, 0, 1)
            ],
        )
        for name in values
    ]


def test_metrics_of_no_user_are_tested_over_seeds(tmp_path, groups, values):
    groups = [
        significance.read(
            name,
            [tmp_path / f"{name}-{seed}" for seed in range(3)],
            ("coverage@20", "recall@20"),
        )
        for name in values
    ]
    _, row = table = significance.rows(groups)
    plain, better = (values[name].sum(1) for name in values)
    found = row["coverage@20"]
    assert found["mean"] == pytest.approx(better.mean())
    assert found["mean_difference"] == pytest.approx((better - plain).mean())
    assert found["seed_p"] == pytest.approx(
        stats.ttest_rel(better, plain).pvalue
    )
    assert np.isnan(found["t_p"])
    # The single users' are taken where there are such.
    assert row["recall@20"]["mean"] == pytest.approx(values["better"].mean())
    assert "nan" not in significance.markdown(table)
    with pytest.raises(InputError, match="does not tell") as caught:
        significance.read("x", [tmp_path / "plain-0"], ("coverage",))
    assert "coverage@20" in caught.value.fix


def test_each_seed_may_begin_with_an_encoder_of_its_own(tmp_path, values):
    workdirs = [
        write(
            tmp_path / str(seed),
            seed,
            values["plain"][seed],
            {"train": {"start_from": f"base-{seed}"}},
        )
        for seed in range(2)
    ]
    group = significance.read("warm", workdirs)
    assert group.config["train.start_from"] == "a trained encoder"


def test_means_and_tests_are_those_of_scipy(groups, values):
    first, second = significance.rows(groups)
    plain, better = values["plain"], values["better"]
    assert first["recall@20"] == {
        "mean": pytest.approx(plain.mean()),
        "std": pytest.approx(plain.mean(1).std(ddof=1)),
    }
    row = second["recall@20"]
    assert row["mean_difference"] == pytest.approx((better - plain).mean())
    users = stats.ttest_rel(better.mean(0), plain.mean(0)).pvalue
    seeds = stats.ttest_rel(better.mean(1), plain.mean(1)).pvalue
    assert row["t_p"] == pytest.approx(users)
    assert row["seed_p"] == pytest.approx(seeds)
    assert second["ndcg@20"]["mean"] == pytest.approx(better.mean() / 2)


def test_seeds_are_paired_by_number(tmp_path, values):
    """Whichever seeds are there: those of both count."""
    plain, better = values["plain"], values["better"]
    one = [write(tmp_path / f"a{n}", n, plain[n]) for n in (0, 1, 2)]
    other = [write(tmp_path / f"b{n}", n, better[n]) for n in (2, 1)]
    pair = significance.read("a", one), significance.read("b", other)
    found = significance.compare(*pair)["recall@20"]
    wanted = stats.ttest_rel(better[1:].mean(1), plain[1:].mean(1)).pvalue
    assert found["seed_p"] == pytest.approx(wanted)
    gain = (better[1:] - plain[1:]).mean()
    assert found["mean_difference"] == pytest.approx(gain)


def test_what_is_unequal_is_said(tmp_path, values):
    plain = values["plain"]
    one = [write(tmp_path / f"a{n}", n, plain[n]) for n in (0, 1)]
    long = {"train": {"epochs": 9}}
    other = [write(tmp_path / "b", 1, plain[1], config=long)]
    first, second = significance.read("a", one), significance.read("b", other)
    assert significance.caveats([first, first]) == []
    assert significance.caveats([first, second]) == [
        "b: its difference is over the seeds [1] alone",
        "b: train.epochs is 9, not none",
    ]


def test_the_table_has_a_line_for_each_method(groups):
    text = significance.markdown(significance.rows(groups))
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| plain | 3 | 0.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 0}, "Two runs of one method have the seed 0"),
        ({"seed": 1, "config": {"dim": 8}}, "more than their seed"),
        ({"seed": 1, "dataset": "other"}, "more than their seed"),
        ({"seed": 1, "users": USERS + 1}, "more than their seed"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, change, message):
    recall = np.linspace(0, 1, len(USERS))
    one = write(tmp_path / "a", 0, recall)
    other = write(tmp_path / "b", **{"recall": recall, **change})
    with pytest.raises(InputError, match=message):
        significance.read("a", [one, other])


def test_no_runs_and_other_users_are_refused(tmp_path, groups):
    with pytest.raises(InputError, match="has no runs"):
        significance.read("none", [])
    recall = np.linspace(0, 1, len(USERS))
    apart = write(tmp_path / "apart", 0, recall, users=USERS + 1)
    alone = write(tmp_path / "alone", 7, recall)
    with pytest.raises(InputError, match="no seed in common"):
        significance.compare(groups[0], significance.read("c", [alone]))
    with pytest.raises(InputError, match="same users and data"):
        significance.compare(groups[0], significance.read("b", [apart]))
