"""Reading interaction files: what comes out, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neggen_jax.catalog import SPLITS
from neggen_jax.data.sources.mmrec import read_mmrec
from neggen_jax.errors import InputError

HEADER = ("userID", "itemID", "rating", "timestamp", "x_label")
# Three users and five items; row, label and time tell each other apart.
ROWS = [
    ("1", "0", "1.0", "10", "0"),
    ("0", "1", "1.0", "11", "1"),
    ("0", "0", "5.0", "12", "0"),
    ("2", "3", "1.0", "13", "0"),
    ("1", "2", "1.0", "14", "2"),
    ("2", "1", "1.0", "15", "1"),
    ("0", "4", "1.0", "16", "2"),
    ("1", "4", "1.0", "17", "0"),
]


def lines(rows, header=HEADER) -> bytes:
    return "".join("\t".join(row) + "\n" for row in [header, *rows]).encode()


def item(number, **fields):
    return {"itemID": number, "title": f"title {number}", **fields}


def write(root, name, content):
    if isinstance(content, bytes):
        (root / name).write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(root / name, content)
    else:
        text = "".join(json.dumps(line) + "\n" for line in content)
        (root / name).write_text(text, "utf-8")


@pytest.fixture
def shop(tmp_path):
    """Writes files into a directory and gives it."""
    root = tmp_path / "shop"
    root.mkdir()

    def make(rows=ROWS, header=HEADER, **files):
        write(root, "shop.inter", lines(rows, header))
        for name, content in files.items():
            write(root, name.replace("__", "."), content)
        return root

    return make


def rows_of(catalog):
    """All interactions as (user, item, time, split) in the file's order."""
    rows = []
    for split in SPLITS:
        part = catalog.splits[split]
        times = [0] * len(part) if part.timestamps is None else part.timestamps
        columns = (
            part.users.tolist(),
            part.items.tolist(),
            list(map(int, times)),
        )
        rows += [(*row, split) for row in zip(*columns, strict=True)]
    return sorted(rows, key=lambda row: row[2])


EXPECTED = [
    (int(user), int(item), int(time), SPLITS[int(label)])
    for user, item, _, time, label in ROWS
]


def test_interactions(shop):
    catalog = read_mmrec(shop())
    assert catalog.name == "shop"
    assert (catalog.num_users, catalog.num_items) == (3, 5)
    assert rows_of(catalog) == EXPECTED
    assert catalog.train.users.dtype == np.int32
    assert catalog.train.items.dtype == np.int32
    assert catalog.train.timestamps.dtype == np.int64
    # By user and item, whatever the file's order.
    assert catalog.train.users.tolist() == [0, 1, 1, 2]
    assert catalog.records is None
    assert catalog.user_ids is None
    assert not catalog.features


def test_columns_are_found_by_name_and_time_is_optional(shop):
    order = [4, 1, 0]
    rows = [[row[i] for i in order] for row in ROWS]
    catalog = read_mmrec(shop(rows, [HEADER[i] for i in order]), name="x")
    assert catalog.name == "x"
    assert catalog.train.timestamps is None
    assert catalog.train.users.tolist() == [0, 1, 1, 2]
    assert catalog.train.items.tolist() == [0, 0, 4, 3]


@pytest.mark.parametrize("change", ["crlf", "bom", "quoted", "blank", "no end"])
def test_other_ways_to_write_the_same(shop, change):
    root = shop()
    text = lines(ROWS)
    text = {
        "crlf": text.replace(b"\n", b"\r\n"),
        "bom": b"\xef\xbb\xbf" + text,
        "quoted": text.replace(b"userID", b'"userID"').replace(
            b"1.0", b'"1.0"'
        ),
        "blank": text.replace(b"\n2", b"\n\n2") + b"\n",
        "no end": text[:-1],
    }[change]
    write(root, "shop.inter", text)
    assert rows_of(read_mmrec(root)) == EXPECTED


