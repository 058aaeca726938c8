"""Counterfactuals of a dataset directory: read as written, or an error."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from conftest import make_catalog

from neggen_jax.catalog import Counterfactuals, Rewritten
from neggen_jax.data import store
from neggen_jax.data.counterfactuals import ARRAYS, locate
from neggen_jax.errors import InputError

ALTERNATIVES, WIDTH = 3, 6


def make_rows(seed: int, num_items: int) -> Rewritten:
    rng = np.random.default_rng(seed)
    described = rng.random(num_items) < 0.8
    present = (rng.random((num_items, ALTERNATIVES)) < 0.6) & described[:, None]
    factual = rng.normal(size=(num_items, WIDTH)) * described[:, None]
    made = (
        rng.normal(size=(num_items, ALTERNATIVES, WIDTH)) * present[..., None]
    )
    return Rewritten(
        factual.astype(np.float32), described, made.astype(np.float32), present
    )


def make_set(num_items: int, name: str = "rule") -> Counterfactuals:
    modalities = {
        "text": make_rows(1, num_items),
        "image": make_rows(2, num_items),
    }
    return Counterfactuals(name, modalities).validate(num_items)


def write_set(directory, made: Counterfactuals) -> None:
    """What generation leaves, written by hand."""
    known = store.describe(directory)
    path = locate(directory, made.name)
    path.mkdir(parents=True)
    (path / "records.jsonl").write_text('{"item": 0}\n')
    sums = {}
    for modality, name, array in made.arrays():
        np.save(path / f"{modality}.{name}.npy", array)
        raw = array.tobytes()
        sums[f"{modality}.{name}.npy"] = hashlib.sha256(raw).hexdigest()
    encoding = {
        "items": known["num_items"],
        "source": store.items_digest(known),
        "records": hashlib.sha256(b'{"item": 0}\n').hexdigest(),
        "modalities": list(made.modalities),
        "fingerprint": made.fingerprint,
        "sha256": sums,
    }
    manifest = {"settings": {"backend": "rule"}, "encoding": encoding}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "data"
    catalog = make_catalog()
    store.save(catalog, path, source={})
    write_set(path, make_set(catalog.num_items))
    return path


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "data")


def test_round_trip(directory):
    plain = store.load(directory)
    assert plain.counterfactuals is None
    loaded = store.load(directory, counterfactuals="rule")
    # What a run of the base is known by stays what it was.
    assert loaded.fingerprint == plain.fingerprint
    assert loaded.validate() is loaded
    found, want = loaded.counterfactuals, make_set(plain.num_items)
    assert found.name == "rule"
    assert list(found.modalities) == ["text", "image"]
    assert found.manifest["settings"] == {"backend": "rule"}
    for (*key, got), (*_, array) in zip(
        found.arrays(), want.arrays(), strict=True
    ):
        assert got.dtype == ARRAYS[key[1]][0]
        np.testing.assert_array_equal(got, array)
    # Mapped, not copied: memory does not grow with the set.
    assert isinstance(found.modalities["text"].counterfactual.base, np.memmap)
    assert found.modalities["image"].dim == WIDTH
    assert found.modalities["image"].alternatives == ALTERNATIVES


def test_fingerprint_covers_all_arrays_and_nothing_else():
    made = make_set(41)
    again = dataclasses.replace(make_set(41), name="other", manifest={"a": 1})
    assert again.fingerprint == made.fingerprint
    seen = {made.fingerprint}
    for modality, name, array in list(made.arrays()):
        other = array.copy()
        other.flat[-1] = not other.flat[-1]
        rows = dataclasses.replace(made.modalities[modality], **{name: other})
        changed = Counterfactuals("rule", {**made.modalities, modality: rows})
        seen.add(changed.fingerprint)
    renamed = {
        "text": made.modalities["text"],
        "sound": made.modalities["image"],
    }
    seen.add(Counterfactuals("rule", renamed).fingerprint)
    assert len(seen) == 2 + 2 * len(ARRAYS)
    # The same bytes in another shape are another set.
    rows = made.modalities["text"]
    shape = rows.present.T.shape
    flat = dataclasses.replace(rows, present=rows.present.reshape(shape))
    pair = (
        Counterfactuals("r", {"text": rows}),
        Counterfactuals("r", {"text": flat}),
    )
    assert pair[0].fingerprint != pair[1].fingerprint


def test_no_records_are_needed_to_train(directory):
    (directory / "counterfactuals/rule/records.jsonl").unlink()
    assert store.load(directory, counterfactuals="rule").counterfactuals


def test_a_set_is_not_lost_with_its_dataset(directory):
    other = make_catalog(seed=1)
    with pytest.raises(InputError, match="would be lost") as caught:
        store.save(other, directory, source={}, overwrite=True)
    assert caught.value.found == "counterfactuals"
    assert store.load(directory, counterfactuals="rule").counterfactuals


def edit(directory, **values):
    path = directory / "counterfactuals/rule/manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in values.items():
        if value is None:
            del manifest[name]
        else:
            manifest[name] = manifest.get(name, {}) | value
    path.write_text(json.dumps(manifest))


def flip(directory, name):
    path = directory / "counterfactuals/rule" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(directory, name):
    path = directory / "counterfactuals/rule" / name
    path.write_bytes(path.read_bytes()[:-5])


def prepare_anew(directory):
    made = locate(directory, "rule")
    kept = shutil.copytree(made, directory.parent / "kept")
    path = directory / "catalog.json"
    known = json.loads(path.read_text())
    known["files"]["items"] = {"items/x.tfrecord-00000": "0" * 64}
    path.write_text(json.dumps(known))
    shutil.copytree(kept, made, dirs_exist_ok=True)


DAMAGES = {
    "no sets": (
        lambda d: shutil.rmtree(d / "counterfactuals"),
        "no set of counterfactuals 'rule'.*generate.py --data=",
    ),
    "another set": (
        lambda d: (d / "counterfactuals/rule").rename(
            d / "counterfactuals/rules"
        ),
        "no set of counterfactuals 'rule'.*did you mean 'rules'",
    ),
    "not complete": (
        lambda d: (d / "counterfactuals/rule/manifest.json").unlink(),
        r"not complete.*manifest\.json",
    ),
    "not encoded": (
        lambda d: edit(d, encoding=None),
        "not been encoded.*generate.py --data=.* --set=rule --merge",
    ),
    "manifest damaged": (lambda d: cut(d, "manifest.json"), "cannot be read"),
    "manifest a list": (
        lambda d: (d / "counterfactuals/rule/manifest.json").write_text("[]"),
        "cannot be read.*list",
    ),
    "more items": (
        lambda d: edit(d, encoding={"items": 40}),
        "for other items.*items 41.*40",
    ),
    "other items": (prepare_anew, "for other items.*source"),
    "records changed": (
        lambda d: flip(d, "records.jsonl"),
        "records were changed.*encode them again.*--set=rule",
    ),
    "array changed": (
        lambda d: flip(d, "image.counterfactual.npy"),
        r"not those of their manifest.*image\.counterfactual\.npy.*again",
    ),
    "mask changed": (
        lambda d: flip(d, "text.present.npy"),
        r"not those of their manifest.*text\.present\.npy",
    ),
    "modality left out": (
        lambda d: edit(d, encoding={"modalities": ["text"]}),
        "not those of their manifest",
    ),
    "array gone": (
        lambda d: (d / "counterfactuals/rule/text.factual.npy").unlink(),
        r"cannot be read.*text\.factual\.npy",
    ),
    "array truncated": (
        lambda d: cut(d, "text.described.npy"),
        "cannot be read",
    ),
    "array of another type": (
        lambda d: np.save(
            d / "counterfactuals/rule/text.factual.npy", np.zeros((41, 6))
        ),
        "cannot be read.*float64",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_one_clear_error(directory, kind):
    damage, message = DAMAGES[kind]
    store.load(directory, counterfactuals="rule")
    damage(directory)
    with pytest.raises(InputError, match=f"(?s){message}"):
        store.load(directory, counterfactuals="rule")
    # Whoever does not ask for the set is not kept from working.
    assert store.load(directory).counterfactuals is None


@pytest.mark.parametrize("name", ["", "../items", "a/b", ".", "-a", "a b"])
def test_names_of_sets_are_words(directory, name):
    with pytest.raises(InputError, match="plain word"):
        store.load(directory, counterfactuals=name)


def rows_with(**arrays) -> dict:
    return {
        "text": dataclasses.replace(make_rows(1, 41), **arrays),
        "image": make_rows(2, 41),
    }


def first(mask):
    """Index of the first place where a mask holds."""
    return tuple(np.argwhere(mask)[0])


def spoiled(name, value):
    """One vector that is there gets a value in its last column."""
    rows = make_rows(1, 41)
    array = getattr(rows, name).copy()
    there = rows.described if name == "factual" else rows.present
    array[(*first(there), slice(None) if value == 0 else -1)] = value
    return rows_with(**{name: array})


def filled(name):
    """One vector that is not there gets a value."""
    rows = make_rows(1, 41)
    array = getattr(rows, name).copy()
    there = rows.described if name == "factual" else rows.present
    array[(*first(~there), 0)] = 1
    return rows_with(**{name: array})


def orphan():
    rows = make_rows(1, 41)
    present, made = rows.present.copy(), rows.counterfactual.copy()
    item = first(~rows.described)[0]
    present[item, 1], made[item, 1, 0] = True, 1
    return rows_with(present=present, counterfactual=made)


def none_present():
    rows = make_rows(1, 41)
    empty = dataclasses.replace(
        rows,
        present=np.zeros_like(rows.present),
        counterfactual=np.zeros_like(rows.counterfactual),
    )
    return {"text": empty}


def narrower():
    rows = make_rows(2, 41)
    return {
        "text": make_rows(1, 41),
        "image": dataclasses.replace(
            rows,
            factual=rows.factual[:, :4],
            counterfactual=rows.counterfactual[..., :4],
        ),
    }


RULES = {
    "nothing at all": (dict, "is empty"),
    "other items": (
        lambda: {"text": make_rows(1, 40)},
        r"another shape.*text\.factual.*\(41, 6\).*\(40, 6\)",
    ),
    "float64": (
        lambda: rows_with(factual=make_rows(1, 41).factual.astype(float)),
        "another shape or type.*float32.*float64",
    ),
    "mask of integers": (
        lambda: rows_with(present=make_rows(1, 41).present.astype(int)),
        r"another shape or type.*text\.present.*bool.*int64",
    ),
    "no alternatives": (
        lambda: rows_with(
            present=np.zeros((41, 0), bool),
            counterfactual=np.zeros((41, 0, 6), np.float32),
        ),
        "none empty",
    ),
    "modalities of two widths": (narrower, r"image\.factual.*\(41, 6\)"),
    "NaN": (lambda: spoiled("counterfactual", np.nan), "NaN.*text.counterf"),
    "infinity": (lambda: spoiled("factual", np.inf), r"NaN.*text\.factual"),
    "zero that is present": (
        lambda: spoiled("counterfactual", 0),
        "contradicts the mask.*mask True",
    ),
    "row that is absent": (
        lambda: filled("counterfactual"),
        "contradicts the mask.*mask False",
    ),
    "row that is not described": (
        lambda: filled("factual"),
        r"contradicts the mask.*text\.factual.*mask False",
    ),
    "no description": (orphan, "counterfactual and no description"),
    "no counterfactual": (none_present, "No item has a counterfactual"),
}


@pytest.mark.parametrize("kind", RULES)
def test_rules_of_what_is_encoded(kind):
    make, message = RULES[kind]
    made = Counterfactuals("rule", make())
    with pytest.raises(InputError, match=f"(?s){message}"):
        made.validate(41)
    with pytest.raises(InputError, match=f"(?s){message}"):
        dataclasses.replace(make_catalog(), counterfactuals=made).validate()


def test_rules_name_the_item(monkeypatch):
    # Also where items are checked in several blocks.
    monkeypatch.setattr("neggen_jax.data.counterfactuals._BLOCK", 7)
    rows = make_rows(1, 41)
    item = int(np.flatnonzero(rows.described)[-1])
    factual = rows.factual.copy()
    factual[item, 2] = np.nan
    made = Counterfactuals(
        "rule", {"text": dataclasses.replace(rows, factual=factual)}
    )
    with pytest.raises(InputError, match=f"item {item}\\b"):
        made.validate(41)
