"""Encoding probes, and a set by the encoder of another one."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_catalog
from test_encode import (
    COLOURS,
    STUFFS,
    check,
    make_records,
    quick,
    reference,
    write_set,
)

from neggen_jax.data import store
from neggen_jax.data.encoders import Tfidf
from neggen_jax.data.features import unit_rows
from neggen_jax.errors import InputError
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.generation.sets import encode as encoding

PROBES = {"text": ["colour", "stuff", "size"], "image": ["stuff", "colour"]}


def make_probed():
    made = []
    for item in range(6):
        for modality in ("text", "image"):
            colour, stuff = COLOURS[item % 4], STUFFS[item % 3]
            changes = [
                ("colour", colour, COLOURS[(item + 1) % 4]),
                ("stuff", stuff, STUFFS[(item + 1) % 3]),
            ]
            words = f"{modality} of a {colour} thing of {stuff}"
            negatives = [
                Alternative(words.replace(old, new), {name: (old, new)})
                for name, old, new in changes
            ]
            made.append(
                Record(
                    item,
                    f"A{item}",
                    modality,
                    description=words,
                    # In any order, and not always all.
                    negatives=tuple(negatives[:: -1 if item % 2 else 1])[
                        : 2 if item else 1
                    ],
                )
            )
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A set that is encoded, and probes that are not."""
    path = tmp_path_factory.mktemp("like") / "data"
    store.save(make_catalog(), path, source={})
    write_set(path, make_records())
    write_set(path, make_probed(), "probes", probes=PROBES)
    quick(path)
    return path


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "data")


def test_vectors_are_those_of_the_other_sets_encoder(directory):
    learned = []
    for record in make_records():
        learned += [record.description, *(n.text for n in record.negatives)]
    coder = Tfidf()
    coder.fit_transform([x for x in dict.fromkeys(learned) if x.strip()])
    found = quick(directory, "probes", like="rule")
    alone = 0
    for record in make_probed():
        part = found.modalities[record.modality]
        texts = [record.description, *(n.text for n in record.negatives)]
        want = unit_rows(coder.transform(texts))
        slots = [
            PROBES[record.modality].index(*made.changes)
            for made in record.negatives
        ]
        got = [
            part.factual[record.item],
            *part.counterfactual[record.item, slots],
        ]
        # Rows are multiplied in other blocks, which may round otherwise.
        np.testing.assert_allclose(got, want, atol=1e-6)
        alone += len(texts)
    assert alone > 30
    path = directory / "counterfactuals"
    known, other = (
        json.loads((path / name / "manifest.json").read_text())["encoding"]
        for name in ("probes", "rule")
    )
    assert known["like"] == {"set": "rule", "records": other["records"]}
    assert "like" not in other
    # By itself the set has vectors of another space.
    own = quick(directory, "probes")
    assert own.fingerprint != found.fingerprint
    assert "like" not in own.manifest["encoding"]


def test_blocks_change_nothing(directory, monkeypatch):
    whole = quick(directory, "probes", like="rule")
    want = {(m, n): np.array(x) for m, n, x in whole.arrays()}
    monkeypatch.setattr(encoding, "_BLOCK", 3)
    for modality, name, array in quick(
        directory, "probes", like="rule"
    ).arrays():
        np.testing.assert_allclose(array, want[modality, name], atol=1e-6)


@pytest.mark.parametrize("change", [{"dim": 3}, {"seed": 1}])
def test_other_settings_are_refused(directory, change, monkeypatch):
    if "seed" in change:
        # Then other texts are learned from.
        monkeypatch.setattr(encoding, "_SAMPLE", 12)
    before = (directory / "counterfactuals/probes/manifest.json").read_bytes()
    with pytest.raises(InputError, match="encoded by another encoder"):
        quick(directory, "probes", like="rule", **change)
    after = (directory / "counterfactuals/probes/manifest.json").read_bytes()
    assert after == before


def test_a_set_that_is_not_encoded_cannot_be_followed(directory):
    with pytest.raises(InputError, match="not been encoded"):
        quick(directory, "rule", like="probes")


# Probes ---------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path):
    """A dataset without a set."""
    store.save(make_catalog(), tmp_path / "bare", source={})
    return tmp_path / "bare"


def test_probes_have_places(bare):
    made = make_probed()
    write_set(bare, made, probes=PROBES)
    found = quick(bare)
    check(found, reference(made, PROBES))
    text, image = found.modalities.values()
    assert text.alternatives == image.alternatives == 3
    assert text.present[0].tolist() == [True, False, False]
    assert image.present[0].tolist() == [False, True, False]
    assert text.present[1].tolist() == [True, True, False]


def two_changes(made):
    changes = {"colour": ("red", "blue"), "stuff": ("oak", "wool")}
    return {"negatives": (Alternative("a", changes),)}


def same_probe(made):
    return {"negatives": made.negatives[:1] * 2}


def unknown_probe(made):
    return {"negatives": (Alternative("a", {"weight": ("1", "2")}),)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_changes, r"line 5.*one attribute of colour.*colour, stuff"),
        (same_probe, "line 5"),
        (unknown_probe, "line 5.*weight"),
    ],
)
def test_what_is_no_probe_is_refused(bare, change, message):
    made = make_probed()
    made[4] = Record(**{**vars(made[4]), **change(made[4])})
    write_set(bare, made, probes=PROBES)
    with pytest.raises(InputError, match=f"(?s){message}"):
        quick(bare)


@pytest.mark.parametrize(
    "probes", [{}, [], {"text": []}, {"text": "colour"}, {"text": ["a", "a"]}]
)
def test_bad_probes_are_refused(bare, probes):
    write_set(bare, make_probed(), probes=probes)
    with pytest.raises(InputError, match="probes of a set"):
        quick(bare)
