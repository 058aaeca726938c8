"""One's own tables: CSV, Parquet, and what is told of the items beside."""

import csv
import gzip
import json

import numpy as np
import pytest

from neggen_jax.catalog import SPLITS
from neggen_jax.data import store
from neggen_jax.data.prepare import prepare
from neggen_jax.data.sources import delimited
from neggen_jax.data.sources.own_files import read_files
from neggen_jax.errors import InputError

NAMES = ("user_id", "item_id", "rating", "timestamp", "split")


def table(users=12, items=9, each=6, seed=0):
    """Rows of words and numbers; no pair twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for at, item in enumerate(rng.permutation(items)[:each]):
            split = ("train", "valid", "test")[max(0, at - each + 3)]
            stars, time = int(rng.integers(1, 6)), int(rng.integers(1000))
            rows.append((f"u-{user}", f"ä{item}", stars, time, split))
    rng.shuffle(rows := np.array(rows, object))
    return [tuple(row) for row in rows]


def write(path, rows, names=NAMES, **options):
    """Writes CSV or Parquet by the path's name."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = zip(*rows, strict=True)
        made = dict(zip(names, map(list, columns), strict=True))
        parquet.write_table(pa.table(made), path, **options)
        return path
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n", **options).writerows(
            [names, *rows]
        )
    return path


def read(input, kind=None, **options):
    kind = kind or ("parquet" if str(input).endswith("parquet") else "csv")
    return read_files(kind, input, **options).validate()


def refused(message, input, kind=None, **options):
    """By the whole command, which leaves nothing behind."""
    kind = kind or ("parquet" if str(input).endswith("parquet") else "csv")
    output = input.parent / "data"
    before = sorted(input.parent.iterdir())
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare(kind, input, output, **options)
    assert sorted(input.parent.iterdir()) == before


def rows_of(catalog):
    """(user, item, time, split), sorted."""
    rows = []
    for split in SPLITS:
        part = catalog.splits[split]
        times = part.timestamps
        times = [0] * len(part) if times is None else times.tolist()
        rows += [
            (catalog.user_ids[u], catalog.records.ids[i], t, split)
            for u, i, t in zip(
                part.users.tolist(), part.items.tolist(), times, strict=True
            )
        ]
    return sorted(rows)


def expected(rows):
    return sorted((u, i, t, split) for u, i, _, t, split in rows)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.csv", {}),
        ("x.csv", {"delimiter": "\t"}),
        ("x.csv", {"delimiter": ";", "quoting": csv.QUOTE_ALL}),
        ("x.csv.gz", {}),
        ("x.parquet", {}),
        ("x.parquet", {"row_group_size": 7}),
    ],
)
def test_all_columns(tmp_path, name, options):
    rows = table()
    catalog = read(write(tmp_path / name, rows, **options))
    assert catalog.name == "x"
    assert rows_of(catalog) == expected(rows)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_columns_by_name_and_a_split_of_ours(tmp_path, name):
    rows = table()
    names = ("who", "what", "stars", "moment", "how")
    path = write(tmp_path / name, rows, names)
    options = {"user_column": "who", "item_column": "what"}
    with pytest.raises(InputError, match=r"(?s)that of the user.*who, what"):
        read(path)
    with pytest.raises(InputError, match=r"(?s)no column 'hwo'.*mean 'who'"):
        read(path, user_column="hwo", item_column="what")
    catalog = read(path, **options)
    assert catalog.train.timestamps is None
    # Of six each: four, one and one.
    assert [len(catalog.splits[s]) for s in SPLITS] == [48, 12, 12]
    pairs = {row[:2] for row in rows_of(catalog)}
    assert pairs == {row[:2] for row in rows}
    options |= {"time_column": "moment", "split_column": "how"}
    assert rows_of(read(path, **options)) == expected(rows)
    last = read(path, split="leave_last_out", **options)
    assert rows_of(last) != expected(rows)
    liked = read(path, min_rating=3, **options, cold_users="drop")
    want = [row for row in rows if row[2] >= 3]
    warm = {row[0] for row in want if row[4] == "train"}
    assert rows_of(liked) == expected([r for r in want if r[0] in warm])


