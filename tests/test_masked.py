"""From a masked copy of a description to places in the description."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from replied import KEPT, MOST

from neggen_jax.generation.writers.replies import Refused, check_masks


def one_mask(value, masked, description="A red laptop sleeve.", kept=KEPT):
    reply = {"masks": [{"attribute": "x", "value": value}], "masked": masked}
    return check_masks(json.dumps(reply), description, kept, MOST)


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("laptop", "A red [MASK_1] sleeve."),
        ("red laptop", "A [MASK_1] sleeve."),
        ("sleeve", "A red laptop [MASK_1]."),
    ],
)
def test_what_kind_of_thing_it_is_is_not_masked(value, masked):
    with pytest.raises(Refused, match="what kind"):
        one_mask(value, masked)
    assert one_mask(value, masked, kept={"category": "Bags and others"})


def test_words_that_say_no_kind_may_be_in_a_value():
    text = "A T-shirt in red and blue, size t"
    kept = {"category": "T shirts and other things"}
    masked = "A T-shirt in [MASK_1], size t"
    assert one_mask("red and blue", masked, text, kept)
    assert one_mask("t", "A T-shirt in red and blue, size [MASK_1]", text, kept)


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("re", "A [MASK_1]d laptop sleeve."),
        ("leeve", "A red laptop s[MASK_1]."),
        ("d laptop", "A re[MASK_1] sleeve."),
    ],
)
def test_a_part_of_a_word_is_not_masked(value, masked):
    with pytest.raises(Refused, match="whole words"):
        one_mask(value, masked, kept={})


def test_a_part_of_a_sign_or_number_is_not_masked():
    slash = "\N{FRACTION SLASH}"  # As in the letter "½" taken apart.
    for value, masked in (
        ("1", f"[MASK_1]{slash}2"),
        ("2", f"1{slash}[MASK_1]"),
    ):
        with pytest.raises(Refused, match="whole words"):
            one_mask(value, f"{masked} inch", "½ inch")
    with pytest.raises(Refused, match="whole words"):
        one_mask("1", "[MASK_1]3 inch", "13 inch")


def test_something_is_left_beside_the_masks():
    with pytest.raises(Refused, match="Nothing is left"):
        one_mask("Red", "[MASK_1]!", "Red!", {})


def test_masks_are_known_however_they_are_numbered():
    made = check_masks(
        json.dumps(
            {
                "masks": [
                    {"attribute": " Material ", "value": "felt"},
                    {"attribute": "Colour", "value": "RED"},
                    {"attribute": "inches", "value": 13},
                ],
                "masked": "[MASK_2] sleeve of [MASK_1], [MASK_3]",
            }
        ),
        "Red sleeve of felt, 13.",
        {},
        3,
    )
    assert made.text == "[MASK_2] sleeve of [MASK_1], [MASK_3]."
    assert made.attributes == {
        "material": "felt",
        "colour": "Red",
        "inches": "13",
    }
    assert made.fill(["silk", "dark blue", "15"]) == (
        "Dark blue sleeve of silk, 15."
    )
    assert made.fill(["Silk", "IKB", "15"]) == "IKB sleeve of Silk, 15."


def test_a_value_that_is_mentioned_again_is_masked_there_too():
    text = (
        "Red felt sleeve. The red of this sleeve is as red as it gets; "
        "felted, infrared. 13 zips, IT, 13 pockets"
    )
    reply = {
        "masks": [
            {"attribute": "colour", "value": "red"},
            {"attribute": "material", "value": "felt"},
            {"attribute": "zips", "value": "13"},
            {"attribute": "use", "value": "IT"},
        ],
        "masked": "Red [MASK_2] sleeve. The red of this sleeve is as "
        "[MASK_1] as it gets; felted, infrared. [MASK_3] zips, [MASK_4], "
        "13 pockets",
    }
    made = check_masks(json.dumps(reply), text, {}, 4)
    assert made.text == (
        "[MASK_1] [MASK_2] sleeve. The [MASK_1] of this sleeve is as "
        "[MASK_1] as it gets; felted, infrared. [MASK_3] zips, [MASK_4], "
        "13 pockets"
    )
    assert made.fill(["blue", "silk", "2", "home"]).startswith(
        "Blue silk sleeve. The blue of this"
    )
    for values in (made.attributes.values(), ["Red", "felt", "13", "IT"]):
        assert made.fill(list(values)) == text


def test_capitals_are_those_of_the_place():
    text = "Dark Blue zips; dark blue cord. Felt. Made of felt. o'neill"
    reply = {
        "masks": [
            {"attribute": "colour", "value": "Dark Blue"},
            {"attribute": "material", "value": "felt"},
            {"attribute": "brand", "value": "o'neill"},
        ],
        "masked": "[MASK_1] zips; dark blue cord. [MASK_2]. Made of felt. "
        "[MASK_3]",
    }
    made = check_masks(json.dumps(reply), text, {}, 3)
    assert made.fill(list(made.attributes.values())) == text
    form = "{} zips; {} cord. {}. Made of {}. {}"
    assert made.fill(["red", "silk", "Øre"]) == (
        form.format("Red", "red", "Silk", "silk", "Øre")
    )
    assert made.fill(["Red", "Silk", "H&M"]) == (
        form.format("Red", "red", "Silk", "silk", "H&M")
    )
    assert made.fill(["McCoy red", "PVC", "øre"]) == (
        form.format("McCoy red", "McCoy red", "PVC", "PVC", "øre")
    )


def test_numbers_and_letters_are_masked_in_one_place():
    text = "Two zips, two pockets; size s, for Mac's; 20 l, 20 pens"
    reply = {
        "masks": [
            {"attribute": "zips", "value": "two"},
            {"attribute": "size", "value": "s"},
            {"attribute": "pens", "value": "20"},
        ],
        "masked": "[MASK_1] zips, two pockets; size [MASK_2], for Mac's; "
        "20 l, [MASK_3] pens",
    }
    made = check_masks(json.dumps(reply), text, {}, 3)
    assert made.text == reply["masked"]


def test_signs_that_nobody_sees_may_be_lost():
    text = "A red\u00ad lap\u00adtop sleeve\u200b."
    made = one_mask("red", "A [MASK_1] laptop sleeve.", text)
    assert made.text == "A [MASK_1]\u00ad lap\u00adtop sleeve\u200b."


def test_the_longer_of_two_values_is_looked_for_first():
    text = "Blue and dark blue; dark blue, blue"
    reply = {
        "masks": [
            {"attribute": "first", "value": "blue"},
            {"attribute": "second", "value": "dark blue"},
        ],
        "masked": "[MASK_1] and [MASK_2]; dark blue, blue",
    }
    made = check_masks(json.dumps(reply), text, {}, 2)
    assert made.text == "[MASK_1] and [MASK_2]; [MASK_2], [MASK_1]"


def test_a_comma_after_a_value_is_not_of_the_value():
    reply = {
        "masks": [{"attribute": "colour", "value": "red."}],
        "masked": "A sleeve in [MASK_1]",
    }
    made = check_masks(json.dumps(reply), "A sleeve in red.", {}, 1)
    assert made.attributes == {"colour": "red"}
    assert made.fill(["blue"]) == "A sleeve in blue."


def test_scripts_without_spaces_have_no_cut_words():
    reply = {
        "masks": [{"attribute": "colour", "value": "红色"}],
        "masked": "[MASK_1]连衣裙",
    }
    made = check_masks(json.dumps(reply), "红色连衣裙。", {}, 1)
    assert made.fill(["蓝色"]) == "蓝色连衣裙。"


@given(st.text(max_size=20), st.text(max_size=6), st.text(max_size=20))
def test_any_description_is_masked_or_refused(before, value, after):
    text = before + value + after
    assume("[MASK" not in text)
    try:
        made = one_mask(value, f"{before}[MASK_1]{after}", text, {})
    except Refused:
        return
    assert made.fill(list(made.attributes.values())) == text
    assert made.attributes["x"] == made.attributes["x"].strip() != ""
