"""The public Amazon reviews: files as they come, and files gone wrong."""

import gzip
import html
import json

import numpy as np
import pytest
from amazon_files import (
    draw,
    item_id,
    names,
    product,
    review,
    user_id,
    write,
    write_images,
    write_lines,
)

from neggen_jax.catalog import SPLITS
from neggen_jax.data import store
from neggen_jax.data.prepare import prepare
from neggen_jax.data.sources.amazon import literals
from neggen_jax.data.sources.amazon.fetch import MANIFEST
from neggen_jax.data.sources.amazon.source import read_amazon
from neggen_jax.data.sources.core import core
from neggen_jax.errors import InputError

YEARS = ("2014", "2018", "2023")


def rows_of(catalog):
    """All interactions as (user id, item id, time)."""
    rows = []
    for split in SPLITS:
        part = catalog.splits[split]
        rows += [
            (catalog.user_ids[u], catalog.records.ids[i], t)
            for u, i, t in zip(
                *(c.tolist() for c in (part.users, part.items)),
                part.timestamps.tolist(),
                strict=True,
            )
        ]
    return sorted(rows)


def expected(rows, year):
    unit = 1000 if year == "2023" else 1
    rest = 123 if year == "2023" else 0
    return sorted(
        (user_id(u, year), item_id(i), t * unit + rest) for u, i, _, t in rows
    )


@pytest.mark.parametrize("year", YEARS)
def test_all_releases(tmp_path, year):
    rows = write(tmp_path / "in", year, "Baby_Things")
    catalog = prepare(
        "amazon", tmp_path / "in", tmp_path / "data", core=0, text="none"
    )
    catalog = store.load(tmp_path / "data", records=True)
    assert catalog.name == "Baby_Things"
    assert rows_of(catalog) == expected(rows, year)
    records = catalog.records
    assert records.ids == sorted(records.ids)
    for place, name in enumerate(records.ids):
        item = int(name[1:])
        if not item:  # it has no line in the metadata
            assert (records.titles[place], records.attributes[place]) == (
                "",
                {},
            )
            continue
        told = product(year, item)
        assert records.titles[place] == f'Thing & {item} it\'s "fine"'
        attributes = records.attributes[place]
        assert attributes["category"] == f"Kind {item % 4}"
        has_brand = "brand" in told or "store" in told
        assert ("brand" in attributes) == has_brand
        assert attributes.get("color") == ("Blue" if year == "2023" else None)
        parts = [f"A thing numbered {item}."] * ("description" in told)
        parts += ["Two parts"] * (year == "2018")
        parts += ["It is blue"] * ("feature" in told or "features" in told)
        assert records.texts[place] == " ".join(parts)
    source = store.describe(tmp_path / "data")["source"]
    assert source["source"] == "amazon"
    assert source["core"] == 0


def test_the_core_is_one_and_all_users_are_split(tmp_path):
    rows = [r for r in draw(60, 40, 7) if r[0] % 7 or r[1] % 5]
    write(tmp_path, "2014", "Baby", rows, items=40)
    catalog = read_amazon(tmp_path, scratch=tmp_path, core=5).validate()
    users, items, *_ = np.array(rows).T
    inside = core(users, items, 5)
    assert 0 < inside.sum() < len(rows)
    kept = [row for row, keep in zip(rows, inside, strict=True) if keep]
    assert rows_of(catalog) == expected(kept, "2014")
    for split in SPLITS:
        assert len(np.unique(catalog.splits[split].users)) == catalog.num_users


def test_the_first_of_a_pair_by_time_is_kept(tmp_path):
    rows = draw()
    again = [(u, i, s, t + (9 if n % 2 else -9)) for n, (u, i, s, t) in
             enumerate(rows[:20])]  # fmt: skip
    write(tmp_path, "2014", "Baby", rows + again)
    first = {(u, i): (u, i, s, t) for u, i, s, t in rows}
    for row in again:
        pair = row[:2]
        first[pair] = min(first[pair], row, key=lambda r: r[3])
    catalog = read_amazon(tmp_path, scratch=tmp_path, core=0)
    assert rows_of(catalog) == expected(first.values(), "2014")
    with pytest.raises(InputError, match="twice"):
        read_amazon(
            tmp_path, scratch=tmp_path, core=0, duplicates="error"
        ).validate()


