"""The one error that a person sees."""

import pytest

from neggen_jax.errors import InputError, nearest, nearest_key, reported


def test_says_what_where_and_what_to_do():
    error = InputError(
        "It is wrong.", where="here", expected=[1], found=None, fix="mend it"
    )
    assert str(error).splitlines() == [
        "It is wrong.",
        "  where:    here",
        "  expected: [1]",
        "  fix:      mend it",
    ]
    assert isinstance(error, ValueError)
    assert (error.problem, error.expected, error.found) == (
        "It is wrong.",
        [1],
        None,
    )


def test_lines_of_what_was_found_stand_below_one_another():
    error = InputError("It is wrong.", where="here", found="a: 1\nb: 2")
    assert str(error).splitlines() == [
        "It is wrong.",
        "  where:    here",
        "  found:    a: 1",
        "            b: 2",
    ]


def test_zero_and_nothing_are_told_apart():
    assert "found:    0" in str(InputError("Bad.", found=0))
    assert str(InputError("Bad.")) == "Bad."


def test_names_the_nearest():
    known = ["recall", "ndcg", "precision"]
    assert nearest("recal", known).startswith("did you mean 'recall'? known: ")
    assert nearest("zzz", known) == "known: ndcg, precision, recall"
    assert nearest("", []) == "known: "


def test_of_many_keys_those_beside_the_closest_are_named():
    known = ["encoder.dim", "encoder.layers", "seed", "train.ema", "train.keep"]
    said = nearest_key("encoder.layer", known)
    assert said == "did you mean 'encoder.layers'? encoder has dim, layers"
    assert (
        nearest_key("train.qqqqqqqqqqqqqqqqqq", known) == "train has ema, keep"
    )
    # Those of one part are not alike by its name.
    assert nearest_key("encoder.lr", known) == "encoder has dim, layers"
    assert nearest_key("q.q", known) == "known: encoder, seed, train"
    assert nearest_key("sead", known) == (
        "did you mean 'seed'? the config has seed"
    )


def test_bad_input_is_a_message_and_status_2(capsys):
    with pytest.raises(SystemExit) as caught, reported():
        raise InputError("It is wrong.", where="here")
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.err == "error: It is wrong.\n  where:    here\n"
    assert said.out == ""


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_a_defect_keeps_its_traceback(kind):
    with pytest.raises(kind), reported():
        raise kind("a defect of ours")


def test_nothing_happens_where_nothing_is_wrong(capsys):
    with reported():
        pass
    assert capsys.readouterr() == ("", "")
