"""Differences between texts, and the places of masks."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.generation.inspection.wording import (
    NEW,
    OLD,
    SAME,
    changed_share,
    difference,
    masked,
)
from neggen_jax.generation.records import Alternative, Record

texts = st.lists(
    st.sampled_from(["red", "blue", " ", "  ", "\n", ".", "dress"])
).map("".join)


@given(texts, texts)
def test_nothing_is_lost_between_two_texts(before, after):
    pieces = difference(before, after)
    assert "".join(w for kind, w in pieces if kind != NEW) == before
    assert "".join(w for kind, w in pieces if kind != OLD) == after
    assert all(words for _, words in pieces)
    kinds = [kind for kind, _ in pieces]
    assert all(a != b for a, b in itertools.pairwise(kinds))
    # A space that both sides of a change begin with is no part of it.
    for (kind, old), (other, new) in itertools.pairwise(pieces):
        if (kind, other) == (OLD, NEW) and old[0].isspace():
            assert old[0] != new[0]
    if before == after:
        assert kinds in ([], [SAME])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "A red dress of wool.",
            "A blue dress of wool.",
            [
                (SAME, "A "),
                (OLD, "red"),
                (NEW, "blue"),
                (SAME, " dress of wool."),
            ],
        ),
        # Words that change together are one change, not two with a space
        # between them.
        (
            "light red dress",
            "dark blue dress",
            [(OLD, "light red"), (NEW, "dark blue"), (SAME, " dress")],
        ),
        (
            "a big red dress",
            "a dress",
            [(SAME, "a"), (OLD, " big red"), (SAME, " dress")],
        ),
        (
            "red dress of oak",
            "blue big dress of elm",
            [
                (OLD, "red"),
                (NEW, "blue big"),
                (SAME, " dress of "),
                (OLD, "oak"),
                (NEW, "elm"),
            ],
        ),
        ("dress", "dress. brand: X", [(SAME, "dress"), (NEW, ". brand: X")]),
        ("", "new", [(NEW, "new")]),
        ("old", "", [(OLD, "old")]),
    ],
)
def test_difference(before, after, expected):
    assert difference(before, after) == expected


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ("a red dress", "a red dress", 0),
        ("a red dress", "a blue dress", 1 - 2 * 2 / 6),
        ("a red dress", "A red dress", 1 - 2 * 2 / 6),
        ("a red dress.", "a red  dress !", 0),
        ("a dress", "a dress of wool", 1 - 2 * 2 / 6),
        ("one", "other", 1),
        ("", "", 0),
        ("...", "!", 0),
        ("", "new", 1),
    ],
)
def test_changed_share(before, after, share):
    assert changed_share(before, after) == pytest.approx(share)


@given(texts, texts)
def test_shares_are_shares(before, after):
    assert 0 <= changed_share(before, after) <= 1
    assert changed_share(before, before) == 0


def test_texts_without_anything_in_common_take_no_time():
    one = " ".join(f"a{i}" for i in range(20_000))
    other = " ".join(f"b{i}" for i in range(20_000))
    begun = time.monotonic()
    pieces = [kind for kind, _ in difference(one, other)]
    assert pieces == [OLD, NEW]
    # 1.6e9 pairs of tokens would take minutes.
    assert time.monotonic() - begun < 10


def test_a_mask_in_a_long_description_takes_no_time():
    long = "red and " * 20_000
    masks = "[MASK_1] and " * 300
    begun = time.monotonic()
    made = record(long, masks + "blue", colour="red")
    assert masked(made)[0] == ("[MASK_1]", "colour")
    assert time.monotonic() - begun < 5


def record(description, masked, **attributes):
    return Record(
        0,
        "A",
        "text",
        description=description,
        attributes=attributes,
        masked=masked,
        negatives=(Alternative("x", {"a": ("b", "c")}),),
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            record("A red dress", "A [MASK_1] dress", colour="red"),
            [("A ", ""), ("red", "colour"), (" dress", "")],
        ),
        # In other letters than the attribute, and mentioned twice.
        (
            record("Red, red", "[MASK_1], [MASK_1]", colour="Red"),
            [("Red", "colour"), (", ", ""), ("red", "colour")],
        ),
        (
            record(
                "Dark Red wool", "[MASK_1] [MASK_2]", a="dark red", b="wool"
            ),
            [("Dark Red", "a"), (" ", ""), ("wool", "b")],
        ),
        # In other words than the attribute.
        (
            record(
                "a dress in navy. OK", "a dress in [MASK_1]. OK", colour="blue"
            ),
            [("a dress in ", ""), ("navy", "colour"), (". OK", "")],
        ),
        (
            record("dark navy", "[MASK_1]", colour="blue"),
            [("dark navy", "colour")],
        ),
        (
            record("red wool", "[MASK_2] [MASK_1]", stuff="wool", colour="red"),
            [("red", "colour"), (" ", ""), ("wool", "stuff")],
        ),
        (
            record("A red dress", "A [MASK_2] dress", colour="red"),
            [("A ", ""), ("red", ""), (" dress", "")],
        ),
        (record("a dress", "a dress"), [("a dress", "")]),
    ],
)
def test_masks_are_found_in_the_description(made, expected):
    assert masked(made) == expected


@pytest.mark.parametrize(
    "made",
    [
        record("A red dress", "One [MASK_1] dress", colour="red"),
        record("A red dress", "A [MASK_1] scarf", colour="red"),
        record("red", "red[MASK_1]", colour="blue"),
    ],
)
def test_masks_that_do_not_fit_are_shown_as_they_are(made):
    assert "".join(words for words, _ in masked(made)) == made.masked


@given(texts, texts, texts, st.sampled_from(["red", "", "wool"]))
def test_masks_never_lose_words(before, value, after, told):
    made = record(before + value + after, f"{before}[MASK_1]{after}", a=told)
    joined = "".join(words for words, _ in masked(made))
    assert joined in (made.description, made.masked)


def test_a_failed_record_without_masks_is_its_description():
    made = Record(0, "A", "text", description="A dress", error="no")
    assert masked(made) == [("A dress", "")]