def test_only_what_was_liked(tmp_path):
    rows = write(tmp_path, "2014", "Baby")
    catalog = read_amazon(tmp_path, scratch=tmp_path, core=0, min_rating=4)
    assert rows_of(catalog) == expected([r for r in rows if r[2] > 3], "2014")


def test_splits(tmp_path):
    write(tmp_path, "2018", "Baby")
    options = {"scratch": tmp_path, "core": 0}
    last = read_amazon(tmp_path, split="leave_last_out", **options)
    for user in range(last.num_users):
        times = [
            last.splits[s].timestamps[last.splits[s].users == user]
            for s in SPLITS
        ]
        assert [len(t) for t in times] == [6, 1, 1]
        assert times[0].max() < times[1][0] < times[2][0]
    cut = read_amazon(tmp_path, split="temporal", **options).validate()
    ends = [
        (p.timestamps.min(), p.timestamps.max()) for p in cut.splits.values()
    ]
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]
    one, other = (
        read_amazon(tmp_path, split="random", seed=seed, **options)
        for seed in (1, 2)
    )
    assert one.fingerprint != other.fingerprint
    assert rows_of(one) == rows_of(other)


def test_users_without_train_are_left_out_of_a_temporal_split(tmp_path):
    rows = draw()
    end = max(r[3] for r in rows)
    late = [(90, item, 5, end + item) for item in range(1, 7)]
    write(tmp_path, "2014", "Baby", rows + late)
    options = {"scratch": tmp_path, "core": 0, "split": "temporal"}
    catalog = read_amazon(tmp_path, **options).validate()
    assert user_id(90) not in catalog.user_ids
    with pytest.raises(InputError, match="no train interaction"):
        read_amazon(tmp_path, cold_users="error", **options).validate()


def test_image_features(tmp_path):
    root = tmp_path / "in"
    write(root, "2014", "Baby")
    # In another order than the items, with others among them.
    told = [99, 24, 3, 2, 1, 77, *range(5, 20)]
    values = write_images(root, "Baby", told)
    catalog = prepare("amazon", root, tmp_path / "data", core=0)
    matrix = catalog.features["image"]
    catalog = store.load(tmp_path / "data", records=True)
    for place, name in enumerate(catalog.records.ids):
        item = int(name[1:])
        assert matrix.present[place] == (item in told)
        want = values[told.index(item)] if item in told else np.zeros(4096)
        np.testing.assert_array_equal(matrix.values[place], want)
    assert sorted(catalog.features) == ["image", "text"]
    left = [p.name for p in (tmp_path / "data").iterdir()]
    assert ".image_features" not in left


def test_pictures_beside_the_metadata(tmp_path):
    write(tmp_path, "2023", "Baby")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{item_id(3)}.jpg").write_bytes(b"x")
    records = read_amazon(tmp_path, scratch=tmp_path, core=0).records
    place = records.ids.index(item_id(3))
    assert records.images[place] == f"{item_id(3)}.jpg"
    assert sum(map(bool, records.images)) == 1
    assert records.image_root == str(tmp_path / "images")


def test_which_file(tmp_path):
    write(tmp_path, "2014", "Baby")
    write(tmp_path, "2018", "Office")
    with pytest.raises(
        InputError, match=r"(?s)not clear.*Office_5.*--category"
    ):
        read_amazon(tmp_path, scratch=None)
    assert read_amazon(tmp_path, scratch=None, category="Office").num_users
    full = tmp_path / "reviews_Baby.json.gz"
    full.write_bytes((tmp_path / "reviews_Baby_5.json.gz").read_bytes())
    with pytest.raises(InputError, match=r"(?s)not clear.*--file"):
        read_amazon(tmp_path, scratch=None, category="Baby")
    options = {"scratch": None, "category": "Baby", "core": 0}
    assert read_amazon(tmp_path, file=full.name, **options).num_users
    with pytest.raises(InputError, match=r"(?s)no such.*'reviews_Baby\.json"):
        read_amazon(tmp_path, file="reviews_Baby.json", **options)
    with pytest.raises(InputError, match=r"(?s)has no reviews.*reviews_Toys"):
        read_amazon(tmp_path, scratch=None, category="Toys")
    with pytest.raises(InputError, match="no such input directory"):
        read_amazon(tmp_path / "none", scratch=None)


