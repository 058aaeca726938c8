"""Encoding a set by the encoder of another one."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_catalog
from test_encode import PROBES, make_probed, make_records, quick, write_set

from neggen_jax.data import store
from neggen_jax.data.encoders import Tfidf
from neggen_jax.data.features import unit_rows
from neggen_jax.errors import InputError
from neggen_jax.generation.sets import encode as encoding


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