def test_prepared_with_its_items(tmp_path):
    write(tmp_path / "log.csv", table())
    rows = [tuple(item.values()) for item in ITEMS]
    write(tmp_path / "items.csv", rows, tuple(ITEMS[0]))
    prepare("csv", tmp_path, tmp_path / "data", split="random", seed=3)
    catalog = store.load(tmp_path / "data", records=True)
    assert catalog.features["text"].present.sum() == 5
    source = store.describe(tmp_path / "data")["source"]
    assert source == {
        "source": "csv",
        "input": str(tmp_path),
        "split": "random",
        "seed": 3,
    }


def test_the_same_split_from_either_kind(tmp_path):
    rows = table()
    one = read(write(tmp_path / "x.csv", rows), split="random")
    other = read(write(tmp_path / "x.parquet", rows[::-1]), split="random")
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_parts_of_one_table(tmp_path, kind):
    rows = table()
    (tmp_path / "in").mkdir()
    for part in range(3):
        path = tmp_path / "in" / f"part-{part}.{kind}"
        write(path, rows[part::3])
    with pytest.raises(InputError, match=r"(?s)not clear.*part-1"):
        read(tmp_path / "in", kind)
    catalog = read(tmp_path / "in", kind, file="part-*")
    assert rows_of(catalog) == expected(rows)


def test_repeated_pairs(tmp_path):
    rows = table()
    again = [(u, i, r, t + 5, s) for u, i, r, t, s in rows[:9]]
    path = write(tmp_path / "x.csv", again + rows)
    # A split of the source's is not to be mended by ours.
    with pytest.raises(InputError, match="twice"):
        read(path)
    catalog = read(path, duplicates="first")
    assert rows_of(catalog) == expected(rows)
    ours = read(path, split="random")
    assert [r[:3] for r in rows_of(ours)] == [r[:3] for r in expected(rows)]


def test_dates_are_times(tmp_path):
    rows = [
        (u, i, r, f"2024-01-{1 + t % 28:02d} 10:00:00", s)
        for u, i, r, t, s in table()
    ]
    catalog = read(write(tmp_path / "x.csv", rows))
    times = np.concatenate([p.timestamps for p in catalog.splits.values()])
    assert (np.diff(np.unique(times)) % 86_400_000_000 == 0).all()
    import datetime

    stamps = [
        (*row[:3], datetime.datetime.fromisoformat(row[3]), row[4])
        for row in rows
    ]
    other = read(write(tmp_path / "y.parquet", stamps))
    assert [r[2] for r in rows_of(catalog)] == [r[2] for r in rows_of(other)]