def test_times_with_fractions_and_times_in_nanoseconds(shop):
    rows = [(*row[:3], row[3] + ".75", row[4]) for row in ROWS]
    assert rows_of(read_mmrec(shop(rows))) == EXPECTED
    start = 1_600_000_000_123_456_700
    rows = [(*row[:3], str(start + int(row[3])), row[4]) for row in ROWS]
    got = rows_of(read_mmrec(shop(rows)))
    assert [row[2] - start for row in got] == [row[2] for row in EXPECTED]


def test_identifiers_that_are_words_are_numbered_in_sorted_order(shop):
    users, items = ["ann", "Zoë", "bob"], ["x", "007", "7", "ä", "a b"]
    rows = [(users[int(u)], items[int(i)], *rest) for u, i, *rest in ROWS]
    catalog = read_mmrec(shop(rows))
    assert catalog.user_ids == ["Zoë", "ann", "bob"]
    assert catalog.records.ids == ["007", "7", "a b", "x", "ä"]
    got = [
        (catalog.user_ids[u], catalog.records.ids[i], *rest)
        for u, i, *rest in rows_of(catalog)
    ]
    assert got == [(users[u], items[i], *rest) for u, i, *rest in EXPECTED]


def test_numbers_with_gaps_are_numbered_by_size(shop):
    rows = [(str(int(u) * 9 + 1), str(int(i) * 50), *rest)
            for u, i, *rest in ROWS]  # fmt: skip
    catalog = read_mmrec(shop(rows))
    assert catalog.user_ids == ["1", "10", "19"]
    assert catalog.records.ids == ["0", "50", "100", "150", "200"]
    assert catalog.records.titles == [""] * 5
    assert rows_of(catalog) == EXPECTED


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_identifiers_come_back(tmp_path, data):
    word = st.text(
        st.characters(exclude_categories=["C", "Z"], exclude_characters='"'),
        min_size=1,
        max_size=4,
    )
    names = st.one_of(word, st.integers(0, 30).map(str))
    users = data.draw(st.lists(names, min_size=4, max_size=9, unique=True))
    items = data.draw(st.lists(names, min_size=5, max_size=9, unique=True))
    rows = []
    for number, user in enumerate(users):
        chosen = data.draw(st.permutations(items))
        labels = ["0", "0", "1", "2"][: 4 if number < 2 else 2]
        rows += [
            (user, name, "1", str(len(rows) + at), label)
            for at, (name, label) in enumerate(
                zip(chosen, labels, strict=False)
            )
        ]
    write(tmp_path, "x.inter", lines(rows))
    catalog = read_mmrec(tmp_path)
    user_ids = catalog.user_ids or [str(u) for u in range(len(users))]
    item_ids = (
        catalog.records.ids
        if catalog.records
        else [str(i) for i in range(catalog.num_items)]
    )
    assert len(set(user_ids)) == catalog.num_users == len(users)
    got = [(user_ids[u], item_ids[i], t) for u, i, t, _ in rows_of(catalog)]
    assert got == [(user, name, int(time)) for user, name, _, time, _ in rows]


def test_items_and_matrices(shop):
    records = [item(n, asin=f"B{n}") for n in range(6)]
    catalog = read_mmrec(
        shop(items__jsonl=records, text_feat__npy=np.eye(6)[:, :5])
    )
    assert rows_of(catalog) == EXPECTED
    assert catalog.num_items == 6  # one that nobody has taken yet
    assert catalog.records.ids == [record["asin"] for record in records]
    assert catalog.features["text"].present.tolist() == [True] * 5 + [False]
    (shop() / "items.jsonl").unlink()
    without = read_mmrec(shop(text_feat__npy=np.eye(6)))
    assert without.records is None
    assert (without.num_items, without.features["text"].dim) == (6, 6)


def test_which_file(shop):
    root = shop()
    other = [row for row in ROWS if row[0] != "2"]
    write(root, "other.inter", lines(other))
    assert read_mmrec(root).num_items == 5  # that named as the directory
    catalog = read_mmrec(root, file="other.inter")
    assert (catalog.name, catalog.num_items) == ("other", 4)
    (root / "shop.inter").unlink()
    assert read_mmrec(root).name == "other"  # the only one


