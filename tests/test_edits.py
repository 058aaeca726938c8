"""Where texts tell attributes, and how other values are put there."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.generation.writers import edits

# -- edits -------------------------------------------------------------------

VALUES = {"colour": "Red", "maker": "B. Co", "size": "2-pack"}
PIECES = ["Red", "red", "RED", "B. Co", "b. co", "2-pack", "x", " ", ". ", "-"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_taken_apart_and_put_together_is_the_same(text):
    template = edits.take_apart(text, VALUES)
    whole = template.factual()
    assert whole.startswith(text)
    assert template.changed({}) == whole
    assert template.masked([]) == whole
    # All places of a value are found, and nothing else is touched.
    gone = template.changed({"colour": "@", "maker": "@", "size": "@"})
    assert not re.search(r"(?<![\w-])red(?![\w-])", gone, re.IGNORECASE)
    rest = [piece for piece in template.pieces if isinstance(piece, str)]
    assert gone == "".join(
        piece if isinstance(piece, str) else "@" for piece in template.pieces
    )
    assert len(rest) <= len(template.pieces)
    for name in VALUES:
        assert any(
            getattr(piece, "name", "") == name for piece in template.pieces
        )


def test_longer_values_are_found_first():
    values = {"colour": "blue", "shade": "dark blue"}
    template = edits.take_apart("Dark blue or blue", values)
    assert template.masked(values) == "[MASK_2] or [MASK_1]"


@pytest.mark.parametrize(
    ("words", "value", "new", "result"),
    [
        ("Red", "red", "dark blue", "Dark blue"),
        ("red", "Red", "Dark Blue", "dark blue"),
        ("RED", "red", "dark blue", "DARK BLUE"),
        ("deep V-neck", "deep v-neck", "round neck", "round neck"),
        ("Red", "Red", "dark blue", "dark blue"),
        ("2-Pack", "2-pack", "10-pack", "10-Pack"),
        ("Dark Red", "dark red", "off-white wool", "Off-White Wool"),
        ("red", "Red", "3D McCoy Print", "3D McCoy print"),
    ],
)
def test_a_new_value_is_written_as_the_old_one_was(words, value, new, result):
    assert edits.dressed(new, words, value) == result
