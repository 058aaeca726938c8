"""What a config may say of generated negatives, and what is said if not."""

import jax
import pytest
from conftest import make_catalog
from generated import with_generated
from ml_collections import ConfigDict
from training import make_config

from neggen_jax.check import doubts
from neggen_jax.errors import InputError
from neggen_jax.negatives import SOURCES, difficulty, process, source
from neggen_jax.negatives.catalogue import Uniform
from neggen_jax.run import Run

NAN = float("nan")
# Key -> the least, the most, and what is below or above.
BOUNDS = {
    "samples": (1, 1000, (0, -1, 1001)),
    "start": (0.0, 1e30, (-1e-9, NAN)),
    "rate": (0.0, 1000.0, (-0.1, 1001.0, NAN)),
    "timesteps": (2, 1000, (1, 0, 1001)),
    "clip": (0.0, 1e30, (-1.0, NAN)),
    "hidden": (0, 2**31 - 1, (-1,)),
    # Beyond, more than all rows would have something dropped.
    "drop": (0.0, 1 / 3, (-0.01, 0.34, NAN)),
    "steps": (0, 1000, (-1, 1001)),
    "eta": (0.0, 1.0, (-0.1, 1.1, NAN)),
    "bank": (0, 2**31 - 1, (-1,)),
    "observed": (1, 2**31 - 1, (0, -5)),
}
# Key -> all words, a word that is not one, and the one that was meant.
CHOICES = {
    "levels": (difficulty.LADDERS, "lader", "ladder"),
    "order": (difficulty.ORDERS, "rise", "rising"),
    "unit": (source.UNITS, "epoch", "epochs"),
    "noise": (process.SCHEDULES, "cosin", "cosine"),
    "target": (process.TARGETS, "x_0", "x0"),
    "criterion": (process.CRITERIA, "L2", "l2"),
}


def make(part):
    return Run.make(
        with_generated("mf", part), make_catalog(), jax.devices()[:1]
    )


def refused(part):
    with pytest.raises(InputError) as caught:
        make(part)
    return caught.value


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, (_, _, bad) in BOUNDS.items() for value in bad],
)
def test_values_out_of_bounds_are_refused(key, value):
    low, high, _ = BOUNDS[key]
    error = refused({key: value})
    assert error.where == f"config.negatives.generated.{key}"
    whole = "a whole number " if isinstance(low, int) else ""
    assert error.expected == f"{whole}from {low} to {high}"
    assert error.found == repr(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", 2.5), ("samples", "two"), ("start", None), ("hidden", 16.0)],
)
def test_values_of_another_type_are_refused(key, value):
    error = refused({key: value})
    assert error.where == f"config.negatives.generated.{key}"
    assert error.found == repr(value)


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ({"unit": "run", "start": 4.0}, "start", "before the run ends"),
        ({"modalities": ("sound",)}, "modalities", "Bad modalities"),
        ({"modalities": ("text", "text")}, "modalities", "Bad modalities"),
        ({"first": "text"}, "first", "is a string"),
        ({"first": ("imge",)}, "first", "Unknown value 'imge'"),
        ({"scales": {"txt": 5.0}}, "scales", "Unknown value 'txt'"),
        ({"scales": {"text": -3.0}}, "scales.text", "Bad value"),
        ({"steps": 30, "timesteps": 25}, "steps", "more steps than"),
        ({"noise": "cosine", "target": "noise"}, "clip", "multiplies its"),
        ({"drop": 0.0}, "drop", "never in training"),
        ({"drop": 0.0, "levels": "joint"}, "drop", "never in training"),
    ],
)
def test_what_does_not_go_together_is_refused(part, key, message):
    error = refused(part)
    assert error.where == f"config.negatives.generated.{key}"
    assert message in error.problem


def test_nothing_is_dropped_where_nothing_is_left_out():
    make({"drop": 0.0, "levels": "joint", "scales": {"text": 1.0}})


