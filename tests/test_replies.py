"""Which replies are accepted, and that every wrong one is refused.

Descriptions and masks are built from a truth, so that what a correct reply
says is known; then one thing at a time is broken.
"""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replied import MOST, RED, contrasts, truths

from neggen_jax.generation.writers import prompts
from neggen_jax.generation.writers.masked import MASK, Masked, in_case_of
from neggen_jax.generation.writers.replies import (
    LONGEST_NAME,
    LONGEST_VALUE,
    Refused,
    alternatives_schema,
    check_alternatives,
    check_masks,
    masks_schema,
)

# ---- correct replies


@given(truths())
def test_a_correct_reply_is_accepted(truth):
    made = truth.check()
    assert made.description == truth.description
    assert made.text == truth.masked
    assert list(made.attributes.items()) == [
        (name, truth.values[name]) for name in truth.names
    ]
    assert made.fill(list(made.attributes.values())) == truth.description


NOISES = {
    "spaces": lambda text: re.sub(r" ", " \n ", text),
    "case": lambda text: MASK.sub(lambda m: m[0].upper(), text.upper()),
    "no end": lambda text: text.rstrip("."),
    "more end": lambda text: text + "!!",
    "quotes": lambda text: text.replace("“", '"').replace("”", '"'),
    "dashes": lambda text: text.replace("—", "-"),
    "accents": lambda text: text.replace("½", "1/2").replace("é", "e\u0301"),
}


@given(truths(), st.sampled_from(sorted(NOISES)))
def test_what_models_change_in_a_copy_does_not_change_the_text(truth, noise):
    reply = truth.reply
    reply["masked"] = NOISES[noise](reply["masked"])
    for mask in reply["masks"]:
        if noise in ("case", "spaces", "accents"):
            mask["value"] = NOISES[noise](mask["value"])
    # The fraction is a sign of its own, not a slash.
    text = json.dumps(reply).replace("1/2", "1\u20442")
    made = truth.check(text)
    assert made.text == truth.masked
    assert dict(made.attributes) == truth.values


@given(st.data(), truths(), st.integers(1, 3))
def test_correct_alternatives_are_accepted(data, truth, number):
    lists = data.draw(contrasts(truth, number))
    reply = json.dumps({"alternatives": lists})
    made = check_alternatives(reply, truth.check(), number)
    assert len(made) == number
    for alternative, values in zip(made, lists, strict=True):
        new = {
            name: in_case_of(truth.values[name], value, truth.values[name])
            for name, value in zip(truth.names, values, strict=True)
        }
        # Outside the masks nothing changes, whatever is filled in.
        assert alternative.text == truth.text(new.__getitem__)
        assert alternative.changes == {
            name: (truth.values[name], new[name]) for name in truth.names
        }


# ---- wrong masks


@given(st.data(), truths())
def test_every_wrong_masked_text_is_refused(data, truth):
    name = data.draw(st.sampled_from(truth.names))
    k = truth.numbers[name]
    mask, value, text = f"[MASK_{k}]", truth.values[name], truth.masked
    unknown = len(truth.names) + 1
    refused = truth.refused
    refused(f"{mask} is 0 times", masked=text.replace(mask, value))
    refused(f"{mask} is 2 times", masked=f"{text} {mask}")
    refused("is not in the list", masked=f"{text} [MASK_{unknown}]")
    for wrong in (f"[mask_{k}]", f"[MASK {k}]", "[MASK_0]", "[MASK_01]"):
        refused("none of [MASK_1]", masked=text.replace(mask, wrong))
    refused("must be a text", masked=[text])

    pieces = text.split(" ")
    at = data.draw(st.integers(0, len(pieces) - 1))
    added = " ".join([*pieces[:at], "new", *pieces[at:]])
    refused("is not the description", masked=added)
    at = data.draw(
        st.sampled_from(
            [
                i
                for i, piece in enumerate(pieces)
                if re.search(r"\w", piece) and "[" not in piece
            ]
        )
    )
    dropped = " ".join([*pieces[:at], *pieces[at + 1 :]])
    changed = " ".join([*pieces[:at], "other", *pieces[at + 1 :]])
    refused("is not the description", masked=dropped)
    refused("is not the description", masked=changed)


@given(truths(least=2))
def test_masks_in_each_others_places_are_refused(truth):
    swap = {"[MASK_1]": "[MASK_2]", "[MASK_2]": "[MASK_1]"}
    text = re.sub(r"\[MASK_[12]\]", lambda m: swap[m[0]], truth.masked)
    truth.refused("is not the description", masked=text)


BAD_VALUES = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("...", "is empty"),
    ("[MASK_1] x", "has a mask in it"),
    ("[mask", "has a mask in it"),
    ("a\x00b", "no text"),
    ("a\ud800b", "no text"),
    ("ab " * LONGEST_VALUE, "characters"),
    (None, "must be a text"),
    (True, "must be a text"),
    (float("nan"), "must be a text"),
    (float("inf"), "must be a text"),
    (10**400, "characters"),
    (["red"], "must be a text"),
]


