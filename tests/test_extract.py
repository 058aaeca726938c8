"""JSON and descriptions in whatever a model says around them."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replied import KEPT, MOST, RED, truths

from neggen_jax.generation.values.contrast import same_value
from neggen_jax.generation.writers.replies import (
    LONGEST_REPLY,
    Refused,
    check_alternatives,
    check_description,
    check_masks,
    extract,
)


@given(st.text(max_size=60), st.text(max_size=60), truths())
def test_json_is_found_in_whatever_is_said_around_it(before, after, truth):
    reply = before + json.dumps(truth.reply, ensure_ascii=False) + after
    assert truth.check(reply).text == truth.masked


BRACES = st.text(alphabet='{}[]",: \\a', max_size=60)


@given(BRACES, BRACES, truths())
def test_json_is_found_among_brackets(before, after, truth):
    reply = before + json.dumps(truth.reply, indent=1) + after
    assert truth.check(reply).text == truth.masked


@pytest.mark.parametrize(
    "form",
    [
        "```json\n{}\n```",
        "Sure! Here it is:\n\n{}\n\nDo you want more?",
        '<think>{{"masks": [], "masked": ""}} no</think>{}',
        'The form is {{"masks": [...], "masked": "..."}}, so: {}',
        '{{"reply": {}}}',
    ],
)
def test_what_models_say_around_json(form):
    assert extract(form.format('{"masks": [1], "masked": "{}"}'), ["masks"])[
        "masks"
    ] == [1]


def test_trailing_commas_are_overlooked_outside_of_texts():
    found = extract('x {"a": ["b,]", {"c": 1,}, ], "d": "\\",}" , } y', ["a"])
    assert found == {"a": ["b,]", {"c": 1}], "d": '",}'}


@given(st.data(), truths())
def test_a_reply_that_is_cut_is_refused(data, truth):
    whole = json.dumps(truth.reply)
    cut = data.draw(st.integers(0, len(whole) - 1))
    truth.refused("There is no JSON object", whole[:cut])


@pytest.mark.parametrize("key", ["masks", "masked"])
def test_a_key_that_is_missing_is_named(key):
    reply = {"masks": [], "masked": "x"}
    del reply[key]
    with pytest.raises(Refused, match='"masks" and "masked"'):
        extract(json.dumps(reply), ("masks", "masked"))


def test_the_reason_says_where_json_breaks():
    with pytest.raises(Refused, match="char 8"):
        extract('{"a": 1 "b": 2, "c": {x} }', ["a"])


def test_an_object_is_taken_whole():
    assert extract('{"a": {"a": 1}}', ["a"]) == {"a": {"a": 1}}


def test_lines_may_end_inside_a_text():
    assert extract('{"a": "x\ny"}', ["a"]) == {"a": "x\ny"}


def test_a_reply_without_end_is_refused():
    reply = '{"a": 1}' + " " * LONGEST_REPLY
    with pytest.raises(Refused, match="too long"):
        extract(reply, ["a"])


ODD = [
    '{"a":' * 3000,
    '{"a":' + "[" * 9000,
    "{" * 16000,
    '{"a": 1,}' * 900,
    '{"a":1,' * 2300,
    '{"masks": [' * 1000 + "," * 3000 + "]",
    '{"masks": ' + "9" * 5000 + ', "masked": "x"}',
    '{"alternatives": [[NaN, -Infinity, 1e999]]}',
    "{" * 250 + '\\"' * 8000,
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["red", "[MASK_1]", "[MASK_2]", "A [MASK_1] sleeve."])
)
KEYS = st.sampled_from(["masks", "masked", "attribute", "value", "x"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def passed(check, reply, *args):
    """What a check gives, or nothing if it refuses with a reason."""
    try:
        return check(reply, *args)
    except Refused as error:
        reason = error.reason
    assert reason.endswith(".")
    return None


def check_all(reply):
    """What passes is right; what does not is Refused and nothing else."""
    text = "A red laptop sleeve."
    if (made := passed(check_masks, reply, text, KEPT, MOST)) is not None:
        assert made.fill(list(made.attributes.values())) == text
    for made in passed(check_alternatives, reply, RED, 1) or ():
        assert not same_value(made.changes["colour"][1], "red")
    if (made := passed(check_description, reply, 20)) is not None:
        assert len(made.split()) <= 20


@given(st.text())
def test_any_text_is_refused_or_right(text):
    check_all(text)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_json_is_refused_or_right(masks, masked, lists):
    reply = {"masks": masks, "masked": masked, "alternatives": lists}
    check_all(json.dumps(reply))


@pytest.mark.parametrize("reply", ODD, ids=range(len(ODD)))
def test_an_odd_reply_is_refused_soon(reply):
    begun = time.process_time()
    check_all(reply)
    # Less than a tenth of that is usual; some take three without a bound.
    assert time.process_time() - begun < 1


# ---- descriptions


@pytest.mark.parametrize(
    "reply",
    [
        "A red laptop sleeve of felt.",
        "  A red laptop\nsleeve of felt. ",
        '"A red laptop sleeve of felt."',
        "```\nA red laptop sleeve of felt.\n```",
        "**Product description:** A red laptop sleeve of felt.",
        "Description: A red **laptop sleeve** of felt.",
        "<think>Is it felt? {}</think>\nA red laptop sleeve of felt.",
    ],
)
def test_a_description_is_taken_out_of_a_reply(reply):
    expected = "A red laptop sleeve of felt."
    assert check_description(reply, 20) == expected


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("", "too little"),
        ("Sleeve.", "too little"),
        ("<think>A red laptop sleeve</think>", "too little"),
        ('{"description": "A red laptop sleeve"}', "not in JSON"),
        ("- red laptop sleeve\n- of felt", "not in a list"),
        ("1. red laptop sleeve\n2. of felt", "not in a list"),
        ("I'm sorry, I cannot see a picture.", "Say what there is"),
        ("I can\u2019t help with that.", "Say what there is"),
        ("As an AI, I have no eyes.", "Say what there is"),
        ("A red [MASK_1] sleeve", "has a mask"),
        ("A red laptop\x00 sleeve", "no text"),
        ("A red sleeve " * 7, "21 words"),
        ("Redlaptopsleeve" * 17, "1 words and 255 characters"),
    ],
)
def test_what_is_no_description_is_refused(reply, said):
    with pytest.raises(Refused) as caught:
        check_description(reply, 20)
    assert said in caught.value.reason
