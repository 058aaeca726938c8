"""Dataset directories: what is saved is what is loaded, or a clear error."""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from neggen_jax.catalog import (
    SPLITS,
    Catalog,
    Features,
    Interactions,
    ItemRecords,
)
from neggen_jax.data import store, tables
from neggen_jax.errors import InputError

USERS, ITEMS = 40, 30


def make_catalog(seed=0, timed=SPLITS, per_user=(6, 2, 1)) -> Catalog:
    rng = np.random.default_rng(seed)
    drawn = np.argsort(rng.random((USERS, ITEMS)), axis=1).astype(np.int32)
    splits, start = {}, 0
    for split, count in zip(SPLITS, per_user, strict=True):
        items = drawn[:, start : start + count].ravel()
        users = np.repeat(np.arange(USERS, dtype=np.int32), count)
        times = rng.integers(-(2**40), 2**40, len(items))
        times = times if split in timed else None
        splits[split] = Interactions(users, items, times)
        start += count
    present = rng.random(ITEMS) < 0.8
    values = rng.normal(size=(ITEMS, 5)) * present[:, None]
    items = ItemRecords(
        ids=[f"A{i}" for i in range(ITEMS)],
        titles=["", *(f"Títle {i}" for i in range(1, ITEMS))],
        texts=[f"{i} " * 100 for i in range(ITEMS)],
        attributes=[
            {f"k{j}": f"v{i}" for j in range(i % 4)} for i in range(ITEMS)
        ],
        images=[f"{i}.jpg" if i % 3 else "" for i in range(ITEMS)],
        image_root="/somewhere/pictures",
    )
    return Catalog(
        name="Small-Shop 2",
        num_users=USERS,
        num_items=ITEMS,
        splits=splits,
        features={
            "text": Features(
                values.astype(np.float32), present, {"encoder": "tfidf"}
            )
        },
        records=items,
        user_ids=[f"user/{u}" for u in range(USERS)],
    ).validate()


def assert_same(got: Catalog, want: Catalog) -> None:
    for split in SPLITS:
        for name in ("users", "items", "timestamps"):
            left = getattr(got.splits[split], name)
            right = getattr(want.splits[split], name)
            assert (left is None) == (right is None)
            if left is not None:
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
    assert got.features.keys() == want.features.keys()
    for modality, matrix in want.features.items():
        other = got.features[modality]
        assert other.values.dtype == np.float32
        assert other.present.dtype == np.bool_
        np.testing.assert_array_equal(other.values, matrix.values)
        np.testing.assert_array_equal(other.present, matrix.present)
        assert matrix.manifest.items() <= other.manifest.items()
    assert got.fingerprint == want.fingerprint
    assert (got.name, got.num_users) == (want.name, want.num_users)
    for left, right in (
        (got.index.by_user, want.index.by_user),
        (got.index.by_item, want.index.by_item),
        (got.by_user("test"), want.by_user("test")),
    ):
        np.testing.assert_array_equal(left.offsets, right.offsets)
        np.testing.assert_array_equal(left.ends, right.ends)
        assert (left.numbers is None) == (right.numbers is None)
        if left.numbers is not None:
            np.testing.assert_array_equal(left.numbers, right.numbers)