ITEMS = [
    {"item_id": f"ä{n}", "title": f"title {n}", "description": f"text {n}",
     "image": "", "colour": "red", "size": n}
    for n in (8, 3, 1, 2, 5, 99)
]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_items_by_identifier(tmp_path, kind):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "log.csv", table())
    path = tmp_path / "in" / f"items.{kind}"
    if kind == "jsonl":
        lines = []
        for item in ITEMS:
            told = {
                **item,
                "attributes": {k: item[k] for k in ("colour", "size")},
            }
            lines.append(json.dumps(told) + "\n")
        path.write_text("".join(lines))
    else:
        rows = [tuple(item.values()) for item in ITEMS]
        write(path, rows, tuple(ITEMS[0]))
    catalog = read(tmp_path / "in", "csv")
    records = catalog.records
    known = {item["item_id"]: item for item in ITEMS}
    assert len(records) == 9
    for place, name in enumerate(records.ids):
        item = known.get(name)
        if item is None:
            assert not records.titles[place]
            assert records.attributes[place] == {}
            continue
        assert records.titles[place] == item["title"]
        assert records.texts[place] == item["description"]
        told = {"colour": "red", "size": str(item["size"])}
        assert records.attributes[place] == told
    # Under another name it is to be named.
    path.rename(path.with_name(f"goods.{kind}"))
    options = {"file": "log.csv"}
    assert not any(read(tmp_path / "in", "csv", **options).records.titles)
    options["items_file"] = f"goods.{kind}"
    assert any(read(tmp_path / "in", "csv", **options).records.titles)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("Product Name", "item_description", "Picture"), {}),
        (
            ("a", "b", "c"),
            {"title_column": "a", "text_column": "b", "image_column": "c"},
        ),
    ],
)
def test_content_by_name(tmp_path, capsys, kind, names, options):
    write(tmp_path / "log.csv", table())
    rows = [(f"ä{n}", f"t{n}", "long", f"{n}.jpg", "red") for n in range(1, 6)]
    path = tmp_path / f"items.{kind}"
    write(path, rows, ("item_id", *names, "colour"))
    records = read_files("csv", tmp_path / "log.csv", **options).records
    place = records.ids.index("ä3")
    assert records.titles[place] == "t3"
    assert records.texts[place] == "long"
    assert records.images[place] == "3.jpg"
    assert records.attributes[place] == {"colour": "red"}
    said = capsys.readouterr().err
    title, text, image = names
    assert f"title: {title}; text: {text}; image: {image}" in said
    assert "attributes: colour" in said
    assert "warning" not in said


def test_pictures_that_are_taken_for_an_attribute_are_told(tmp_path, capsys):
    write(tmp_path / "log.csv", table())
    rows = [(f"ä{n}", f"t{n}", f"shots/{n}.JPG", "red") for n in range(1, 6)]
    names = ("item_id", "title", "shot", "colour")
    write(tmp_path / "items.csv", rows, names)
    read_files("csv", tmp_path / "log.csv")
    said = capsys.readouterr().err
    assert "warning: items.csv: 'shot' is taken as an attribute" in said
    assert "'colour' is" not in said
    refused(
        "no column 'shoot'.*did you mean 'shot'",
        tmp_path / "log.csv",
        image_column="shoot",
    )


BAD_ITEMS = {
    "twice": ("item_id,title\nä1,x\nä1,y\n", "item twice.*line 3"),
    "no identifiers": ("title\nx\n", "column looks like that of the items'"),
    "empty": ("", "column looks like"),
    "others": ("id,title\nq,x\n", "tells of none.*'q'"),
    "short line": ("id,title\nä1\n", "wrong number of fields.*line 2"),
    "nameless": ("id,title\n,x\n", "no identifier.*line 2"),
    "latin-1": ("id,title\nä1,\xe9\n".encode("latin1"), "not UTF-8.*line 2"),
}


@pytest.mark.parametrize("kind", BAD_ITEMS)
def test_bad_items(tmp_path, kind):
    content, message = BAD_ITEMS[kind]
    write(tmp_path / "log.csv", table())
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "items.csv").write_bytes(data)
    refused(message, tmp_path / "log.csv")


def text_of(rows, names=NAMES):
    lines = [",".join(map(str, row)) for row in [names, *rows]]
    return ("\n".join(lines) + "\n").encode()


def changed(place, value):
    rows = [list(row) for row in table()]
    rows[4][place] = value
    return text_of(rows)


