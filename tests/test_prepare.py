"""From raw files to a dataset directory: the whole first command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neggen_jax.data import store
from neggen_jax.data.bazaar.truth import Truth
from neggen_jax.data.prepare import prepare
from neggen_jax.data.summary import summarise
from neggen_jax.errors import InputError

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "green", "blue")
ITEMS = 12


@pytest.fixture
def shop(tmp_path):
    """A small shop in MMRec's layout, with texts and pictures."""
    from PIL import Image

    root = tmp_path / "shop"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    items = []
    for number in range(ITEMS):
        colour = COLOURS[number % 3]
        image = ""
        if number != 4:
            image = f"images/{number}.png"
            pixels = rng.integers(0, 60, (40, 30, 3)).astype(np.uint8)
            pixels[..., number % 3] += 180
            Image.fromarray(pixels).save(root / image)
        title = "" if number == 7 else f"A {colour} thing number {number}"
        items.append({"itemID": number, "title": title, "image": image})
    text = "".join(json.dumps(item) + "\n" for item in items)
    (root / "items.jsonl").write_text(text)
    rows = ["userID\titemID\tx_label"]
    for user in range(9):
        for at, item in enumerate(rng.permutation(ITEMS)[:6]):
            rows.append(f"{user}\t{item}\t{max(0, at - 3)}")
    (root / "shop.inter").write_text("\n".join(rows) + "\n")
    return root


