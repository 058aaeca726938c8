"""Vectors of one's own, beside any source."""

import dataclasses

import numpy as np
import pytest
from test_own_files import table, write

from neggen_jax.data import store
from neggen_jax.data.prepare import prepare
from neggen_jax.data.sources.matrices import read_embedding
from neggen_jax.data.sources.own_files import read_files
from neggen_jax.errors import InputError


def save(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        from safetensors.numpy import save_file

        save_file({"any": np.ascontiguousarray(values)}, path)
    return path


@pytest.fixture
def shop(tmp_path):
    """Prepares a shop whose items are called by words or by numbers."""

    def make(embeddings, names="words"):
        rows = table()
        if names == "numbers":
            rows = [(u, int(i[1:]) + 3, *rest) for u, i, *rest in rows]
        catalog = read_files("csv", write(tmp_path / "x.csv", rows))
        features = {
            name: read_embedding(path, name, catalog, indexed=False)
            for name, path in embeddings.items()
        }
        return dataclasses.replace(catalog, features=features).validate()

    return make


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i4", ">f4"])
def test_rows_by_identifier(shop, tmp_path, kind, dtype):
    if kind == "safetensors" and dtype == ">f4":
        pytest.skip("there are none")
    values = np.arange(1, 25).reshape(8, 3).astype(dtype)
    path = save(tmp_path / f"v.{kind}", values)
    names = ["ä4", "other", "ä0", "ä8", "ä7", "ä2", "ä3", "ä5"]
    (tmp_path / "v.ids").write_text("\n".join(names) + "\n", "utf-8")
    catalog = shop({"text": path, "audio": path})
    ids = catalog.records.ids
    for matrix in catalog.features.values():
        for place, name in enumerate(ids):
            assert matrix.present[place] == (name in names)
            if name in names:
                want = values[names.index(name)].astype(np.float32)
                np.testing.assert_array_equal(matrix.values[place], want)


def test_rows_by_number(shop, tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 4))
    path = save(tmp_path / "v.npy", values)
    catalog = shop({"text": path}, "numbers")
    # Items are called 3 to 11.
    np.testing.assert_array_equal(
        catalog.features["text"].values, values[3:12].astype(np.float32)
    )
    with pytest.raises(InputError, match=r"(?s)not clear whose.*v.ids"):
        shop({"text": path})
    with pytest.raises(InputError, match=r"(?s)no row.*row 11.*10 rows"):
        shop({"text": save(path, values[:10])}, "numbers")


def test_rows_by_index_where_the_source_numbers_items(tmp_path):
    values = np.eye(80, dtype=np.float32)
    path = save(tmp_path / "v.safetensors", values)
    options = {"num_users": 30, "num_items": 80, "features": "direct"}
    catalog = prepare(
        "bazaar",
        None,
        tmp_path / "data",
        embeddings={"text": path, "audio": path},
        **options,
    )
    source = store.describe(tmp_path / "data")["source"]
    assert source["embeddings"]["audio"] == str(path)
    assert sorted(catalog.features) == ["audio", "image", "text"]
    # In place of the source's own; the other modality stays.
    np.testing.assert_array_equal(catalog.features["text"].values, values)
    assert catalog.features["text"].manifest["encoder"] == "file"
    assert catalog.features["image"].manifest["encoder"] == "bazaar-direct"
    with pytest.raises(InputError, match=r"(?s)one row of.*\(80, f\).*\(9, 80"):
        prepare(
            "bazaar",
            None,
            tmp_path / "other",
            embeddings={"text": save(path, values[:9])},
            **options,
        )
    assert not (tmp_path / "other").exists()


def test_bfloat16(shop, tmp_path):
    import ml_dtypes

    values = np.random.default_rng(0).normal(size=(12, 4))
    values = values.astype(ml_dtypes.bfloat16)
    path = save(tmp_path / "v.safetensors", values)
    catalog = shop({"text": path}, "numbers")
    np.testing.assert_array_equal(
        catalog.features["text"].values, values[3:12].astype(np.float32)
    )


def test_tensors_by_name(shop, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "v.safetensors"
    text, image = np.ones((12, 2), np.float32), np.ones((12, 3), np.float32)
    save_file({"text": text, "image": image}, path)
    catalog = shop({"text": path, "image": path}, "numbers")
    assert [m.dim for m in catalog.features.values()] == [2, 3]
    with pytest.raises(
        InputError, match=r"(?s)which tensor.*'audio'.*image, te"
    ):
        shop({"audio": path}, "numbers")


NAN = np.ones((12, 2))
NAN[[4, 7], 1] = np.nan, np.inf
BAD = {
    "NaN": (NAN, r"2 feature rows hold NaN.*v\.npy.*items \[4, 7\]"),
    "too large": (np.full((12, 2), 1e300), "12 feature rows"),
    "one axis": (np.ones(12), r"\(12,\)"),
    "complex": (np.ones((12, 2), complex), "complex128"),
    "words": (np.full((12, 2), "x"), "<U1"),
    "objects": (np.full((12, 2), None), "cannot be read"),
    "all absent": (np.zeros((12, 2)), "No item has this modality"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_matrices(shop, tmp_path, kind):
    values, message = BAD[kind]
    np.save(tmp_path / "v.npy", values, allow_pickle=True)
    with pytest.raises(InputError, match=f"(?s){message}"):
        shop({"text": tmp_path / "v.npy"}, "numbers")


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_damaged_files(shop, tmp_path, kind):
    path = save(tmp_path / f"v.{kind}", np.ones((12, 200)))
    whole = path.read_bytes()
    for content in (b"", b"\xff" * 100, whole[:-7], whole[:9]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="matrix cannot be read"):
            shop({"text": path}, "numbers")
    with pytest.raises(InputError, match="no such feature matrix"):
        shop({"text": tmp_path / "none.npy"}, "numbers")


def test_identifiers_that_do_not_fit(shop, tmp_path):
    path = save(tmp_path / "v.npy", np.ones((3, 2)))
    for names, message in (
        ("ä1\nä2\n", "differ in length.*3 rows"),
        ("ä1\nä2\nä1\n", "stands twice.*line 3"),
        ("a\nb\nc\n", "None of the identifiers"),
    ):
        (tmp_path / "v.ids").write_text(names, "utf-8")
        with pytest.raises(InputError, match=f"(?s){message}"):
            shop({"text": path})


def test_vectors_and_an_encoder_contradict(tmp_path):
    given = {"embeddings": {"text": tmp_path / "v.npy"}}
    for options in ({"text": "tfidf"}, {"text": "none"}, {"text_model": "m"}):
        with pytest.raises(InputError, match="others are asked for"):
            prepare("bazaar", None, tmp_path / "data", **given, **options)
    assert not list(tmp_path.iterdir())
