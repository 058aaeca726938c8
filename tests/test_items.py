"""Item files and feature matrices: what comes out, and what is refused."""

import json
import os

import numpy as np
import pytest

from neggen_jax.data.items import (
    bare_records,
    read_matrices,
    read_new,
    read_records,
)
from neggen_jax.errors import InputError


def write_items(root, *items):
    text = "".join(json.dumps(item) + "\n" for item in items)
    (root / "items.jsonl").write_text(text, "utf-8")


def test_records(tmp_path):
    write_items(
        tmp_path,
        {"itemID": 0, "asin": "B0", "description": "lang, größer"},
        {"asin": "B1", "text": "words", "image": "images/1.jpg"},
        {"asin": "B2", "title": None, "attributes": {"n": 3, "empty": ""}},
        {"itemID": 3, "description": ["two", "parts"], "attributes": None},
        {"asin": "B4", "attributes": {"k": ["a", "b"], "none": None}},
        {"asin": "B5", "title": "half a pair \ud83d", "image_path": "x.png"},
    )
    records = read_records(tmp_path)
    assert records.ids == ["B0", "B1", "B2", "3", "B4", "B5"]
    assert records.titles == [""] * 5 + ["half a pair ?"]
    assert records.texts == ["lang, größer", "words", "", "two parts", "", ""]
    assert records.attributes == [
        {}, {}, {"n": "3"}, {}, {"k": "a, b"}, {},
    ]  # fmt: skip
    assert records.images == ["", "images/1.jpg", "", "", "", "x.png"]
    assert records.image_root == str(tmp_path)
    assert len(records) == 6


def test_usual_names_of_fields(tmp_path, capsys):
    write_items(
        tmp_path,
        {"product_name": "a scarf", "text": "", "summary": "of wool"},
        {"Title": "b", "name": "c", "picture": "1.png", "text": "d"},
    )
    records = read_records(tmp_path)
    assert records.titles == ["a scarf", "b"]
    assert records.texts == ["of wool", "d"]
    assert records.images == ["", "1.png"]
    assert capsys.readouterr().err == ""


