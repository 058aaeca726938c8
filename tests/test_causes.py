"""Causes: what is measured where the truth, or the module, is made by hand."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ITEMS, USERS, make_catalog
from hypothesis import given
from hypothesis import strategies as st
from logs import ink
from matplotlib.colors import to_rgba
from rewritten import make_neggen
from sklearn.metrics import roc_auc_score
from test_cli import call, refused
from training import make_run

from neggen_jax import causes, plots_causes
from neggen_jax import probes as probes_room
from neggen_jax.catalog import Counterfactuals, Rewritten
from neggen_jax.data import store
from neggen_jax.data.bazaar.truth import Truth
from neggen_jax.data.counterfactuals import locate
from neggen_jax.data.rewritten import Rewritten as Rows
from neggen_jax.errors import InputError
from neggen_jax.models.causal import CausalEffect
from neggen_jax.run import Run
from neggen_jax.train import train_and_evaluate

# Attribute -> modality, and whether it moves anybody; three values each.
KNOWN = {
    "colour": ("text", True),
    "brand": ("text", False),
    "cut": ("image", True),
    "backdrop": ("image", False),
}
NAMES = list(KNOWN)
VALUES = 3
# Slots are not in the order of the truth, and one attribute is unknown to it.
PROBES = {"text": ["brand", "smell", "colour"], "image": ["cut", "backdrop"]}
ASKED = [("image", "cut"), ("image", "backdrop")]
ASKED += [("text", "brand"), ("text", "colour")]
LAMBDA = 0.4


def make_truth(seed=0) -> Truth:
    rng = np.random.default_rng(seed)
    causal = np.array([moves for _, moves in KNOWN.values()])
    causes = (rng.random((USERS, 4)) < 0.6) & causal
    causes[:, 0] |= ~causes.any(axis=1)
    preferences = np.zeros((USERS, 4, VALUES), np.float16)
    liked = rng.integers(VALUES, size=(USERS, 4))
    np.put_along_axis(
        preferences, liked[..., None], 3.0 * causes[..., None], axis=2
    )
    return Truth(
        attributes=tuple(NAMES),
        values=(("a", "b", "c"),) * 4,
        visibility=tuple(modality for modality, _ in KNOWN.values()),
        causal=causal,
        item_values=rng.integers(VALUES, size=(ITEMS, 4)).astype(np.int8),
        appeal=np.zeros(ITEMS, np.float32),
        causes=causes,
        preferences=preferences.reshape(USERS, -1),
    )


def vectors(values: np.ndarray, modality: str) -> np.ndarray:
    """Ones and zeros, a place for each value that a modality shows."""
    shown = [n for n in NAMES if KNOWN[n][0] == modality]
    return np.concatenate(
        [np.eye(VALUES)[values[:, NAMES.index(n)]] for n in shown], axis=1
    ).astype(np.float32)


def make_set(truth: Truth, probes: bool, seed=0) -> Counterfactuals:
    """One alternative that changes all attributes, or one for each."""
    rng = np.random.default_rng(seed)
    parts = {}
    for modality, names in PROBES.items():
        factual = vectors(truth.item_values, modality)
        slots = names if probes else ["all"]
        # As many in all modalities.
        slots = [*slots, *[""] * (3 - len(slots))] if probes else slots
        other = np.zeros((ITEMS, len(slots), factual.shape[1]), np.float32)
        present = np.zeros((ITEMS, len(slots)), bool)
        for slot, name in enumerate(slots):
            if name == "" or name == "smell":
                continue
            changed = truth.item_values.copy()
            move = rng.integers(1, VALUES, changed.shape)
            which = [NAMES.index(name)] if probes else range(4)
            for column in which:
                changed[:, column] = (changed + move)[:, column] % VALUES
            present[:, slot] = rng.random(ITEMS) < 0.9
            moved = vectors(changed, modality)
            other[:, slot] = moved * present[:, slot, None]
        described = np.ones(ITEMS, bool)
        parts[modality] = Rewritten(factual, described, other, present)
    manifest = {"probes": PROBES} if probes else {}
    name = "probes" if probes else "attributes"
    return Counterfactuals(name, parts, manifest).validate(ITEMS)


TRUTH = make_truth()


def make(argument="mf", **changes):
    """A run with counterfactuals of the truth, and its first state."""
    catalog = dataclasses.replace(
        make_catalog(), counterfactuals=make_set(TRUTH, probes=False)
    )
    config = make_neggen(argument, **changes)
    run = Run.make(config, catalog, jax.devices()[:1])
    state, _ = run.start()
    # Biases begin at zero, and would hide what is done with them. With these,
    # no two causes of an item have effects that cannot be told apart.
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
        state.params["sources_counterfactual"],
    )
    return run, changed(state, params)


def changed(state, source=None, users=None):
    params = dict(state.params)
    if source is not None:
        params["sources_counterfactual"] = source
    if users is not None:
        params["encoder"] = params["encoder"] | {"users": users}
    return state.replace(params=params)


@pytest.fixture(
    scope="module",
    params=["mf", pytest.param("mf,published", marks=pytest.mark.slow)],
)
def made(request):
    """An effect that is the content, and one that is the difference."""
    return make(request.param)


@pytest.fixture(scope="module")
def found(made):
    return causes.measure(*made, make_set(TRUTH, probes=True), TRUTH)


# -- AUC --------------------------------------------------------------------


@given(st.integers(0, 2**31))
def test_auc_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(4, size=(20, 6)).astype(float)  # many ties
    positive, valid = rng.random((2, 20, 6)) < 0.6
    got = causes.auc(values, positive, valid)
    for row, value in enumerate(got):
        some = valid[row]
        kinds = positive[row, some]
        if kinds.all() or not kinds.any():
            assert np.isnan(value)
        else:
            want = roc_auc_score(kinds, values[row, some])
            assert value == pytest.approx(want, rel=1e-12)


def test_auc_of_nothing_is_empty():
    none = np.zeros((0, 3))
    assert not len(causes.auc(none, none > 0, none > 0))


# -- measures against plain loops -------------------------------------------


def standardised(part, factual):
    there = factual.astype(np.float64)
    mean = there.mean(axis=0)
    scale = np.sqrt(np.square(there - mean).mean())
    return (part - mean) / scale, scale


def plain_effects(run, params):
    """[I, 4, d] in the order of `ASKED`, and which there are."""
    probes = make_set(TRUTH, probes=True).modalities
    base = run.catalog.counterfactuals.modalities
    kind = run.program.recommender.sources["counterfactual"].effect
    out, there = [], []
    for modality, attribute in ASKED:
        slot = PROBES[modality].index(attribute)
        said = []
        for change in (True, False):
            rows = {}
            for name in base:
                factual = base[name].factual
                other = probes[name].counterfactual[:, slot]
                if not change:
                    other = factual
                mine = np.full(ITEMS, name == modality)
                there_is = mine & probes[name].present[:, slot]
                rows[name] = Rows(
                    standardised(factual, factual)[0],
                    np.ones(ITEMS, bool),
                    standardised(other, factual)[0][:, None],
                    there_is[:, None],
                )
            module = CausalEffect(8, effect=kind)
            said.append(module.apply({"params": params["causal"]}, rows, 8))
        changed, same = said
        if kind == "difference":
            effect = changed.factual - same.factual
        else:
            # P(h) of the item as it is, without what it would be changed.
            effect = same.factual - changed.counterfactual[:, 0]
        out.append(np.asarray(effect, np.float64))
        there.append(np.asarray(said[0].present)[:, 0])
    return np.stack(out, 1), np.stack(there, 1)


def test_measures_are_what_they_are_called(made, found):
    run, state = made
    effects, there = plain_effects(run, state.params["sources_counterfactual"])
    users = np.asarray(state.params["encoder"]["users"], np.float64)[:USERS]
    test = run.catalog.splits["test"]
    concerned = {}
    for user, item in zip(test.users, test.items, strict=True):
        concerned.setdefault(int(item), []).append(int(user))
    probes = make_set(TRUTH, probes=True).modalities
    by_attribute = {p["attribute"]: p for p in found["probes"]}
    assert list(by_attribute) == [attribute for _, attribute in ASKED]
    aucs = {name: [] for name in ("score", "raw_score", "spread", "size")}
    for item, who in concerned.items():
        rows = {name: [] for name in aucs}
        for a in range(4):
            gains = users @ effects[item, a]
            rows["raw_score"].append(gains[who].mean())
            rows["score"].append(gains[who].mean() - gains.mean())
            rows["spread"].append(gains.std())
            rows["size"].append(np.linalg.norm(effects[item, a]))
        kinds = [KNOWN[name][1] for _, name in ASKED]
        some = there[item]
        if len({k for k, t in zip(kinds, some, strict=True) if t}) == 2:
            for name, row in rows.items():
                value = roc_auc_score(
                    np.array(kinds)[some], np.array(row)[some]
                )
                aucs[name].append(value)
    for name, values in aucs.items():
        told = found["auc"]["items"][name]
        assert told["n"] == len(values)
        assert told["mean"] == pytest.approx(np.mean(values), abs=1e-9), name
        assert told["low"] <= told["mean"] <= told["high"]
    items = sorted(concerned)
    for a, (modality, attribute) in enumerate(ASKED):
        some = [item for item in items if there[item, a]]
        told = by_attribute[attribute]
        assert told["causal"] == KNOWN[attribute][1]
        assert told["items"] == len(some)
        sizes = np.linalg.norm(effects[some, a], axis=1)
        assert told["size"]["mean"] == pytest.approx(
            LAMBDA * sizes.mean(), rel=1e-4
        )
        means = [
            np.mean((users[concerned[i]] - users.mean(0)) @ effects[i, a])
            for i in some
        ]
        assert told["score"]["mean"] == pytest.approx(
            LAMBDA * np.mean(means), rel=1e-3, abs=1e-6
        )
        part = probes[modality]
        _, scale = standardised(part.factual, part.factual)
        # One value instead of another: two ones in places of zeros.
        assert told["distance"]["mean"] == pytest.approx(
            np.sqrt(2) / scale, rel=1e-5
        )


def test_users_are_asked_what_moves_them(made, found):
    run, state = made
    effects, there = plain_effects(run, state.params["sources_counterfactual"])
    users = np.asarray(state.params["encoder"]["users"], np.float64)[:USERS]
    test = run.catalog.splits["test"]
    by_user = {}
    for user, item in zip(test.users, test.items, strict=True):
        reasons = []
        for _, attribute in ASKED:
            column = NAMES.index(attribute)
            value = TRUTH.item_values[item, column]
            likes = TRUTH.preferences[user, column * VALUES + value] > 0
            reasons.append(likes and TRUTH.causes[user, column])
        some = there[item]
        kinds = np.array(reasons)[some]
        if kinds.any() and not kinds.all():
            gains = (users[user] - users.mean(0)) @ effects[item].T
            by_user.setdefault(user, []).append(
                roc_auc_score(kinds, gains[some])
            )
    want = [np.mean(values) for values in by_user.values()]
    told = found["auc"]["users"]["score"]
    assert told["n"] == len(want) > 20
    assert told["mean"] == pytest.approx(np.mean(want), abs=1e-9)


# -- modules and users that are made to know --------------------------------


def test_a_module_that_reads_causes_alone_finds_them(made):
    run, state = made
    source = jax.tree.map(lambda x: x, state.params["sources_counterfactual"])
    for modality in PROBES:
        shown = [n for n in NAMES if KNOWN[n][0] == modality]
        blind = np.repeat([not KNOWN[n][1] for n in shown], VALUES)
        kernel = source["causal"][f"embed_{modality}"]["kernel"]
        source["causal"][f"embed_{modality}"]["kernel"] = jnp.where(
            blind[:, None], 0.0, kernel
        )
    state = changed(state, source)
    told = causes.measure(run, state, make_set(TRUTH, probes=True), TRUTH)
    items = told["auc"]["items"]
    for name in ("spread", "size"):
        assert items[name]["mean"] == items[name]["low"] == 1
    assert items["spread_untrained"]["mean"] < 0.9
    # All changes are equally long; the modalities differ in scale alone.
    assert items["distance"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert told["advantage"]["items"]["distance"]["low"] > 0.4
    assert told["advantage"]["items"]["size"]["mean"] == 0
    for part in told["by_modality"].values():
        assert part["mean"] == 1
    for probe in told["probes"]:
        assert (probe["size"]["mean"] > 1e-3) == probe["causal"]


def test_users_who_feel_the_effect_are_told_apart(made):
    run, state = made
    effects, _ = plain_effects(run, state.params["sources_counterfactual"])
    users, free = np.zeros((USERS, 8)), np.zeros((USERS, 8, 8))
    test = run.catalog.splits["test"]
    columns = [NAMES.index(attribute) for _, attribute in ASKED]
    for user, item in zip(test.users, test.items, strict=True):
        value = np.array(columns) * VALUES + TRUTH.item_values[item, columns]
        wanted = np.where(TRUTH.preferences[user, value] > 0, 1.0, -1.0)
        # Everybody has one item in test, and feels nothing of what is free.
        inverse = np.linalg.pinv(effects[item], rcond=1e-3)
        users[user] = inverse @ wanted
        free[user] = np.eye(8) - inverse @ effects[item]
    # Taste is what differs from the average user, who is to have none.
    users -= free @ np.linalg.solve(free.sum(axis=0), users.sum(axis=0))
    told = [
        causes.measure(
            run,
            changed(state, users=jnp.asarray(moved, jnp.float32)),
            make_set(TRUTH, probes=True),
            TRUTH,
        )["auc"]["users"]
        for moved in (users, users + 5)
    ]
    score, same = (part["score"]["mean"] for part in told)
    assert score == 1
    # What all users would rather have is nobody's taste.
    assert same == pytest.approx(score, abs=1e-3)
    assert told[1]["raw_score"]["mean"] < score - 0.2


def test_what_is_said_of_nothing_is_not_counted(made, found):
    run, state = made
    source = jax.tree.map(lambda x: x, state.params["sources_counterfactual"])
    source["causal"]["project_out"]["bias"] += 7.0
    told = causes.measure(
        run, changed(state, source), make_set(TRUTH, probes=True), TRUTH
    )
    for one, other in zip(told["probes"], found["probes"], strict=True):
        # Differences of numbers of order ten, in float32.
        assert one["size"]["mean"] == pytest.approx(
            other["size"]["mean"], rel=1e-4
        )


def test_a_modality_that_is_not_read_is_not_asked():
    run, state = make("mf,text")
    told = causes.measure(run, state, make_set(TRUTH, probes=True), TRUTH)
    assert [p["attribute"] for p in told["probes"]] == ["brand", "colour"]
    assert list(told["by_modality"]) == ["text"]


# -- what is refused --------------------------------------------------------


def test_a_run_without_effects_is_refused():
    run = make_run("mf")
    with pytest.raises(InputError, match="learns no causal effects"):
        probes_room.source_of(run)


@pytest.mark.parametrize(
    "probes", [{}, {"text": ["colour"]}, {"text": ["smell", "brand"]}]
)
def test_a_set_that_tells_nothing_apart_is_refused(made, probes):
    known = make_set(TRUTH, probes=True)
    known = dataclasses.replace(known, manifest={"probes": probes})
    with pytest.raises(InputError, match="nothing to tell apart"):
        causes.measure(*made, known, TRUTH)


def test_the_truth_of_another_bazaar_is_refused(made):
    other = dataclasses.replace(TRUTH, causes=TRUTH.causes[1:])
    with pytest.raises(InputError, match="another bazaar"):
        causes.measure(*made, make_set(TRUTH, probes=True), other)


def encoded(known, **encoding):
    manifest = {**known.manifest, "encoding": encoding}
    return dataclasses.replace(known, manifest=manifest)


TFIDF = {"encoder": "tfidf", "parameters": {"seed": 0}}
NEURAL = {"encoder": "transformers", "parameters": {"pooling": "mean"}}


@pytest.mark.parametrize(
    ("ours", "theirs", "fine"),
    [
        ({**TFIDF, "records": "a"}, {**TFIDF, "records": "b"}, False),
        ({**TFIDF, "records": "a"}, {**TFIDF, "records": "a"}, True),
        (
            {**TFIDF, "records": "a"},
            {**TFIDF, "records": "b", "like": {"records": "a"}},
            True,
        ),
        (
            {**TFIDF, "records": "a"},
            {**TFIDF, "records": "b", "like": {"records": "c"}},
            False,
        ),
        ({**NEURAL, "records": "a"}, {**NEURAL, "records": "b"}, True),
        (NEURAL, {**NEURAL, "parameters": {"pooling": "cls"}}, False),
        (NEURAL, TFIDF, False),
        ({}, {}, False),
    ],
)
def test_spaces_are_compared(made, ours, theirs, fine):
    run, _ = made
    known = encoded(run.catalog.counterfactuals, **ours)
    probes = encoded(make_set(TRUTH, probes=True), **theirs)
    # Vectors that agree need no manifest.
    probes_room.check_space(known, probes)
    turned = {
        name: dataclasses.replace(part, factual=part.factual[:, ::-1])
        for name, part in probes.modalities.items()
    }
    probes = dataclasses.replace(probes, modalities=turned)
    if fine:
        probes_room.check_space(known, probes)
    else:
        with pytest.raises(InputError, match="not of the space"):
            probes_room.check_space(known, probes)


# -- a run, from end to end -------------------------------------------------


def write_set(directory, made):
    """What generation leaves, written by hand."""
    known = store.describe(directory)
    path = locate(directory, made.name)
    path.mkdir(parents=True)
    sums = {}
    for modality, name, array in made.arrays():
        np.save(path / f"{modality}.{name}.npy", array)
        sums[f"{modality}.{name}.npy"] = hashlib.sha256(
            array.tobytes()
        ).hexdigest()
    encoding = {
        "items": known["num_items"],
        "source": store.items_digest(known),
        "modalities": list(made.modalities),
        "fingerprint": made.fingerprint,
        "sha256": sums,
    }
    manifest = {**made.manifest, "encoding": encoding}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a dataset directory with both sets, and the truth."""
    root = tmp_path_factory.mktemp("causes")
    store.save(make_catalog(), root / "data", source={})
    for probes in (False, True):
        write_set(root / "data", make_set(TRUTH, probes))
    TRUTH.save(root / "data" / "truth.npz")
    config = make_neggen(
        "mf,shuffled",
        train__epochs=1,
        data__path=str(root / "data"),
        data__counterfactuals__name="probes",
    )
    train_and_evaluate(config, root / "run")
    return root