def test_first_of_duplicates_is_kept_in_the_order_of_the_file(shop):
    rows = [*ROWS, ("0", "0", "1.0", "18", "2"), ("1", "2", "1.0", "19", "0")]
    with pytest.raises(InputError, match=r"(?s)twice.*duplicates=first"):
        read_mmrec(shop(rows))
    assert rows_of(read_mmrec(shop(rows), duplicates="first")) == EXPECTED


def test_cold_users_are_dropped_and_the_others_renumbered(shop):
    rows = [
        ("0", "3", "1.0", "1", "1"),
        *((str(int(u) + 1), *rest) for u, *rest in ROWS),
        ("4", "1", "1.0", "30", "2"),
    ]
    with pytest.raises(InputError, match=r"(?s)no train.*cold_users=drop"):
        read_mmrec(shop(rows))
    catalog = read_mmrec(shop(rows), cold_users="drop")
    assert rows_of(catalog) == EXPECTED
    assert catalog.user_ids == ["1", "2", "3"]


def test_a_user_who_is_cold_only_without_duplicates(shop):
    # The only train row of user 3 repeats a pair of valid: both rules apply.
    rows = [*ROWS, ("3", "1", "1", "20", "1"), ("3", "1", "1", "21", "0")]
    catalog = read_mmrec(shop(rows), duplicates="first", cold_users="drop")
    assert rows_of(catalog) == EXPECTED


def changed(row, field, value):
    """The rows, of which the field of one has another value."""
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(field)] = value
    return rows