@given(st.data(), truths(), st.sampled_from(BAD_VALUES))
def test_every_wrong_list_of_masks_is_refused(data, truth, bad):
    masks = truth.reply["masks"]
    k = data.draw(st.integers(0, len(masks) - 1))

    def refused(said, *put):
        changed = [*masks[:k], *put, *masks[k + 1 :]]
        truth.refused(said, masks=changed)

    refused(bad[1], masks[k] | {"value": bad[0]})
    refused(bad[1], masks[k] | {"attribute": bad[0]})
    long = "a" * (LONGEST_NAME + 1)
    refused("characters", masks[k] | {"attribute": long})
    refused("is not the description", masks[k] | {"value": "other"})
    refused('"attribute" and "value"', {"attribute": "colour"})
    refused('"attribute" and "value"', masks[k]["value"])
    refused("stays", masks[k] | {"attribute": "Product type"})
    if len(masks) > 1:
        other = masks[k - 1]["attribute"].upper()
        refused("there twice", masks[k] | {"attribute": other})
    if len(masks) < MOST:
        extra = {"attribute": "style", "value": "slim"}
        refused("is 0 times", masks[k], extra)
    refused("1 to 4 masks", masks[k], *[{}] * MOST)
    truth.refused("1 to 4 masks", masks=[])
    truth.refused("1 to 4 masks", masks={"1": masks[0]})
    truth.refused("1 to 4 masks", masks=None)


# ---- wrong alternatives


def complete(*lists, number=None):
    reply = json.dumps({"alternatives": lists})
    return check_alternatives(reply, RED, number or len(lists))


def test_the_masked_text_of_these_tests():
    assert RED.text == "A [MASK_1] laptop sleeve of [MASK_2]"
    (made,) = complete(["blue", "neoprene"])
    assert made.text == "A blue laptop sleeve of neoprene"


@pytest.mark.parametrize(("value", "said"), BAD_VALUES)
def test_a_value_that_is_none_is_refused(value, said):
    with pytest.raises(Refused, match=said) as caught:
        complete(["blue", value])
    assert "mask 2 (material)" in caught.value.reason


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("red", "means the same"),
        ("RED.", "means the same"),
        ("réd", "means the same"),
        ("red-coloured", "means the same"),
        ("a red", "means the same"),
        ("not red", "only negates"),
        ("non-red", "only negates"),
        ("unknown", "says nothing"),
        ("N/A", "says nothing"),
        ("other", "says nothing"),
    ],
)
def test_what_is_no_contrast_is_refused(value, said):
    with pytest.raises(Refused, match=said):
        complete([value, "leather"])


@pytest.mark.parametrize(
    "lists",
    [
        [],
        [["blue", "silk"]],
        [["blue", "silk"]] * 3,
        [["blue", "silk"], ["green"]],
        [["blue", "silk"], ["green", "wool", "x"]],
        ["blue", "silk"],
        [{"colour": "blue"}, {"colour": "green"}],
    ],
)
def test_the_number_of_values_is_that_of_the_masks(lists):
    with pytest.raises(Refused, match="2 lists of 2 values"):
        complete(*lists, number=2)
    for other in ("blue", None, {"1": ["blue", "silk"]}):
        reply = json.dumps({"alternatives": other})
        with pytest.raises(Refused, match="1 list of 2 values"):
            check_alternatives(reply, RED, 1)


def test_alternatives_differ():
    assert complete(["blue", "silk"], ["blue", "wool"])
    with pytest.raises(Refused, match="Two alternatives"):
        complete(["navy", "silk"], ["green", "wool"], ["Dark blue", "silk."])


def test_the_length_stays_in_bounds():
    long = "b" * LONGEST_VALUE
    with pytest.raises(Refused, match="instead of 27"):
        complete([long, "silk"])
    words = "very " * 30
    masked = Masked(f"{words}red sleeve", {"a": words.strip()}, ((0, 149, 0),))
    reply = json.dumps({"alternatives": [["not at all"]]})
    with pytest.raises(Refused, match="instead of 160"):
        check_alternatives(reply, masked, 1)


# ---- schemas, and the examples of the templates


def fits(value, schema):
    """The part of JSON Schema that is used here."""
    if schema["type"] == "string":
        return isinstance(value, str)
    if schema["type"] == "array":
        least, most = schema["minItems"], schema["maxItems"]
        return (
            isinstance(value, list)
            and least <= len(value) <= most
            and all(fits(item, schema["items"]) for item in value)
        )
    assert schema["additionalProperties"] is False
    return (
        isinstance(value, dict)
        and set(value) == set(schema["required"]) == set(schema["properties"])
        and all(fits(value[k], s) for k, s in schema["properties"].items())
    )


@given(truths())
def test_the_schema_of_masks_takes_correct_replies(truth):
    assert fits(truth.reply, masks_schema(MOST))
    number = len(truth.names)
    assert fits(truth.reply, masks_schema(number))
    assert not fits(truth.reply, masks_schema(number - 1))
    assert not fits(truth.reply | {"masks": []}, masks_schema(MOST))


def test_the_schema_of_alternatives_takes_correct_replies():
    reply = {"alternatives": [["blue", "silk"]] * 3}
    assert fits(reply, alternatives_schema(2, 3))
    for masks, alternatives in ((1, 3), (3, 3), (2, 2), (2, 4)):
        assert not fits(reply, alternatives_schema(masks, alternatives))


def test_the_examples_of_the_templates_are_accepted():
    loaded = prompts.load()
    text = loaded.mask.user
    (description,) = re.findall(r"^Description: ([^{].*)$", text, re.M)
    (kept,) = re.findall(r"stays: category: ([^{].*)$", text, re.M)
    (example,) = re.findall(r"^Reply: (.*)$", text, re.M)
    masked = check_masks(example, description, {"category": kept}, MOST)

    text = loaded.complete.user
    (description,) = re.findall(r"^Description: ([^{].*)$", text, re.M)
    (example,) = re.findall(r"^Reply: (.*)$", text, re.M)
    assert description == masked.text
    lines = [
        f"{k}. {name}: {value}"
        for k, (name, value) in enumerate(masked.attributes.items(), 1)
    ]
    assert "\n".join(lines) in text
    assert f"Alternatives: 2, each with {len(lines)} values" in text
    assert len(check_alternatives(example, masked, 2)) == 2