BAD_TABLES = {
    "empty": (b"", "that of the user"),
    "only a header": (text_of([]), "has no rows"),
    "no user": (changed(0, ""), "missing in the column 'user_id'.*line 6"),
    "a split of another name": (changed(4, "later"), "label.*line 6.*'later'"),
    "a word for a time": (changed(3, "noon"), "not a number.*line 6.*'noon'"),
    "a field too many": (changed(4, "train,1"), "number of fields.*line 6"),
    "latin-1": (
        text_of(table()).decode().encode("latin1"),
        "not UTF-8.*line 2",
    ),
    "UTF-16": (text_of(table()).decode().encode("utf-16"), "not UTF-8.*line 1"),
    "cut gzip": (gzip.compress(text_of(table()))[:-20], "read to its end"),
    "no time": (changed(3, ""), "timestamp is missing.*line 6"),
    "endless line": (b"user,item\n" + b"x" * 3_000_000, "too long.*line 2"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_tables(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("neggen_jax.data.sources.lines.LIMIT", 100_000)
    content, message = BAD_TABLES[kind]
    (tmp_path / "x.csv").write_bytes(content)
    refused(message, tmp_path / "x.csv")


def test_a_rating_that_is_none(tmp_path):
    (tmp_path / "x.csv").write_bytes(changed(2, "good"))
    with pytest.raises(InputError, match=r"(?s)rating is not a number.*line 6"):
        read(tmp_path / "x.csv", min_rating=3)
    # Nobody asked for it otherwise.
    assert read(tmp_path / "x.csv").num_users == 12


def test_bad_parquet(tmp_path):
    path = tmp_path / "x.parquet"

    path.write_bytes(b"user,item\n1,2\n")
    refused("not a Parquet file", path)
    rows = table()
    write(path, rows)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("not a Parquet file", path)
    path.write_bytes(whole[:30] + b"\xff" * 200 + whole[230:])
    refused("damaged|not a Parquet", path)
    write(path, [(0.5, *row[1:]) for row in rows])
    refused("user column has values that are no names.*double", path)
    write(path, [(None, *row[1:]) if n == 3 else row
                 for n, row in enumerate(rows)])  # fmt: skip
    refused("user is missing.*row 3 of", path)
    write(path, [(*row[:3], "noon", row[4]) for row in rows])
    refused("timestamp is not a number.*string", path)
    write(path, [(*row[:4], "later") for row in rows])
    refused("Unknown split label.*'later'", path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "y.csv"}, "no such interaction file.*'x.csv'"),
        ({"items_file": "none"}, "no such items' file"),
        ({"category": "x"}, "'csv' has no option 'category'"),
        ({"split": "temporl"}, "'temporl'.*'temporal'"),
        ({"min_rating": 3}, "column looks like that of the rating"),
        ({"split": "temporal"}, "needs timestamps"),
        ({"split": "given"}, "no split of its own"),
    ],
)
def test_bad_options(tmp_path, options, message):
    rows = [row[:2] for row in table()]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "x.csv", rows, NAMES[:2])
    refused(message, tmp_path / "in", **options)


def test_names_that_people_use():
    from neggen_jax.data.sources.columns import choose

    for names in (
        ("userID", "itemID", "rating", "timestamp"),
        ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
        ("reviewerID", "asin", "overall", "unixReviewTime"),
        ("user_id", "parent_asin", "rating", "timestamp"),
        ("userId", "movieId", "rating", "timestamp"),
        ("customer_id", "article_id", "score", "t_dat"),
    ):
        columns = choose(names, "here", given={})
        assert columns[:4] == names
        assert not columns.split
    assert delimited.separator("a\tb\tc,d") == "\t"


def test_what_is_left_out_is_told(tmp_path, capsys):
    rows = [("a", "x", "2"), ("a", "x", "1"), ("b", "y", "3"), ("a", "y", "4")]
    names = ("customer", "product", "bought on")
    path = write(tmp_path / "shop.csv", rows, names)
    catalog = read_files("csv", path, split="random")
    assert sum(map(len, catalog.splits.values())) == 3
    said = capsys.readouterr().err
    assert "1 of 4 interactions repeat one of the same user and item" in said
    assert "looks like that of the time (bought on); --time_column" in said
    read_files("csv", path, split="random", time_column="bought on")
    assert "of the time" not in capsys.readouterr().err
