"""Modality balance: what is lost without a modality, and gradients of each."""

import dataclasses
import json
import math

import dense as references
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ITEMS, make_catalog, some
from hypothesis import given
from hypothesis import strategies as st
from logs import ink
from rewritten import make_neggen, make_rewritten, standardised
from training import make_config, make_run, small

from neggen_jax import balance, history, plots, plots_balance
from neggen_jax.data.graphs import shares
from neggen_jax.models.causal import CausalEffect
from neggen_jax.ops.sparse import dense
from neggen_jax.reporting import comparison
from neggen_jax.run import Run
from neggen_jax.step import by_modality
from neggen_jax.train import train_and_evaluate

# -- drops ------------------------------------------------------------------


def test_drops_are_shares_of_the_whole():
    got = balance.drops(0.4, {"text": 0.1, "image": 0.3, "sound": 0.2})
    assert got == {
        "modality_drop_text": pytest.approx(0.75),
        "modality_drop_image": pytest.approx(0.25),
        "modality_drop_sound": pytest.approx(0.5),
        "modality_balance": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(
    ("full", "without", "even"),
    [
        (0.4, {"text": 0.1, "image": 0.4}, 0.0),
        (0.4, {"text": 0.1, "image": 0.5}, 0.0),
        (0.4, {"text": 0.0, "image": 0.0}, 1.0),
        # None is missed, or there is nothing to compare.
        (0.4, {"text": 0.5, "image": 0.4}, None),
        (0.4, {"text": 0.1}, None),
    ],
)
def test_balance_at_its_borders(full, without, even):
    got = balance.drops(full, without)
    assert got.get("modality_balance") == even
    assert {f"modality_drop_{name}" for name in without} <= got.keys()


def test_where_nothing_is_found_nothing_can_be_lost():
    assert balance.drops(0.0, {"text": 0.0, "image": 0.1}) == {}
    assert balance.drops(0.4, {}) == {}


# A mean over users is never nearly zero.
RECALLS = st.integers(0, 10_000).map(lambda n: n / 10_000)


@given(RECALLS, st.dictionaries(st.sampled_from("abcd"), RECALLS))
def test_balance_is_a_share_and_never_nan(full, without):
    got = balance.drops(full, without)
    assert all(math.isfinite(v) for v in got.values())
    assert 0 <= got.get("modality_balance", 0) <= 1


# -- rankings without a modality --------------------------------------------


@pytest.mark.parametrize("argument", ["mf", "lightgcn"])
def test_who_reads_no_modality_loses_none(argument):
    it = small(argument)
    assert balance.modalities(it.run) == ()
    assert balance.measure(it.run, it.state) == {}


def test_negatives_read_modalities_that_rankings_do_not():
    catalog = make_rewritten()
    config = make_neggen("lightgcn,conditioned")
    with config.unlocked():
        del config.negatives.counterfactual
        del config.losses.counterfactual, config.losses.alignment
    run = Run.make(config, catalog, jax.devices()[:1])
    assert run.program.recommender.needs().counterfactuals
    assert balance.modalities(run) == ()


def test_recall_is_that_of_zeros_in_the_place_of_a_modality():
    """VBPR in NumPy, user by user."""
    it = small("vbpr")
    catalog = it.run.catalog
    # As if content had been learnt to matter.
    moved = jax.tree.map(lambda x: x, it.state.params)
    moved["encoder"]["projection"]["kernel"] *= 30
    state = it.state.replace(params=moved)
    got = balance.measure(it.run, state, "test")
    assert list(got) == ["image", "text"]
    params = jax.tree.map(np.asarray, moved["encoder"])
    users = params["users"].astype(np.float64)
    seen = [catalog.splits[s] for s in ("train", "valid")]
    held = catalog.splits["test"]
    for name, value in got.items():
        wide = [
            references.standardised(catalog.features[m]) * (m != name)
            for m in ("image", "text")
        ]
        content = np.concatenate(wide, 1) @ params["projection"]["kernel"]
        content = content + params["projection"]["bias"]
        items = np.concatenate([params["items"][:ITEMS], content], axis=1)
        recalls = []
        for user in np.unique(held.users):
            scores = items @ users[user]
            for part in seen:
                scores[part.items[part.users == user]] = -np.inf
            top = np.argsort(-scores, kind="stable")[:20]
            wanted = held.items[held.users == user]
            recalls.append(np.isin(wanted, top).mean())
        assert value == pytest.approx(np.mean(recalls), rel=1e-12)
    assert got["text"] != got["image"]


@pytest.mark.parametrize("mesh", [(1, 1), (1, 8)])
def test_graphs_are_built_without_the_modality(mesh):
    it = make_run("mci", mesh)
    got = balance.without(it, "text").inputs.item_item
    assert not dense(got["text"]).any()
    np.testing.assert_array_equal(
        dense(got["image"]), dense(it.inputs.item_item["image"])
    )
    freedom = make_run("freedom", mesh)
    fused = dense(balance.without(freedom, "text").inputs.item_item["fused"])
    weights = shares(["text", "image"], freedom.config.encoder.graph_weights)
    alone = make_run("freedom", mesh, encoder__graph_weights__text=0.0)
    np.testing.assert_allclose(
        fused,
        weights["image"] * dense(alone.inputs.item_item["fused"]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("mesh", some([(1, 1), (1, 8)], (1, 8)))
@pytest.mark.parametrize(
    "argument", ["vbpr", "freedom", "mci", "bm3", "mgcn", "smore"]
)
def test_every_encoder_survives_a_modality_that_no_item_has(argument, mesh):
    run = make_run(argument, mesh)
    state, _ = run.start()
    for name in balance.modalities(run):
        users, items = balance.without(run, name).encode(state.evaluated)
        assert np.isfinite(users).all()
        assert np.isfinite(items).all()
        # The run itself has lost nothing.
        assert run.catalog.features[name].present.any()


def make_effective(feed, argument="lightgcn"):
    config = make_neggen(argument, data__counterfactuals__feed=feed)
    return Run.make(config, make_rewritten(), jax.devices()[:1])


@pytest.mark.parametrize("argument", ["lightgcn", "lightgcn,published"])
@pytest.mark.parametrize("feed", ["tables", "batches"])
def test_effects_are_those_of_the_other_modalities(feed, argument):
    run = make_effective(feed, argument)
    source = run.program.recommender.sources["counterfactual"]
    state, _ = run.start()
    assert balance.modalities(run) == ("image", "text")
    params = state.params["sources_counterfactual"]["causal"]
    rows = standardised(run.catalog.counterfactuals)
    none = {
        "sources_counterfactual": {
            "causal": jax.tree.map(jnp.zeros_like, params)
        }
    }
    _, plain = run.encode({**state.params, **none})
    for name in ("image", "text"):
        gone = {
            k: jax.tree.map(
                lambda x, zero=k == name: np.zeros_like(x) if zero else x, row
            )
            for k, row in rows.items()
        }
        module = CausalEffect(effect=source.effect)
        effect = np.asarray(module.apply({"params": params}, gone, 8).factual)
        if source.length == "embedding":
            lengths = [
                np.linalg.norm(x, axis=1, keepdims=True)
                for x in (plain[:ITEMS], effect)
            ]
            effect = effect * lengths[0] / np.maximum(lengths[1], 1e-6)
        _, items = balance.without(run, name).encode(state.params)
        # Numbers of order one, after an attention and two layers, in float32.
        np.testing.assert_allclose(
            items[:ITEMS], plain[:ITEMS] + 0.4 * effect, atol=1e-5
        )
        assert np.abs(items - plain).max() > 1e-2


# -- gradients --------------------------------------------------------------


def test_leaves_belong_to_the_modality_that_their_path_names():
    leaves = dict(
        effect={"embed_text": {"kernel": 1, "bias": 2}, "attention": 3},
        long={"embed_long_text": 4, "embed_image": 5},
        texture={"context": 6},
        both={"text": {"image": 7}},
        side={"side_text_0": 8},
    )
    names = {"text", "image", "long_text"}
    assert by_modality(leaves, names) == {
        "image": [5],
        "long_text": [4],
        "text": [2, 1, 8],
    }
    assert by_modality(leaves, ()) == {}


def test_gradient_norms_are_those_of_each_modality():
    it = small("freedom")
    program, batch = it.run.program, it.batch(0)
    _, terms = it.step(it.state, it.inputs, batch)

    def loss(params):
        total, _ = program.recommender.apply(
            {"params": params},
            it.inputs,
            batch,
            program.clock(it.state.step),
            rngs={
                "negatives": jax.random.fold_in(program.key(2), it.state.step)
            },
        )
        return total

    grads = jax.grad(loss)(it.state.params)["encoder"]
    named = {k for k in terms if k.startswith("gradient_norm/")}
    assert named == {"gradient_norm/text", "gradient_norm/image"}
    for name in ("text", "image"):
        parts = [np.asarray(g, np.float64) for g in grads[name].values()]
        want = math.sqrt(sum(np.square(part).sum() for part in parts))
        assert want > 0
        # Sums of a thousand products in float32.
        got = float(terms[f"gradient_norm/{name}"])
        assert got == pytest.approx(want, rel=1e-4)
    assert not any(k.startswith("gradient_norm/") for k in small_terms("mf"))


def small_terms(argument):
    it = small(argument)
    return jax.eval_shape(
        it.run.program.step, it.state, it.inputs, it.batch(0)
    )[1]


# -- a run, and its figures -------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("balance") / "run"
    config = make_neggen("lightgcn", train__epochs=2)
    return workdir, train_and_evaluate(config, workdir, make_rewritten())


def test_results_hold_what_is_lost(trained):
    workdir, results = trained
    without = results["without_modality"]["recall@20"]
    assert without.keys() == {"image", "text"}
    test = results["test"]
    lost = balance.drops(test["recall@20"], without)
    assert lost.items() <= test.items()
    assert "modality_drop_text" in lost
    assert not any(k.startswith("modality") for k in results["valid"])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(x) for x in lines if "train/loss" in x][-1]
    for name in ("text", "image"):
        assert (
            0
            < last[f"train/gradient_norm/{name}"]
            < last["train/gradient_norm"]
        )


def test_a_run_without_modalities_has_no_figure_of_them(tmp_path):
    config = make_config("mf", train__epochs=1)
    results = train_and_evaluate(config, tmp_path, make_catalog())
    assert results["without_modality"] == {}
    assert not (tmp_path / "plots" / "balance.png").exists()


def test_the_figure_shows_what_the_run_has_left(trained):
    workdir, results = trained
    path = workdir / "plots" / "balance.png"
    assert 0.01 < ink(path) < 0.5
    log = history.read_metrics(workdir)
    figure = plots_balance.balance(log, results, "run", results["step"])
    drops, norms = figure.axes
    heights = [bar.get_height() for bar in drops.patches]
    test = results["test"]
    names = ("image", "text")
    assert heights == [test[f"modality_drop_{name}"] for name in names]
    assert "recall@20" in drops.get_ylabel()
    lines = dict(zip(names, norms.lines, strict=False))
    for name, line in lines.items():
        key = f"train/gradient_norm/{name}"
        want = [e[key] for e in log if key in e]
        np.testing.assert_array_equal(line.get_ydata(), want)
    keys = [f"train/gradient_norm/{name}" for name in names]
    until = [e for e in log if e["step"] <= results["step"]]
    at = [[e[key] for e in until if key in e][-1] for key in keys]
    assert f"{max(at) / min(at):.2g}" in norms.get_title("left")
    # Learning curves leave them to this figure.
    curves = plots.learning_curves(log, "run").axes
    assert "train/gradient_norm" in [a.get_title("left") for a in curves]
    assert not any("norm/" in a.get_title("left") for a in curves)


def test_a_run_in_progress_shows_gradients_alone(trained):
    log = history.read_metrics(trained[0])
    (axes,) = plots_balance.balance(log, {}, "run").axes
    assert len(axes.lines) == 2
    assert "at last" in axes.get_title("left")
    assert plots_balance.balance([], {}, "run") is None


def test_several_runs_are_measured_side_by_side(trained, tmp_path):
    workdir, results = trained
    other = tmp_path / "other"
    config = make_config("mf", train__epochs=1)
    train_and_evaluate(config, other, make_rewritten())
    comparison.plot_measures([workdir, other], tmp_path / "measures.png")
    assert 0.01 < ink(tmp_path / "measures.png") < 0.5
    runs = [
        (name, json.loads((path / "results.json").read_text())["test"])
        for name, path in (("neggen", workdir), ("mf", other))
    ]
    # In two epochs, a modality may not be missed yet.
    runs[0][1].setdefault("modality_balance", 0.5)
    panels = {a.get_title("left"): a for a in plots_balance.measures(runs).axes}
    titles = plots_balance.MEASURES
    assert titles["category_entropy"] not in panels
    bars = panels[titles["gini"]].patches
    assert [bar.get_width() for bar in bars] == [t["gini@20"] for _, t in runs]
    texts = [t.get_text() for t in panels[titles["modality_balance"]].texts]
    assert texts[1] == "none"
    assert results["test"]["modality_drop_text"] is not None


def test_measures_of_no_run_draw_nothing():
    assert plots_balance.measures([("a", {}), ("b", {})]).axes == []


def test_taking_a_modality_away_takes_no_memory():
    run = make_effective("tables")
    bereft = balance.without(run, "text").catalog
    gone = bereft.counterfactuals.modalities["text"]
    whole = run.catalog.counterfactuals.modalities["text"]
    assert gone.factual is whole.factual
    assert not gone.described.any()
    assert bereft.features["text"].values.strides == (0, 0)
    assert dataclasses.replace(run).catalog is run.catalog