def test_fields_that_are_not_read_are_named_once(tmp_path, capsys):
    write_items(
        tmp_path,
        {"title": "a", "colour": "red", "itemID": 0},
        {"title": "b", "colour": "blue", "vectors": {}, "attributes": {}},
    )
    read_records(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "items.jsonl: not read: colour, vectors; attributes" in said
    path = tmp_path / "new.jsonl"
    path.write_text('{"id": "a", "vectors": {"text": [1]}, "brand": "Ö"}\n')
    _, vectors = read_new(path)
    assert vectors == {"text": {0: [1]}}
    assert "new.jsonl: not read: brand; attributes" in capsys.readouterr().err


def test_no_records(tmp_path):
    assert read_records(tmp_path) is None
    bare = bare_records(["a", "b"])
    columns = (bare.titles, bare.texts, bare.attributes, bare.images)
    assert columns == (["", ""], ["", ""], [{}, {}], ["", ""])
    assert bare.attributes[0] is not bare.attributes[1]


BAD_ITEMS = {
    "empty": (b"", "items' file is empty"),
    "bad JSON": (
        b'{"title": "a"}\n{"title": "b\n',
        r"not JSON.*items\.jsonl, line 2",
    ),
    "blank line": (
        b'{"title": "a"}\n\n{"title": "b"}\n',
        r"not JSON.*items\.jsonl, line 2",
    ),
    "not an object": (b'{}\n["title"]\n', "not a JSON object.*line 2.*list"),
    "not UTF-8": (
        b'{"title": "a"}\n{"title": "\xff"}\n',
        "not UTF-8.*line 2, byte 26 .*0xff",
    ),
    "out of order": (
        b'{"itemID": 0}\n{"itemID": 2}\n{"itemID": 1}\n',
        "line of its itemID.*line 2.*itemID 1.*itemID 2",
    ),
    "attributes not an object": (
        b'{"attributes": ["red"]}\n',
        r"attributes of an item.*line 1.*\[\"red\"\]",
    ),
}


@pytest.mark.parametrize("kind", BAD_ITEMS)
def test_bad_items(tmp_path, kind):
    content, message = BAD_ITEMS[kind]
    (tmp_path / "items.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_records(tmp_path)


def test_matrices(tmp_path):
    text = np.arange(12, dtype=np.float64).reshape(6, 2) - 4
    np.save(tmp_path / "text_feat.npy", text)
    np.save(tmp_path / "text_feat_old.npy", text[:, :1])
    image = np.eye(6, dtype=np.int64)[:, :5]
    np.save(tmp_path / "image_feat_low.npy", np.asfortranarray(image))
    np.save(tmp_path / "something_else.npy", text)
    for num_items in (6, None):
        features = read_matrices(tmp_path, num_items)
        assert features.keys() == {"text", "image"}
        assert features["text"].values.dtype == np.float32
        np.testing.assert_array_equal(features["text"].values, text)
        assert features["text"].present.all()
        assert features["text"].manifest["encoder"] == "file"
        np.testing.assert_array_equal(features["image"].values, image)
        assert features["image"].present.tolist() == [True] * 5 + [False]
        parameters = features["image"].manifest["parameters"]
        assert parameters == {"file": "image_feat_low.npy"}


BAD_MATRICES = {
    "too short": (
        {"text_feat": np.ones((4, 2))},
        r"one row of features per item.*\(5, f\).*\(4, 2\)",
    ),
    "too long": (
        {"text_feat": np.ones((6, 2))},
        r"one row of features per item.*\(5, f\).*\(6, 2\)",
    ),
    "one dimension": (
        {"text_feat": np.ones(5)},
        r"one row of features per item.*\(5, f\).*\(5,\)",
    ),
    "three dimensions": (
        {"text_feat": np.ones((5, 2, 2))},
        r"one row of features per item.*\(5, 2, 2\)",
    ),
    "no dimension": ({"text_feat": np.ones(())}, "one row of features"),
    "words": (
        {"text_feat": np.full((5, 2), "a")},
        "one row of features per item.*<U1",
    ),
    "complex numbers": ({"text_feat": np.ones((5, 2), complex)}, "complex128"),
    "several": (
        {"text_feat_a": np.ones((5, 2)), "text_feat_b": np.ones((5, 2))},
        r"several matrices.*text_feat_a\.npy, text_feat_b\.npy.*rename",
    ),
}


@pytest.mark.parametrize("kind", BAD_MATRICES)
def test_bad_matrices(tmp_path, kind):
    matrices, message = BAD_MATRICES[kind]
    for name, matrix in matrices.items():
        np.save(tmp_path / f"{name}.npy", matrix)
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_matrices(tmp_path, 5)


def test_matrices_of_two_lengths(tmp_path):
    np.save(tmp_path / "text_feat.npy", np.ones((6, 2)))
    np.save(tmp_path / "image_feat.npy", np.ones((5, 2)))
    with pytest.raises(InputError, match=r"(?s)\(5, f\).*\(6, 2\)"):
        read_matrices(tmp_path, None)


def test_files_that_are_no_matrices(tmp_path):
    path = tmp_path / "text_feat.npy"
    np.save(path, np.ones((5, 2)))
    whole = path.read_bytes()
    for content in (b"", b"1 2 3\n4 5 6\n", whole[:20], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"(?s)cannot be read.*text_feat"):
            read_matrices(tmp_path, 5)
    with path.open("wb") as file:
        np.savez(file, np.ones((5, 2)))
    with pytest.raises(InputError, match="an archive of arrays"):
        read_matrices(tmp_path, 5)


def test_pickles_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    array = np.array([[Trap()]], dtype=object)
    np.save(tmp_path / "text_feat.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_matrices(tmp_path, 1)
    assert not (tmp_path / "trapped").exists()
