"""Categories: from items' records, and only when somebody asks."""

import dataclasses

import numpy as np
import pytest
from conftest import make_catalog
from contents import make_records
from training import make_config

from neggen_jax import run as runs
from neggen_jax.data import store
from neggen_jax.data.categories import categories
from neggen_jax.errors import InputError
from neggen_jax.train import train_and_evaluate

ITEMS = [
    {"type": "hat", "product_type": "scarf"},
    {"type": "bag", "product_type": " "},
    {"type": "", "product_type": "dress"},
    {"type": "hat", "product_type": "scarf", "colour": "red"},
]


def records_of(attributes):
    return make_records(["text"] * len(attributes), attributes=attributes)


def test_the_first_kind_that_exists_is_taken():
    found = categories(records_of(ITEMS))
    np.testing.assert_array_equal(found, [1, -1, 0, 1])
    without = [{k: v for k, v in x.items() if k == "type"} for x in ITEMS]
    found = categories(records_of(without))
    np.testing.assert_array_equal(found, [1, 0, -1, 1])


def test_a_name_is_taken_first():
    found = categories(records_of(ITEMS), "colour")
    np.testing.assert_array_equal(found, [-1, -1, -1, 0])


def test_nothing_is_known_without_records_or_kinds():
    assert categories(None) is None
    assert categories(records_of([{"colour": "red"}, {}])) is None


@pytest.mark.parametrize("records", [None, records_of(ITEMS)])
def test_an_unknown_name_is_refused(records):
    with pytest.raises(InputError, match="an attribute 'color'") as caught:
        categories(records, "color")
    assert "colour" in caught.value.fix or records is None


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    catalog = make_catalog()
    kinds = [{"category": f"kind{i % 3}"} for i in range(catalog.num_items)]
    path = tmp_path_factory.mktemp("categories") / "data"
    records = dataclasses.replace(catalog, records=records_of(kinds))
    store.save(records, path, source={})
    return path


def test_a_run_reads_them_at_its_end(directory, tmp_path):
    config = make_config("mf", train__epochs=1, data__path=str(directory))
    run = runs.Run.make(config)
    assert run.catalog.records is None
    np.testing.assert_array_equal(run.categories, np.arange(41) % 3)
    results = train_and_evaluate(config, tmp_path / "run")
    for split in ("valid", "test"):
        assert 0 < results[split]["category_entropy@20"] <= np.log2(3)
    # A catalogue in memory has nothing to do with that of another path.
    other = runs.Run.make(config, make_catalog(seed=1))
    assert other.categories is None


def test_an_unknown_name_is_refused_before_training(directory, tmp_path):
    config = make_config(
        "mf", data__path=str(directory), evaluate__category="kind"
    )
    with pytest.raises(InputError, match="an attribute 'kind'"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