def contents(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def test_texts_and_pictures_become_features(shop, tmp_path):
    catalog = prepare("mmrec", shop, tmp_path / "data")
    assert list(catalog.features) == ["text", "image"]
    text, image = catalog.features["text"], catalog.features["image"]
    assert text.manifest["encoder"] == "tfidf"
    assert image.manifest["encoder"] == "pixels"
    assert np.flatnonzero(~text.present).tolist() == [7]
    assert np.flatnonzero(~image.present).tolist() == [4]
    # Vectors are those of the items they stand for: colours find each other.
    for matrix in (text, image):
        unit = matrix.values / np.maximum(
            np.linalg.norm(matrix.values, axis=1, keepdims=True), 1e-9
        )
        near = (unit @ unit.T)[matrix.present][:, matrix.present]
        colour = np.arange(ITEMS)[matrix.present] % 3
        same = colour[:, None] == colour
        assert near[same].mean() > near[~same].mean() + 0.1
    records = store.load(tmp_path / "data", records=True).records
    assert Path(records.image_root, records.images[0]).exists()
    source = store.describe(tmp_path / "data")["source"]
    assert source == {"source": "mmrec", "input": str(shop)}


def test_bazaar_texts_do_not_tell_what_only_pictures_show(tmp_path):
    options = {"num_users": 30, "num_items": 80, "missing": 0.25}
    data = tmp_path / "data"
    catalog = prepare("bazaar", None, data, image="none", **options)
    records = store.load(data, records=True).records
    # Items without text have attributes nevertheless: those of the picture.
    assert not catalog.features["text"].present.all()
    np.testing.assert_array_equal(
        catalog.features["text"].present, np.array(records.titles) != ""
    )
    prepare(
        "bazaar",
        None,
        tmp_path / "told",
        image="none",
        text_attributes=["pattern"],
        **options,
    )
    told = store.load(tmp_path / "told").features["text"]
    assert told.present.sum() > catalog.features["text"].present.sum()


def test_unreadable_pictures_can_be_left_out(shop, tmp_path):
    (shop / "images/2.png").write_bytes(b"not a picture")
    catalog = prepare(
        "mmrec", shop, tmp_path / "data", text="none", bad_images="absent"
    )
    present = catalog.features["image"].present
    assert np.flatnonzero(~present).tolist() == [2, 4]


def test_prepared_twice_is_the_same(shop, tmp_path):
    first = prepare("mmrec", shop, tmp_path / "a")
    second = prepare("mmrec", str(shop), str(tmp_path / "b"))
    assert first.fingerprint == second.fingerprint


def test_own_matrix_is_taken_unless_told_otherwise(shop, tmp_path):
    own = np.arange(ITEMS * 3, dtype=np.float32).reshape(ITEMS, 3) - 4
    np.save(shop / "image_feat.npy", own)
    catalog = prepare("mmrec", shop, tmp_path / "data", text="none")
    assert list(catalog.features) == ["image"]
    np.testing.assert_array_equal(catalog.features["image"].values, own)
    assert catalog.features["image"].manifest["encoder"] == "file"
    catalog = prepare(
        "mmrec",
        shop,
        tmp_path / "data",
        text="none",
        image="pixels",
        overwrite=True,
    )
    assert catalog.features["image"].manifest["encoder"] == "pixels"
    with pytest.raises(InputError, match="brings no text features"):
        prepare("mmrec", shop, tmp_path / "other", text="file", image="file")
    assert not (tmp_path / "other").exists()


def test_options_reach_the_source(shop, tmp_path):
    path = shop / "shop.inter"
    path.write_text(path.read_text() + "9\t3\t1\n0\t3\t0\n0\t3\t0\n")
    choice = {"text": "none", "image": "none"}
    with pytest.raises(InputError, match="twice"):
        prepare("mmrec", shop, tmp_path / "data", **choice)
    options = {"duplicates": "first", "cold_users": "drop", "name": "renamed"}
    catalog = prepare("mmrec", shop, tmp_path / "data", **choice, **options)
    assert catalog.name == "renamed"
    assert catalog.num_users == 9
    source = store.describe(tmp_path / "data")["source"]
    assert source == {"source": "mmrec", "input": str(shop), **options}


def test_bazaar_with_pictures(tmp_path):
    catalog = prepare(
        "bazaar", None, tmp_path / "data", num_users=30, num_items=80, seed=3
    )
    assert (catalog.num_users, catalog.num_items) == (30, 80)
    assert list(catalog.features) == ["text", "image"]
    assert catalog.features["image"].manifest["encoder"] == "pixels"
    records = store.load(tmp_path / "data", records=True).records
    assert Path(records.image_root) == tmp_path / "data/images"
    assert all(Path(records.image_root, p).exists() for p in records.images)
    truth = Truth.load(tmp_path / "data/truth.npz")
    assert len(truth.item_values) == 80
    source = store.describe(tmp_path / "data")["source"]
    assert source["source"] == "bazaar"
    assert (source["num_items"], source["seed"]) == (80, 3)


def test_bazaar_with_vectors(tmp_path, capsys):
    options = {"num_users": 300, "num_items": 200, "features": "direct"}
    catalog = prepare("bazaar", None, tmp_path / "data", **options)
    assert catalog.features["text"].manifest["encoder"] == "bazaar-direct"
    assert not (tmp_path / "data/images").exists()
    summarise(catalog, tmp_path / "data")
    printed = capsys.readouterr().out
    total = sum(len(part) for part in catalog.splits.values())
    for word in (
        "300",
        f"{total:,}",
        f"{total / 60_000:.4%}",
        "64 dimensions by bazaar-direct; 0 items without",
        catalog.fingerprint,
        str(tmp_path / "data"),
    ):
        assert word in printed


DIRECT = {"num_users": 30, "num_items": 80, "features": "direct"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "mrec"}, "no source 'mrec'.*did you mean 'mmrec'"),
        ({"source": "mmrec"}, "'mmrec' reads files.*--input"),
        ({"input": "x"}, "'bazaar' reads no files"),
        ({"file": "x"}, "'bazaar' has no option 'file'"),
        ({"num_user": 3}, "no option 'num_user'.*did you mean 'num_users'"),
        ({"num_users": 0}, "num_users=0"),
        ({"text": "tf-idf"}, "'tf-idf'.*did you mean 'tfidf'"),
        ({"image": "tfidf"}, "'tfidf' to make image features.*pixels"),
        ({"text": "tfidf", "text_model": "m"}, "would not be used"),
        ({"text_model": "m"}, "no text to make features of"),
        ({"text": "tfidf"}, "no text to make features of"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, arguments, message):
    arguments = {"source": "bazaar", "input": None} | arguments
    if arguments["source"] == "bazaar":
        arguments = DIRECT | arguments
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare(output=tmp_path / "data", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_input_leaves_the_old_dataset(shop, tmp_path):
    prepare("bazaar", None, tmp_path / "data", **DIRECT)
    before = contents(tmp_path / "data")
    with pytest.raises(InputError, match="exists already"):
        prepare("mmrec", shop, tmp_path / "data")
    (shop / "images/2.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"(?s)image.*2\.png"):
        prepare("mmrec", shop, tmp_path / "data", overwrite=True)
    assert contents(tmp_path / "data") == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["data", "shop"]


def test_command(tmp_path):
    command = [sys.executable, str(ROOT / "launch/prepare.py")]
    command += ["--source=bazaar", f"--output={tmp_path / 'data'}"]
    command += ["--users=30", "--items=80", "--features=direct", "--seed=5"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}

    def run():
        return subprocess.run(
            command, capture_output=True, text=True, env=environment
        )

    done = run()
    assert done.returncode == 0, done.stderr
    catalog = store.load(tmp_path / "data")
    assert catalog.fingerprint in done.stdout
    assert catalog.num_items == 80
    assert store.describe(tmp_path / "data")["source"]["seed"] == 5
    again = run()
    assert again.returncode == 2
    assert again.stderr.startswith("error: The output directory exists")
    assert "Traceback" not in again.stderr


def test_dealt_users_and_items_are_the_same_ones(shop, tmp_path):
    """Under other indices; their identifiers and pictures go with them."""
    prepare("mmrec", shop, tmp_path / "given", text="tfidf")
    prepare("mmrec", shop, tmp_path / "dealt", text="tfidf", order="dealt")
    given, dealt = (
        store.load(tmp_path / name, records=True) for name in ("given", "dealt")
    )
    assert given.user_ids is None
    users = np.array(dealt.user_ids, int)
    items = np.array(dealt.records.ids, int)
    np.testing.assert_array_equal(np.sort(users), np.arange(9))
    np.testing.assert_array_equal(np.sort(items), np.arange(ITEMS))
    assert (users != np.arange(9)).any()
    assert (items != np.arange(ITEMS)).any()
    for name, part in given.splits.items():
        other = dealt.splits[name]
        pairs = set(zip(users[other.users], items[other.items], strict=True))
        assert pairs == set(zip(part.users, part.items, strict=True))
    for name in ("titles", "images"):
        moved = [getattr(given.records, name)[n] for n in items]
        assert getattr(dealt.records, name) == moved
    for name, matrix in given.features.items():
        moved = dealt.features[name]
        np.testing.assert_array_equal(moved.present, matrix.present[items])
        np.testing.assert_array_equal(moved.values, matrix.values[items])
    assert store.describe(tmp_path / "dealt")["source"]["order"] == "dealt"


@pytest.mark.parametrize(
    ("source", "order", "message"),
    [("mmrec", "deelt", "'dealt'"), ("bazaar", "dealt", "cannot be dealt")],
)
def test_orders_that_cannot_be(source, order, message, shop, tmp_path):
    given = shop if source == "mmrec" else None
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare(source, given, tmp_path / "data", order=order)
    assert not (tmp_path / "data").exists()