def test_plain_files_are_read_as_well(tmp_path):
    rows = write(tmp_path, "2018", "Baby")
    for name in names("2018", "Baby"):
        path = tmp_path / name
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    catalog = read_amazon(tmp_path, scratch=None, core=0)
    assert rows_of(catalog) == expected(rows, "2018")
    assert any(catalog.records.titles)


def test_known_sizes(tmp_path, capsys):
    """A 5-core that others have counted is compared with their counts."""
    write(tmp_path, "2014", "Baby")
    read_amazon(tmp_path, scratch=None, core=5)
    said = capsys.readouterr().err
    assert "warning: reviews_Baby_5.json.gz" in said
    assert "19,445 users, 7,050 items, 160,792 interactions" in said
    assert "40 users, 25 items, 320 interactions" in said
    write(tmp_path, "2014", "Pet_Supplies")
    read_amazon(tmp_path, scratch=None, category="Pet_Supplies")
    assert "warning" not in capsys.readouterr().err


def lines(year="2014"):
    return [json.dumps(review(year, *row)) for row in draw()]


def changed(**fields):
    """Reviews of which the third has other fields; None takes one away."""
    rows = lines()
    third = json.loads(rows[2]) | fields
    rows[2] = json.dumps({k: v for k, v in third.items() if v is not None})
    return rows


BAD_REVIEWS = {
    "empty": ([], "reviews file is empty"),
    "no reviewer": (changed(reviewerID=None), "lacks.*line 3.*no reviewerID"),
    "time a word": (changed(unixReviewTime="x"), "line 3.*Time: str"),
    "endless time": (changed(unixReviewTime=10**30), "cannot be kept"),
    "half a character": (changed(asin="\ud83d"), "cannot be kept"),
    "no JSON": ([*lines()[:4], "{'a': 1}"], "not JSON.*_5.json.gz, line 5"),
    "another kind": (['{"user": 1}'], "not the reviews of.*line 1.*user"),
    "a list": (["[1]"], "not a JSON object.*line 1"),
    "mixed releases": (
        [*lines()[:4], lines("2023")[0]],
        "line 5.*no reviewerID",
    ),
}


