"""TFDS datasets in and out: one in MovieLens's layout, and the Amazon builder.

Made here and read from disk: nothing is downloaded.
"""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from amazon_files import draw, item_id, product, user_id, write
from test_amazon import expected, rows_of

from neggen_jax.catalog import SPLITS
from neggen_jax.data.prepare import prepare
from neggen_jax.data.sources.amazon.amazon_reviews import (
    AmazonConfig,
    AmazonReviews,
)
from neggen_jax.data.sources.amazon.source import read_amazon
from neggen_jax.data.sources.tfds_source import read_tfds
from neggen_jax.errors import InputError

ROWS = draw(30, 20, 8)


class TinyLens(tfds.core.GeneratorBasedBuilder):
    """The features of movielens/*-ratings that matter, and some others."""

    VERSION = tfds.core.Version("0.1.0")

    def _info(self):
        features = {
            "user_id": tfds.features.Text(),
            "movie_id": tfds.features.Text(),
            "movie_title": tfds.features.Text(),
            "user_rating": np.float32,
            "timestamp": np.int64,
            "movie_genres": tfds.features.Sequence(
                tfds.features.ClassLabel(names=["Action", "Drama"])
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key, (user, item, stars, time) in enumerate(ROWS):
            yield (
                key,
                {
                    "user_id": f"u{user}",
                    "movie_id": f"m{item}",
                    "movie_title": f"Film {item}",
                    "user_rating": stars,
                    "timestamp": time,
                    "movie_genres": [item % 2],
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    TinyLens(data_dir=path).download_and_prepare()
    return str(path)


@pytest.mark.parametrize("min_rating", [None, 3])
def test_ratings(data_dir, min_rating):
    catalog = read_tfds(
        name="tiny_lens", data_dir=data_dir, min_rating=min_rating
    ).validate()
    want = sorted(
        (f"u{user}", f"m{item}", time)
        for user, item, stars, time in ROWS
        if stars >= (min_rating or 0)
    )
    assert rows_of(catalog) == want
    titles = [f"Film {name[1:]}" for name in catalog.records.ids]
    assert catalog.records.titles == titles
    assert catalog.name == "tiny_lens"


def test_prepared(data_dir, tmp_path):
    catalog = prepare(
        "tfds",
        None,
        tmp_path / "data",
        name="tiny_lens",
        data_dir=data_dir,
        split="leave_last_out",
        core=3,
    )
    assert [len(catalog.splits[s]) for s in SPLITS[1:]] == [30, 30]
    assert catalog.features["text"].present.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tiny_lense"}, "no TFDS dataset 'tiny_lense'"),
        ({"name": "movielens/100k-ratings"}, "not on this machine.*tfds build"),
        ({}, "by its name.*--name"),
        ({"name": "tiny_lens", "user_column": "who"}, "no column 'who'"),
        (
            {"name": "tiny_lens", "user_column": "movie_genres"},
            "no column of names",
        ),
        (
            {"name": "tiny_lens", "split_column": "x"},
            "no option 'split_column'",
        ),
    ],
)
def test_what_cannot_be_read(data_dir, tmp_path, options, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        prepare("tfds", None, tmp_path / "x", data_dir=data_dir, **options)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def building():
    """What TFDS needs to build, and does not ask for."""
    pytest.importorskip(
        "importlib_resources", reason="pip install -r requirements.txt"
    )


@pytest.mark.usefixtures("building")
@pytest.mark.parametrize("year", ["2014", "2023"])
def test_amazon_builder(tmp_path, year):
    rows = write(tmp_path / "raw", year, "Baby")
    config = AmazonConfig(name="any", category="Baby", split="leave_last_out")
    builder = AmazonReviews(config=config, data_dir=tmp_path / "tfds")
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path / "raw")
    builder.download_and_prepare(download_config=manual)
    direct = read_amazon(tmp_path / "raw", scratch=None, split="leave_last_out")
    for split in SPLITS:
        count = builder.info.splits[split].num_examples
        assert count == len(direct.splits[split])
    examples = tfds.as_numpy(builder.as_dataset(split="train+valid+test"))
    got, titles = [], {}
    for example in examples:
        user, item = (example[n].decode() for n in ("user_id", "item_id"))
        got.append((user, item, int(example["timestamp"])))
        titles[item] = example["item_title"].decode()
    assert sorted(got) == expected(rows, year)
    title = product(year, 3)["title"].replace("&amp;", "&")
    assert titles[item_id(3)] == title
    # And in again, by the name of the dataset, with its split.
    again = read_tfds(
        name="amazon_reviews/any", data_dir=str(tmp_path / "tfds")
    )
    assert rows_of(again.validate()) == expected(rows, year)
    assert user_id(1, year) in again.user_ids
    for split in SPLITS:
        for column in ("users", "items", "timestamps"):
            np.testing.assert_array_equal(
                getattr(again.validate().splits[split], column),
                getattr(direct.validate().splits[split], column),
            )


@pytest.mark.usefixtures("building")
def test_amazon_builder_without_files(tmp_path):
    builder = AmazonReviews(config="Baby", data_dir=tmp_path / "tfds")
    (tmp_path / "raw").mkdir()
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path / "raw")
    # Of an empty directory TFDS itself says what it should have.
    with pytest.raises(AssertionError, match=r"(?s)launch/fetch_amazon\.py"):
        builder.download_and_prepare(download_config=manual)
    (tmp_path / "raw" / "other").write_text("")
    with pytest.raises(InputError, match=r"(?s)has no reviews.*fetch_amazon"):
        builder.download_and_prepare(download_config=manual)