def test_a_report_is_written_into_the_workdir(trained, tmp_path):
    workdir = shutil.copytree(trained / "run", tmp_path / "run")
    found = causes.report(workdir)
    assert json.loads((workdir / "causes.json").read_text()) == found
    assert found["set"] == found["trained_on"] == "probes"
    # What the run was trained on was shuffled; what it is asked is not, so
    # that all probes of an attribute are equally long.
    for probe in found["probes"]:
        distance = probe["distance"]
        assert distance["high"] == pytest.approx(distance["low"], rel=1e-5)
    assert 0.01 < ink(workdir / "plots" / "causes.png") < 0.5
    done = call(
        "causes", f"--workdir={workdir}", "--set=probes", "--split=valid"
    )
    assert done.returncode == 0, done.stderr
    again = json.loads((workdir / "causes.json").read_text())
    assert again["split"] == "valid"
    assert f"{again['auc']['users']['score']['mean']:.3f}" in done.stdout
    assert "colour (text)" in done.stdout


def test_probes_are_looked_for_where_they_usually_are():
    own = dataclasses.replace(make_set(TRUTH, probes=True), name="mine")
    assert causes.usual_set(own) == "mine"
    assert causes.usual_set(make_set(TRUTH, probes=False)) == "probes"


def test_a_set_without_probes_and_data_without_truth_are_refused(
    trained, tmp_path
):
    with pytest.raises(InputError, match="nothing to tell apart"):
        causes.report(trained / "run", "attributes")
    moved = shutil.copytree(trained / "data", tmp_path / "data")
    (moved / "truth.npz").unlink()
    done = call(
        "causes",
        f"--workdir={trained / 'run'}",
        f"--data={moved}",
        "--set=probes",
    )
    assert "The causes are not known" in refused(done)


def test_the_figure_shows_what_was_found(found):
    figure = plots_causes.causes({"set": "probes", **found}, "run")
    bars, orders = figure.axes
    known = sorted(found["probes"], key=lambda p: -p["score"]["mean"])
    labels = [f"{p['attribute']} ({p['modality']})" for p in known]
    assert [t.get_text() for t in bars.get_yticklabels()] == labels
    widths = {round(b.get_y() + b.get_height() / 2): b for b in bars.patches}
    colours = {True: plots_causes.CAUSAL, False: plots_causes.IRRELEVANT}
    for number, probe in enumerate(known):
        assert widths[number].get_width() == probe["score"]["mean"]
        colour = to_rgba(colours[probe["causal"]])
        assert widths[number].get_facecolor() == colour
    drawn = sorted(bar.get_width() for bar in orders.patches)
    told = [v["mean"] for part in found["auc"].values() for v in part.values()]
    np.testing.assert_allclose(drawn, sorted(told))
