"""A trained NegGen run from its workdir: reasons, exports, the command."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from gcs_server import GcsServer
from pyarrow import parquet
from recommending import made_up, opened
from rewritten import make_neggen
from safetensors.numpy import load_file
from test_cli import ROOT, call, refused

from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.generation.sets.generate import generate
from neggen_jax.negatives.counterfactual import Counterfactual
from neggen_jax.recommend import ann, load, recommend
from neggen_jax.recommend.export import export
from neggen_jax.recommend.reasons import attributes_of
from neggen_jax.train import train_and_evaluate

K = 7
COLOURS = ("red", "blue", "green", "black")
STUFFS = ("wool", "silk", "linen")

# What somebody runs who has nothing of this package.
FOREIGN = """
import json, sys
sys.modules["neggen_jax"] = None
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file
users = load_file("users.safetensors")["vectors"]
items = load_file("items.safetensors")["vectors"]
scorer = export.deserialize(open("scorer.stablehlo", "rb").read())
seen = np.array(json.load(open("../seen.json")), np.int32)
out = {}
for rows in ([4], range(len(users))):
    rows = list(rows)
    scores, found = scorer.call(users[rows], items, seen[rows])
    out[len(rows)] = [np.asarray(scores).tolist(), np.asarray(found).tolist()]