@pytest.fixture
def small_blocks(monkeypatch):
    """Many records and files instead of one."""
    monkeypatch.setattr(tables, "BLOCK", 7)
    monkeypatch.setattr(tables, "_BLOCKS_PER_FILE", 3)
    monkeypatch.setattr(tables, "_ITEMS_PER_FILE", 12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory to copy, so that TFDS writes it only once."""
    path = tmp_path_factory.mktemp("store") / "data"
    store.save(make_catalog(), path, source={"kind": "test"})
    return path


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "data")


def contents(path) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("timed", [SPLITS, (), ("train", "test")])
def test_round_trip(tmp_path, small_blocks, timed):
    catalog = make_catalog(timed=timed)
    store.save(catalog, tmp_path / "a/b", source={"file": "x", "n": [1, 2]})
    assert len(list((tmp_path / "a/b").glob("*-train.tfrecord-*"))) == 12
    loaded = store.load(tmp_path / "a/b", records=True)
    assert_same(loaded, catalog)
    assert vars(loaded.records) == vars(catalog.records)
    assert loaded.user_ids == catalog.user_ids
    bare = store.load(str(tmp_path / "a/b"))
    assert_same(bare, catalog)
    assert bare.records is None
    assert bare.user_ids is None
    known = store.describe(tmp_path / "a/b")
    assert known["source"] == {"file": "x", "n": [1, 2]}
    assert known["counts"] == {"train": 240, "valid": 80, "test": 40}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_catalogue_without_anything_optional(tmp_path):
    catalog = dataclasses.replace(
        make_catalog(), features={}, records=None, user_ids=None
    )
    store.save(catalog, tmp_path / "data", source={})
    loaded = store.load(tmp_path / "data", records=True)
    assert_same(loaded, catalog)
    assert loaded.records is None
    assert loaded.user_ids is None


def test_tfds_opens_the_directory(tmp_path, small_blocks):
    import tensorflow_datasets as tfds

    catalog = make_catalog(timed=("train",))
    store.save(catalog, tmp_path / "data", source={})
    builder = tfds.builder_from_directory(tmp_path / "data")
    assert builder.info.splits["train"].num_examples == -(-240 // 7)
    for split in SPLITS:
        blocks = list(tfds.as_numpy(builder.as_dataset(split=split)))
        for name in ("users", "items", "timestamps"):
            column = np.concatenate([block[name] for block in blocks])
            want = getattr(catalog.splits[split], name)
            want = np.empty(0, np.int64) if want is None else want
            assert column.dtype == want.dtype
            np.testing.assert_array_equal(column, want)

    builder = tfds.builder_from_directory(tmp_path / "data/items")
    items = list(tfds.as_numpy(builder.as_dataset(split="items")))
    texts = catalog.records
    assert [item["id"].decode() for item in items] == texts.ids
    assert [item["title"].decode() for item in items] == texts.titles
    assert [item["text"].decode() for item in items] == texts.texts
    assert [item["image"].decode() for item in items] == texts.images
    assert [
        {
            name.decode(): value.decode()
            for name, value in zip(
                item["attributes"]["name"],
                item["attributes"]["value"],
                strict=True,
            )
        }
        for item in items
    ] == texts.attributes

    builder = tfds.builder_from_directory(tmp_path / "data/users")
    users = tfds.as_numpy(builder.as_dataset(split="users"))
    ids = [user.decode() for block in users for user in block["ids"]]
    assert ids == catalog.user_ids


def test_loads_without_tensorflow(directory):
    program = """if True:
        import sys
        for name in ("tensorflow", "tensorflow_datasets", "jax", "pyarrow"):
            sys.modules[name] = None
        from neggen_jax.data import store
        catalog = store.load(sys.argv[1], records=True)
        print(catalog.fingerprint, len(catalog.records))
    """
    command = [sys.executable, "-c", program, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    known = store.describe(directory)
    assert done.stdout.split() == [known["fingerprint"], str(ITEMS)]


def test_images_of_the_directory_move_with_it(tmp_path):
    catalog = make_catalog()
    with store.replacing(tmp_path / "data") as partial:
        (partial / "images").mkdir()
        (partial / "images/1.jpg").write_bytes(b"jpeg")
        root = str(partial / "images")
        items = dataclasses.replace(catalog.records, image_root=root)
        catalog = dataclasses.replace(catalog, records=items)
        store.write(catalog, partial, source={})
    (tmp_path / "data").rename(tmp_path / "moved")
    loaded = store.load(tmp_path / "moved", records=True).records
    assert loaded.image_root == str(tmp_path / "moved/images")
    path = os.path.join(loaded.image_root, loaded.images[1])
    with open(path, "rb") as file:
        assert file.read() == b"jpeg"


def test_loading_takes_no_memory_for_the_columns(tmp_path):
    count = 1_000_000
    column = np.arange(count, dtype=np.int32)
    part = Interactions(column, column % 7, column.astype(np.int64))
    splits = dict.fromkeys(SPLITS, part)
    catalog = Catalog("big", count, 7, splits)
    store.save(catalog, tmp_path / "data", source={})
    del catalog, splits, part, column
    for trust in (False, True):
        tracemalloc.start()
        try:
            store.load(tmp_path / "data", trust=trust)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < count


def test_who_trusts_reads_no_column(directory):
    """And so believes in a catalogue that was changed."""
    want = store.describe(directory)["fingerprint"]
    flip(directory / "pairs/train.items.npy", -1)
    found = store.load(directory, trust=True)
    assert found.fingerprint == want
    with pytest.raises(InputError, match="was changed"):
        store.load(directory)


def test_only_sorted_interactions_are_written(tmp_path):
    catalog = make_catalog()
    train = catalog.train
    backwards = Interactions(train.users[::-1], train.items[::-1])
    splits = {**catalog.splits, "train": backwards}
    with pytest.raises(ValueError, match="not sorted"):
        store.save(
            dataclasses.replace(catalog, splits=splits),
            tmp_path / "data",
            source={},
        )


# Damage ---------------------------------------------------------------------


def edit(directory, **changes):
    path = directory / "catalog.json"
    known = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(known))


def flip(path, at=-100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGES = {
    "no such directory": (shutil.rmtree, "no such dataset directory"),
    "half written": (
        lambda d: (d / "catalog.json").unlink(),
        "not a complete dataset directory",
    ),
    "description not JSON": (
        lambda d: truncate(d / "catalog.json", 40),
        "cannot be read.*catalog.json",
    ),
    "description not an object": (
        lambda d: (d / "catalog.json").write_text("[]"),
        "cannot be read.*list instead of an object",
    ),
    "another format": (lambda d: edit(d, format=1), "format version.*1"),
    "field gone": (lambda d: edit(d, counts=None), "'counts' is missing"),
    "number of users": (
        lambda d: edit(d, num_users=41),
        r"not as long.*offsets\.npy.*42.*41",
    ),
    "counts": (
        lambda d: edit(d, counts={"train": 239, "valid": 80, "test": 40}),
        r"not as long.*pairs/.*\.npy.*239.*240",
    ),
    "fingerprint": (lambda d: edit(d, fingerprint="0"), "was changed"),
    **{
        f"{name} changed": (
            lambda d, name=name: flip(d / f"pairs/{name}.npy", -1),
            rf"was changed.*pairs/{name}\.npy",
        )
        for name in (
            "train.users",
            "valid.items",
            "test.timestamps",
            "train.offsets",
            "by_item.offsets",
            "by_item.users",
            "by_item.numbers",
        )
    },
    "interactions truncated": (
        lambda d: truncate(d / "pairs/train.items.npy", 300),
        r"cannot be read.*pairs/train\.items\.npy",
    ),
    "interactions of another length": (
        lambda d: np.save(d / "pairs/test.users.npy", np.zeros(3, np.int32)),
        r"not as long.*pairs/test\.users\.npy.*40.*3",
    ),
    "numbers gone": (
        lambda d: (d / "pairs/by_item.numbers.npy").unlink(),
        r"cannot be read.*pairs/by_item\.numbers\.npy",
    ),
    "records of interactions changed": (
        lambda d: flip(d / "small_shop_2-train.tfrecord-00000"),
        r"was changed.*train\.tfrecord",
    ),
    "interactions gone": (
        lambda d: (d / "pairs/train.users.npy").unlink(),
        r"cannot be read.*pairs/train\.users\.npy",
    ),
    "features changed": (
        lambda d: flip(d / "features/text.npy"),
        r"was changed.*features/text\.npy",
    ),
    "mask changed": (
        lambda d: flip(d / "features/text.present.npy", -1),
        r"was changed.*features/text\.present\.npy",
    ),
    "features in another order": (
        lambda d: np.save(
            d / "features/text.npy", np.ones((ITEMS, 5), np.float32, order="F")
        ),
        r"was changed.*features/text\.npy",
    ),
    "features of another shape": (
        lambda d: np.save(d / "features/text.npy", np.zeros(3, np.float32)),
        r"was changed.*features/text\.npy",
    ),
    "mask of another length": (
        lambda d: np.save(
            d / "features/text.present.npy", np.ones(3, np.bool_)
        ),
        r"was changed.*features/text\.present\.npy",
    ),
    "features of another type": (
        lambda d: np.save(d / "features/text.npy", np.zeros((ITEMS, 5))),
        r"was changed.*features/text\.npy",
    ),
    "features truncated": (
        lambda d: truncate(d / "features/text.npy", 300),
        r"cannot be read.*features/text\.npy",
    ),
    "features pickled": (
        lambda d: np.save(
            d / "features/text.npy", np.array([{}]), allow_pickle=True
        ),
        r"cannot be read.*features/text\.npy",
    ),
    "features gone": (
        lambda d: (d / "features/text.npy").unlink(),
        r"cannot be read.*features/text\.npy",
    ),
    "manifest gone": (
        lambda d: (d / "features/text.json").unlink(),
        r"cannot be read.*features/text\.json",
    ),
    "item records changed": (
        lambda d: flip(next((d / "items").glob("*-0*"))),
        r"was changed.*items-00000|was changed.*items\.tfrecord",
    ),
    "item records gone": (
        lambda d: shutil.rmtree(d / "items"),
        "cannot be opened.*items",
    ),
    "user identifiers changed": (
        lambda d: flip(next((d / "users").glob("*-0*"))),
        r"was changed.*users\.tfrecord",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_one_clear_error(directory, kind):
    damage, message = DAMAGES[kind]
    store.load(directory, records=True)
    damage(directory)
    before = contents(directory) if directory.exists() else {}
    with pytest.raises(InputError, match=f"(?s){message}"):
        store.load(directory, records=True)
    assert (contents(directory) if directory.exists() else {}) == before


# Writing --------------------------------------------------------------------


def test_an_existing_directory_is_kept_unless_told_otherwise(directory):
    before = contents(directory)
    other = make_catalog(seed=1)
    with pytest.raises(InputError, match="exists already"):
        store.save(other, directory, source={})
    assert contents(directory) == before
    store.save(other, directory, source={}, overwrite=True)
    assert store.load(directory).fingerprint == other.fingerprint
    (directory / "notes").mkdir()
    with pytest.raises(InputError, match=r"(?s)lost.*notes"):
        store.save(other, directory, source={}, overwrite=True)
    assert store.load(directory).fingerprint == other.fingerprint


@contextlib.contextmanager
def files_limited_to(size):
    """As on a full disk: no file can grow past `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_catalog(part: str) -> Catalog:
    """A catalogue of which one part takes most of the room."""
    catalog = make_catalog()
    if part == "features":
        values = np.ones((ITEMS, 20_000), np.float32)
        big = Features(values, np.ones(ITEMS, np.bool_))
        return dataclasses.replace(catalog, features={"text": big})
    if part == "items":
        texts = ["word " * 10_000] * ITEMS
        items = dataclasses.replace(catalog.records, texts=texts)
        return dataclasses.replace(catalog, records=items)
    column = np.zeros(200_000, np.int32)
    splits = {**catalog.splits, "train": Interactions(column, column)}
    return dataclasses.replace(catalog, splits=splits)


PARTS = ("interactions", "items", "features")


@pytest.mark.parametrize("part", PARTS)
def test_a_file_too_large(directory, part):
    before = contents(directory)
    with (
        files_limited_to(2**18),
        pytest.raises(InputError, match="could not be written"),
    ):
        store.save(large_catalog(part), directory, source={}, overwrite=True)
    assert contents(directory) == before
    assert [p.name for p in directory.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("part", PARTS)
def test_a_full_disk(small_disk, saved, part):
    directory = shutil.copytree(saved, small_disk / "data")
    before = contents(directory)
    with pytest.raises(InputError, match="could not be written"):
        store.save(large_catalog(part), directory, source={}, overwrite=True)
    assert contents(directory) == before
    assert [p.name for p in small_disk.iterdir()] == ["data"]
    with pytest.raises(InputError, match=r"No space|requested and"):
        store.save(large_catalog(part), small_disk / "new", source={})
    assert [p.name for p in small_disk.iterdir()] == ["data"]
    with pytest.raises(InputError, match="a mount point"):
        store.save(make_catalog(), small_disk, source={}, overwrite=True)


def test_released_vectors_are_read_again(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "values.npy", values)
    for mode in ("r", "c", None):
        read = np.asarray(np.load(tmp_path / "values.npy", mmap_mode=mode))
        if mode != "r":
            read[0, 0] = 99
        features = Features(read, np.ones(3, bool))
        features.release()
        expected = values if mode == "r" else read.copy()
        np.testing.assert_array_equal(features.values[1:], values[1:])
        np.testing.assert_array_equal(features.values, expected)
        assert features.values[0, 0] == (0 if mode == "r" else 99)
