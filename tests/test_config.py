"""Config files: their arguments, their defaults, and what they refuse."""

import pathlib

import pytest
from ml_collections import ConfigDict

from neggen_jax import check, recommender
from neggen_jax.config import (
    RESUMABLE,
    base,
    flatten,
    load,
    override,
    words,
)
from neggen_jax.data.inputs import sizes
from neggen_jax.errors import InputError
from neggen_jax.models import ENCODERS

BASELINE = pathlib.Path(__file__).parents[1] / "configs" / "baseline.py"
GDNSM = BASELINE.with_name("gdnsm.py")


def test_words_are_a_choice_and_options_in_any_order():
    read = lambda text: words(text, "ab", options="xy")  # noqa: E731
    assert read("") == ("a", frozenset())
    assert read("b") == ("b", frozenset())
    assert read("x") == ("a", frozenset("x"))
    assert read("y,b,x") == ("b", frozenset("xy"))
    assert words("d,b", "ab", "cd") == ("b", "d", frozenset())


@pytest.mark.parametrize(
    ("argument", "message"),
    [("smok", "did you mean 'smoke'"), ("mf,mci", "two choices at once")],
)
def test_words_that_make_no_sense_are_refused(argument, message):
    with pytest.raises(InputError, match=message) as error:
        load(f"{BASELINE}:{argument}")
    assert error.value.where == f"--config=FILE:{argument}"


@pytest.mark.parametrize("name", ENCODERS)
def test_the_baseline_of_every_encoder(name, catalog, one):
    config = load(f"{BASELINE}:{name}")
    assert config.encoder.name == name
    assert config.is_locked
    model = recommender.build(config, sizes(catalog, one))
    assert type(model.encoder) is ENCODERS[name]
    # A file states the defaults it relies on; both must say the same.
    plain = ENCODERS[name](sizes(catalog, one))
    assert model.encoder == plain


def test_options_of_the_baseline():
    assert load(str(BASELINE)).encoder.name == "lightgcn"
    config = load(f"{BASELINE}:smoke,popularity")
    assert config.encoder.name == "lightgcn"
    assert config.negatives.sampled.name == "popularity"
    assert config.train.epochs == 2


def test_files_that_are_no_config_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such config file"):
        load(str(tmp_path / "none.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("config = 1\n")
    with pytest.raises(InputError, match="does not give a config"):
        load(str(empty))


def test_flatten_names_every_key_once():
    flat = flatten(ConfigDict({"a": 1, "b": {"c": (2, 3), "d": {"e": "f"}}}))
    assert flat == {"a": 1, "b.c": [2, 3], "b.d.e": "f"}


def test_what_may_change_on_resuming_are_keys_that_exist():
    assert set(flatten(base())) >= RESUMABLE


def test_overrides():
    config = load(f"{BASELINE}:mci")
    override(
        config,
        ["train.epochs=3", "encoder.dim=8", "optimizer.schedule=cosine"],
    )
    assert config.train.epochs == 3
    assert config.encoder.dim == 8
    assert config.optimizer.schedule == "cosine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epoch=3", "did you mean 'train.epochs'"),
        ("train.epochs=many", "Bad value of 'train.epochs'"),
        ("train.epochs", "Bad value of 'train.epochs'"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        override(load(str(BASELINE)), [change])


# Word of configs/gdnsm.py -> what it changes in the source.
ABLATIONS = {
    "mci": {"start": 4.0, "levels": "ladder", "order": "rising", "bank": 0},
    "no_schedule": {"start": 0.0},
    "random": {"order": "random"},
    "reversed": {"order": "falling"},
    "unimodal": {"levels": "single"},
    "multimodal": {"levels": "joint"},
    "bank": {"bank": 4},
    "smoke": {"start": 0.0},
    "no_diffusion": {"name": "ramped_uniform", "count": 6, "start": 4.0},
}


@pytest.mark.parametrize("word", ABLATIONS)
def test_gdnsm_and_its_ablations(word, catalog, one):
    config = load(f"{GDNSM}:{word}")
    config.evaluate.cutoffs = (5, 20)
    model = recommender.build(config, sizes(catalog, one))
    check.check(config, one, catalog)
    source = {"name": "diffusion", **ABLATIONS[word]}
    for key, value in source.items():
        assert config.negatives.generated[key] == value, key
    assert set(model.sources) == {"sampled", "generated"}
    assert model.losses["generated"][0] == 0.05


@pytest.mark.parametrize("name", ENCODERS)
def test_gdnsm_is_any_baseline_and_more(name):
    """All that the encoder has alone stays as it is."""
    plain, more = load(f"{BASELINE}:{name}"), load(f"{GDNSM}:{name}")
    before, after = flatten(plain), flatten(more)
    assert before.items() <= after.items()
    added = {key for key in after if key not in before}
    assert all("generated" in key for key in added), added


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("random,reversed", "two choices at once"),
        ("bank,no_diffusion", "nothing to keep"),
    ],
)
def test_words_of_gdnsm_that_contradict_are_refused(argument, message):
    with pytest.raises(InputError, match=message):
        load(f"{GDNSM}:{argument}")