@pytest.mark.parametrize("kind", BAD_REVIEWS)
def test_bad_reviews(tmp_path, kind):
    rows, message = BAD_REVIEWS[kind]
    write(tmp_path / "in", "2014", "Baby")
    write_lines(tmp_path / "in" / "reviews_Baby_5.json.gz", rows)
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare("amazon", tmp_path / "in", tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


HOSTILE = "__import__('os').system('touch RAN')"
BAD_METADATA = {
    "empty": ([], "metadata file is empty"),
    "a call": (["{'asin': " + HOSTILE + "}"], "not a Python literal.*line 1"),
    "a name": (["{'asin': open}"], "not a Python literal.*line 1"),
    "deep": (["{'asin': " + "[" * 90 + "]" * 90 + "}"], "too deep.*line 1"),
    "a formula": (["{'a': " + "-" * 10**5 + "1}"], "not a Python literal"),
    "a sum": (["{'a': " + "1+" * 10**5 + "1}"], "not a Python literal"),
    "cut": (["{'asin': '" + item_id(3)], "not a Python literal.*line 1"),
    "a list": (["{'asin'}"], "not a dict.*set"),
    "no name": (["{'title': 'x'}"], "no identifier.*line 1.*title"),
    "others": (["{'asin': 'B'}"], "tells of none of the items.*B00"),
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_bad_metadata(tmp_path, kind):
    rows, message = BAD_METADATA[kind]
    write(tmp_path / "in", "2014", "Baby")
    rows = [row.replace("RAN", str(tmp_path / "ran")) for row in rows]
    write_lines(tmp_path / "in" / "meta_Baby.json.gz", rows)
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare("amazon", tmp_path / "in", tmp_path / "data")
    # Nothing was run, and nothing left.
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_long_literals_are_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(literals, "LIMIT", 1000)
    write(tmp_path, "2014", "Baby")
    long = repr(product("2014", 3) | {"related": ["x" * 2000]})
    write_lines(tmp_path / "meta_Baby.json.gz", [long])
    with pytest.raises(InputError, match=r"too long(?s:.*)line 1"):
        read_amazon(tmp_path, scratch=None)
    # Of a product that nobody asks for it does not matter.
    other = repr(product("2014", 33) | {"related": ["x" * 2000]})
    rows = [other, repr(product("2014", 3))]
    write_lines(tmp_path / "meta_Baby.json.gz", rows)
    assert any(read_amazon(tmp_path, scratch=None).records.titles)


def test_metadata_that_is_odd_but_well(tmp_path):
    """As many brackets in words as one likes, and what escapes them."""
    title = "((([[[{{{" * 9 + ' it\'s \\ "so" &lt;3'
    write(tmp_path, "2014", "Baby")
    told = product("2014", 3) | {"title": title, "brand": None}
    write_lines(tmp_path / "meta_Baby.json.gz", [repr(told)])
    records = read_amazon(tmp_path, scratch=None).records
    place = records.ids.index(item_id(3))
    assert records.titles[place] == html.unescape(title)
    assert set(records.attributes[place]) == {"category"}


def test_bad_image_features(tmp_path):
    root = tmp_path / "in"
    write(root, "2014", "Baby")
    path = root / "image_features_Baby.b"

    def refused(message):
        with pytest.raises(InputError, match=f"(?s){message}"):
            prepare("amazon", root, tmp_path / "data", core=0)
        assert [p.name for p in tmp_path.iterdir()] == ["in"]

    values = write_images(root, "Baby", [1, 2, 3])
    whole = path.read_bytes()
    record = 10 + 4096 * 4
    path.write_bytes(whole[:-1])
    refused(rf"cut off.*byte {2 * record}\n.*{record - 1:,} too many")
    path.write_bytes(b"")
    refused("an empty file")
    path.write_bytes(whole[:record] + b"\x00\xff" + whole[record + 2 :])
    refused(rf"no identifier.*byte {record}\n")
    values[2, 5] = np.nan
    path.write_bytes(whole[: 2 * record + 10] + values[2].tobytes())
    refused(rf"NaN or infinity.*byte {2 * record}\n")
    write_images(root, "Baby", [77])
    refused("none of the items")
    path.write_bytes(gzip.compress(whole))
    refused("gzipped")


def test_a_file_that_changed_since_it_was_downloaded(tmp_path):
    write(tmp_path, "2014", "Baby")
    path = tmp_path / "reviews_Baby_5.json.gz"
    known = {path.name: {"size": path.stat().st_size, "sha256": "0" * 64}}
    (tmp_path / MANIFEST).write_text(json.dumps(known))
    with pytest.raises(InputError, match=r"(?s)not what was downloaded.*_5"):
        read_amazon(tmp_path, scratch=None)
    (tmp_path / MANIFEST).write_text("[1]")
    with pytest.raises(InputError, match="list of downloads"):
        read_amazon(tmp_path, scratch=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": "2015"}, "'2015'.*known: 2014"),
        ({"split": "randm"}, "'randm'.*did you mean 'random'"),
        ({"split": "given"}, "no split of its own"),
        ({"duplicates": "frist"}, "did you mean 'first'"),
        ({"core": 99}, "left of the 99-core"),
        ({"release": "2023"}, "lacks a field.*no user_id"),
        ({"categroy": "x"}, "no option 'categroy'.*did you mean 'category'"),
        ({"scratch": "x"}, "no option 'scratch'"),
    ],
)
def test_bad_options(tmp_path, options, message):
    write(tmp_path / "in", "2014", "Baby")
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare("amazon", tmp_path / "in", tmp_path / "data", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