json.dump(out, open("../found.json", "w"))
"""


@pytest.fixture(scope="module")
def workdir(bazaar, tmp_path_factory):
    """Of a run with counterfactuals of texts."""
    root = tmp_path_factory.mktemp("recommend")
    data = root / "data"
    catalog = store.load(bazaar)
    rng = np.random.default_rng(0)
    colours, stuffs = (
        rng.choice(words, catalog.num_items) for words in (COLOURS, STUFFS)
    )
    records = dataclasses.replace(
        made_up(catalog.num_items),
        texts=[
            f"A {a} thing of {b}" for a, b in zip(colours, stuffs, strict=True)
        ],
        attributes=[
            {"colour": str(a), "stuff": str(b)}
            for a, b in zip(colours, stuffs, strict=True)
        ],
    )
    store.save(dataclasses.replace(catalog, records=records), data, source={})
    generate(data, backend="attributes")
    config = make_neggen(
        "lightgcn",
        data__path=str(data),
        train__epochs=2,
        train__batch_size=512,
    )
    train_and_evaluate(config, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def trained(workdir):
    return load(workdir)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "out"
    return directory, export(trained, directory, k=K)


@pytest.mark.slow
def test_the_command_tells_whom_and_why(workdir, tmp_path):
    asked, out = tmp_path / "users.jsonl", tmp_path / "lists.jsonl"
    names = load(workdir).item_names
    new = {"user": "new", "items": [names[3], names[8]]}
    asked.write_text('{"user": "11"}\n' + json.dumps(new))
    flags = f"--workdir={workdir}", f"--users={asked}", "--k=5"
    done = call("recommend", *flags, f"--output={out}", "--reasons=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 users, lists of at most 5: {out}\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["user"], len(r["items"])) for r in rows] == [
        ("11", 5),
        ("new", 5),
    ]
    reasons = [
        why for r in rows for item in r["items"] for why in item["reasons"]
    ]
    kinds = {why["kind"] for why in reasons}
    assert kinds == {"item", "attribute"}
    for why in reasons:
        assert why["worth"] > 0
        if why["kind"] == "attribute":
            assert why["value"] != why["instead"]
    said = refused(call("recommend", *flags, f"--output={out}"))
    assert "exists already" in said
    assert "--overwrite" in said


def test_attributes_are_what_their_records_say(trained):
    found = attributes_of(trained.run, trained.params)
    records = trained.records
    told = 0
    for item in range(20):
        for at in range(len(found.which)):
            if (said := found.told(item, at)) is None:
                continue
            told += 1
            names = said["attribute"].split(", ")
            own = [records.attributes[item][name] for name in names]
            assert said["value"].lower() == ", ".join(own).lower()
            assert said["modality"] == "text"
    assert told >= 20


def test_worth_is_how_far_the_score_falls(trained):
    """Told of one modality otherwise; the module is asked as losses ask it."""
    run, params = trained.run, trained.params
    found = attributes_of(run, params)
    users = np.asarray(trained.users)[:3]
    items = np.array([[4, 9], [9, 30], [149, -1]], np.int32)
    worth, there = found.worths(users, items)
    assert worth.shape == there.shape == (3, 2, len(found.which))
    assert not there[2, 1].any()
    source = run.program.recommender.sources["counterfactual"]
    assert isinstance(source, Counterfactual)
    assert source.effect == "content"
    parts = run.catalog.counterfactuals.modalities
    inputs = run.inputs.counterfactuals

    def score(user, item, modality="", slot=0):
        tokens = {}
        for name, part in parts.items():
            row = part.factual[item]
            if name == modality:
                row = part.counterfactual[item, slot]
            mean, factor = inputs.mean[name], inputs.factor[name]
            tokens[name] = np.asarray((row - mean) * factor)

        def effect(module):
            from neggen_jax.data.rewritten import Rewritten

            none = np.zeros((1, 1), bool)
            rows = {
                name: Rewritten(
                    token[None],
                    np.ones(1, bool),
                    np.zeros((1, 1, len(token)), np.float32),
                    none,
                )
                for name, token in tokens.items()
            }
            return module.sources["counterfactual"].causal(rows, 8).factual[0]

        model = run.program.recommender
        value = model.apply({"params": params}, method=effect)
        return float(
            users[user] @ np.asarray(source.moved(found.base[item], value))
        )

    for user, column in ((0, 0), (0, 1), (1, 1), (2, 0)):
        item = int(items[user, column])
        ranked = users[user] @ trained.item_vectors[item]
        assert score(user, item) == pytest.approx(ranked, abs=1e-5)
        for at, probe in enumerate(found.which):
            if there[user, column, at]:
                fallen = ranked - score(user, item, probe.modality, probe.slot)
                assert worth[user, column, at] == pytest.approx(
                    fallen, abs=1e-5
                )
    assert there[:2].any()


def test_runs_without_a_causal_module_have_no_attributes():
    trained = opened("mf")
    assert attributes_of(trained.run, trained.params) is None
    with pytest.raises(InputError, match="no causal effects"):
        attributes_of(trained.run, trained.params, "probes")


def test_a_process_without_the_package_gives_the_same_lists(trained, exported):
    same_lists(trained, exported[0], FOREIGN)


def same_lists(trained, directory, script):
    """A process that has an export alone ranks as we do."""
    catalog = trained.run.catalog
    seen = catalog.by_user("train")
    rows = np.full((catalog.num_users, seen.longest), -1)
    for user in range(catalog.num_users):
        own = seen.ends[seen.offsets[user] : seen.offsets[user + 1]]
        rows[user, : len(own)] = own
    (directory.parent / "seen.json").write_text(json.dumps(rows.tolist()))
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("XLA_FLAGS", "PYTHONPATH")
    }
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=directory,
        env=environment,
        check=True,
    )
    found = json.loads((directory.parent / "found.json").read_text())
    path = directory.parent / "lists.jsonl"
    recommend(trained, output=path, k=K)
    want = [json.loads(line)["items"] for line in path.read_text().splitlines()]
    for count, (scores, items) in found.items():
        lists = want[4:5] if count == "1" else want
        assert len(items) == len(lists) == int(count)
        names = [[trained.item_names[i] for i in row] for row in items]
        assert names == [[one["item"] for one in row] for row in lists]
        # On CPU, to the last digit.
        assert scores == [[one["score"] for one in row] for row in lists]


# The same of somebody who has TensorFlow and no JAX.
SERVED = """
import json, sys
sys.modules["jax"] = sys.modules["neggen_jax"] = None
import numpy as np, tensorflow as tf
from safetensors.numpy import load_file
users = load_file("users.safetensors")["vectors"]
seen = np.array(json.load(open("../seen.json")), np.int32)
served = tf.saved_model.load("saved_model").signatures["serving_default"]
out = {}
for rows in ([4], range(len(users))):
    rows = list(rows)
    found = served(queries=users[rows], seen=seen[rows])
    out[len(rows)] = [found[x].numpy().tolist() for x in ("scores", "items")]