def test_a_source_of_ones_own_may_mean_something_else(monkeypatch):
    class Mine(Uniform):
        order: str = "asc"

    monkeypatch.setitem(SOURCES, "mine", Mine)
    config = with_generated("mf", {})
    with config.unlocked():
        config.negatives.generated = {"name": "mine", "order": "asc"}
    Run.make(config, make_catalog(), jax.devices()[:1])


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_words_are_refused_with_the_nearest(key):
    known, wrong, meant = CHOICES[key]
    error = refused({key: wrong})
    assert error.where == f"config.negatives.generated.{key}"
    assert repr(wrong) in error.problem
    assert f"did you mean {meant!r}?" in error.fix
    assert all(word in error.fix for word in known)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("sample", "samples"),
        ("timestep", "timesteps"),
        ("scale", "scales"),
        ("modality", "modalities"),
        ("ordering", "order"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(wrong, meant):
    error = refused({wrong: 1})
    assert error.where == f"config.negatives.generated.{wrong}"
    assert f"did you mean {meant!r}?" in error.fix


def test_a_source_that_nobody_knows_is_refused():
    error = refused({"name": "difusion"})
    assert error.where == "config.negatives.generated.name"
    assert "did you mean 'diffusion'?" in error.fix
    assert "ramped_uniform" in error.fix


@pytest.mark.parametrize("name", ["diffusion", "ramped_uniform"])
@pytest.mark.parametrize(
    ("start", "unit", "let_in"),
    [
        (9.0, "epochs", True),
        (10.0, "epochs", False),
        (49.0, "steps", True),
        (50.0, "steps", False),
        (0.9, "run", True),
    ],
)
def test_negatives_that_would_come_after_the_run_are_doubted(
    name, start, unit, let_in
):
    part = {"name": name, "start": start, "unit": unit}
    other = {"name": "uniform"}
    known = ConfigDict(
        {"late": part, "sampled": other, "mine": {"name": "x:Y"}}
    )
    found = doubts(known, epochs=10, epoch_steps=5)
    assert len(found) == (not let_in)
    assert all(f"from {start:g} {unit} on" in line for line in found)
    assert all(line.startswith("negatives.late") for line in found)


def test_the_ramp_that_nobody_has_set_is_doubted_too():
    known = ConfigDict({"generated": {"name": "diffusion"}})
    assert not doubts(known, epochs=31, epoch_steps=1)
    (line,) = doubts(known, epochs=30, epoch_steps=1)
    assert "the run has 30: it trains without them" in line


@pytest.mark.parametrize("key", ["samples", "start", "rate", "unit"])
def test_the_ramp_of_uniform_negatives_is_checked_too(key):
    wrong = {"samples": 0, "start": -1.0, "rate": -1.0, "unit": "days"}[key]
    config = with_generated("mf", {})
    with config.unlocked():
        config.negatives.generated = {
            "name": "ramped_uniform",
            key: wrong,
        }
    with pytest.raises(InputError) as caught:
        Run.make(config, make_catalog(), jax.devices()[:1])
    assert caught.value.where == f"config.negatives.generated.{key}"


@pytest.mark.parametrize(
    ("sampler", "key", "wrong"),
    [
        ("dns", "candidates", 0),
        ("dns_mn", "top", 33),
        ("ahns", "beta", -1.0),
        ("ahns", "power", NAN),
        ("ahns", "similarity", "cos"),
        ("mixgcf", "most", 1.1),
        ("dens", "relevance", 2.0),
        ("dens", "warmup", -1.0),
        ("dens", "unit", "days"),
        ("dens", "weight", -0.1),
        ("in_batch", "correction", -1.0),
        ("softmax", "items", -1),
        ("softmax", "corrected", "some"),
    ],
)
def test_samplers_are_checked_too(sampler, key, wrong):
    config = make_config(f"mf,{sampler}")
    config.negatives.sampled[key] = wrong
    with pytest.raises(InputError) as caught:
        Run.make(config, make_catalog(), jax.devices()[:1])
    assert caught.value.where == f"config.negatives.sampled.{key}"


@pytest.mark.parametrize("end", [0, 1])
def test_what_stands_on_a_bound_is_taken(end):
    """And everything together, with every word that there is."""
    part = {key: bounds[end] for key, bounds in BOUNDS.items()}
    part |= {key: known[-end] for key, (known, _, _) in CHOICES.items()}
    # What does not go together is refused; see above.
    part |= {"steps": 0, "start": 0.5, "drop": (0.05, 1 / 3)[end]}
    source = make(part).program.recommender.sources["generated"]
    for key, value in part.items():
        assert getattr(source, key) == value