ITEMS = [item(number) for number in range(5)]
BAD_TABLES = {
    "empty file": (b"", "no column 'userID'.*an empty line"),
    "only a header": (lines([]), "has no rows"),
    "missing column": (
        lines(ROWS, ("user", *HEADER[1:])),
        "no column 'userID'.*line 1.*user, itemID",
    ),
    "commas": (
        lines(ROWS).replace(b"\t", b","),
        "no column.*separated by tabs.*userID,itemID",
    ),
    "unknown split label": (
        lines(changed(4, "x_label", "3")),
        "Unknown split label.*line 6.*'3'",
    ),
    "line cut in its label": (
        lines(ROWS)[:-2],
        "value is missing in the column 'x_label'.*line 9",
    ),
    "line cut short": (
        lines(ROWS)[:-6],
        "wrong number of fields.*line 9.*5 fields.*3 fields",
    ),
    "one field too many": (
        lines([*ROWS[:3], (*ROWS[3], "1"), *ROWS[4:]]),
        "wrong number of fields.*line 5.*6 fields",
    ),
    "not UTF-8": (
        lines(ROWS).replace(b"\n2\t3", b"\n2\xe9\t3"),
        r"not UTF-8.*line 5, byte 79 .*0xe9",
    ),
    "UTF-16": (
        lines(ROWS).decode().encode("utf-16"),
        "not UTF-8.*line 1, byte 0 .*0xff",
    ),
    "no user": (
        lines(changed(2, "userID", "")),
        "missing in the column 'userID'.*line 4",
    ),
    "time is a word": (
        lines(changed(2, "timestamp", "noon")),
        "timestamp is not a number.*line 4.*'noon'",
    ),
    "no time": (
        lines(changed(2, "timestamp", "")),
        "timestamp is missing.*line 4",
    ),
    "duplicate pair": (
        lines([*ROWS, ROWS[0]]),
        "twice.*user 1, item 0, splits 'train' and 'train'",
    ),
    "empty split": (
        lines([row for row in ROWS if row[4] != "1"]),
        "'valid' is empty",
    ),
    "user without train": (
        lines([*ROWS, ("3", "0", "1", "1", "2")]),
        r"no train interaction.*\[3\].*cold_users=drop",
    ),
    "user with all items": (
        lines([*ROWS, *(("3", str(i), "1", "1", "0") for i in range(5))]),
        "every item.*user 3",
    ),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_interactions(shop, kind):
    content, message = BAD_TABLES[kind]
    root = shop()
    write(root, "shop.inter", content)
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_mmrec(root)


def test_lines_are_counted_as_an_editor_does(shop):
    root = shop()
    text = lines(changed(4, "x_label", "3")).replace(b"\n0", b"\n\n\n0")
    write(root, "shop.inter", text)
    number = 1 + text.split(b"\n").index(b"1\t2\t1.0\t14\t3")
    with pytest.raises(InputError, match=f"line {number}\n"):
        read_mmrec(root)


BAD_FILES = {
    "item out of range": (
        {"items.jsonl": ITEMS[:4]},
        r"Unknown item id.*line 8.*\[0, 4\).*'4'",
    ),
    "item out of range of a matrix": (
        {"text_feat.npy": np.ones((4, 2))},
        r"Unknown item id.*line 8.*\[0, 4\).*'4'",
    ),
    "negative item": (
        {"items.jsonl": ITEMS, "shop.inter": lines(changed(3, "itemID", "-1"))},
        "Unknown item id.*line 5.*'-1'",
    ),
    "item not a number": (
        {
            "items.jsonl": ITEMS,
            "shop.inter": lines(changed(3, "itemID", "3.0")),
        },
        "not a whole number.*line 5.*'3.0'",
    ),
    "item too large a number": (
        {
            "items.jsonl": ITEMS,
            "shop.inter": lines(changed(3, "itemID", "9" * 30)),
        },
        "not a whole number.*line 5.*'9999",
    ),
    "two items with one identifier": (
        {"items.jsonl": [item(n, asin=f"B{n % 4}") for n in range(5)]},
        "same identifier.*'B0'",
    ),
    "matrix too short for the items": (
        {"items.jsonl": ITEMS, "text_feat.npy": np.ones((4, 2))},
        r"one row of features per item.*\(5, f\).*\(4, 2\)",
    ),
    "NaN": (
        {"text_feat.npy": np.array([[1.0, 2]] * 4 + [[np.nan, 0]])},
        r"1 feature rows hold NaN.*'text', items \[4\]",
    ),
    "too large for single precision": (
        {"text_feat.npy": np.full((5, 1), 1e300)},
        "5 feature rows hold NaN or infinity",
    ),
    "matrix of nothing but zeros": (
        {"text_feat.npy": np.zeros((5, 2))},
        "No item has this modality.*'text'",
    ),
    "several interaction files": (
        {"a.inter": lines(ROWS), "b.inter": lines(ROWS), "shop.inter": None},
        "not clear which.*a.inter, b.inter.*--file",
    ),
    "no interaction file": ({"shop.inter": None}, "no interaction file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(shop, kind):
    files, message = BAD_FILES[kind]
    root = shop()
    for name, content in files.items():
        if content is None:
            (root / name).unlink()
        else:
            write(root, name, content)
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_mmrec(root)


def test_bad_arguments(shop, tmp_path):
    root = shop()
    with pytest.raises(InputError, match=r"(?s)'lost'.*cold_users.*drop"):
        read_mmrec(root, cold_users="lost")
    with pytest.raises(InputError, match=r"(?s)'frist'.*did you mean 'first'"):
        read_mmrec(root, duplicates="frist")
    with pytest.raises(InputError, match=r"(?s)shp\.inter.*'shop\.inter'"):
        read_mmrec(root, file="shp.inter")
    with pytest.raises(InputError, match="no such input directory"):
        read_mmrec(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "sizes", "counts"),
    [
        ("hm_week", (8925, 3186), [46270, 9267, 9267]),
        ("amazon_office", (4905, 2420), [40330, 6464, 6464]),
    ],
)
def test_real_data(data_dir, name, sizes, counts):
    catalog = read_mmrec(data_dir / name)
    assert (catalog.num_users, catalog.num_items) == sizes
    assert [len(catalog.splits[split]) for split in SPLITS] == counts
    assert len(catalog.records) == sizes[1]
    assert all(catalog.records.titles)