json.dump(out, open("../found.json", "w"))
"""


@pytest.mark.slow
def test_a_saved_model_gives_the_same_lists(trained, tmp_path):
    export(trained, tmp_path / "out", k=K, saved_model=True)
    same_lists(trained, tmp_path / "out", SERVED)


def test_tables_are_what_is_ranked_by(trained, exported):
    directory, about = exported
    for name, table, names in (
        ("users", trained.users, trained.user_names),
        ("items", trained.items, trained.item_names),
    ):
        want = np.asarray(table)[: len(names)]
        vectors = load_file(directory / f"{name}.safetensors")["vectors"]
        np.testing.assert_array_equal(vectors, want)
        rows = parquet.read_table(directory / f"{name}.parquet").to_pydict()
        np.testing.assert_array_equal(
            np.array(rows["vector"], np.float32), want
        )
        assert rows["id"] == [names[n] for n in range(len(names))]
        assert about[name] == len(names)
    assert rows["title"] == trained.titles


def test_the_manifest_tells_of_every_file(trained, exported, workdir):
    directory, about = exported
    assert json.loads((directory / "manifest.json").read_text()) == about
    names = {path.name for path in directory.iterdir()}
    assert names == {*about["files"], "manifest.json"}
    for name, told in about["files"].items():
        data = (directory / name).read_bytes()
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
    results = json.loads((workdir / "results.json").read_text())
    assert about["test"] == results["test"]
    assert about["step"] == results["step"] == trained.step
    assert about["fingerprint"] == trained.run.catalog.identity


def test_the_scorer_does_not_tell_of_this_machine(exported):
    directory, _ = exported
    program = (directory / "scorer.stablehlo").read_bytes()
    assert b"neggen_jax" not in program
    assert os.fsencode(ROOT) not in program


def test_an_export_is_whole_or_not_there(trained, exported, tmp_path):
    directory, about = exported
    with pytest.raises(InputError, match="exists already"):
        export(trained, directory, k=K)
    with pytest.raises(InputError, match="longer than"):
        export(trained, tmp_path / "a", k=9999)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("")
    with pytest.raises(InputError, match="would be lost"):
        export(trained, tmp_path / "b", k=K, overwrite=True)
    assert export(trained, directory, k=K, overwrite=True) == about
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_without_faiss_it_says_how_to_get_it(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"requirements-ann\.txt"):
        export(trained, tmp_path / "a", k=K, ann="HNSW32")
    assert not [*tmp_path.iterdir()]


def test_an_index_is_measured_against_exact_lists(trained, tmp_path):
    faiss = pytest.importorskip("faiss")
    found = export(trained, tmp_path / "a", k=K, ann="Flat")["ann"]
    assert (found["recall"], found["k"]) == (1.0, K)
    index = faiss.read_index(str(tmp_path / "a" / "index.faiss"))
    assert index.ntotal == trained.num_items
    # One cell of many: it must find less, and say so.
    found = export(
        trained, tmp_path / "b", k=K, ann="IVF8,Flat", ann_search="nprobe=1"
    )["ann"]
    assert 0 < found["recall"] < 1
    with pytest.raises(InputError, match="FAISS does not make"):
        export(trained, tmp_path / "c", k=K, ann="HNSW32x")


def test_recall_of_an_index_counts_places_not_order(tmp_path):
    pytest.importorskip("faiss")
    items = np.eye(4, dtype=np.float32)
    users = np.array([[4, 3, 2, 1]], np.float32)
    for exact, want in (([[0, 1]], 1), ([[1, 0]], 1), ([[0, 3]], 0.5)):
        found = ann.build(
            items, users, np.array(exact), tmp_path / "i", index="Flat"
        )
        assert found["recall"] == want


@pytest.mark.slow
def test_a_bucket_is_written_like_a_directory(workdir, exported, tmp_path):
    _, about = exported
    with GcsServer("bucket") as server:
        environment = os.environ | server.environment
        environment.pop("XLA_FLAGS")
        (tmp_path / "users").write_text("3\n")
        done = subprocess.run(
            [
                sys.executable,
                "launch/recommend.py",
                f"--workdir={workdir}",
                "--export=gs://bucket/out",
                f"--users={tmp_path / 'users'}",
                "--output=gs://bucket/lists.jsonl",
                f"--k={K}",
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        names = {n.removeprefix("out/") for n in server.names("bucket")}
        assert names == {*about["files"], "manifest.json", "lists.jsonl"}
        there = json.loads(server.text("bucket", "out/manifest.json"))
        line = json.loads(server.text("bucket", "lists.jsonl"))
    assert there["test"] == about["test"]
    assert (line["user"], len(line["items"])) == ("3", K)


def test_bfloat16_is_ranked_as_it_is_evaluated(tmp_path):
    trained = opened("mci", train__dtype="bfloat16")
    assert trained.users.dtype == jax.numpy.float32
    ranked = trained.run.ranker("valid")(trained.users, trained.items)
    path = tmp_path / "lists.jsonl"
    recommend(trained, output=path, k=5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for user, wanted in zip(ranked.users, ranked.lists[:, :5], strict=True):
        found = [item["item"] for item in rows[user]["items"]]
        assert found == [trained.item_names[i] for i in wanted]
