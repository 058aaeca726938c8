"""What counts as the same value, and what as a contrast."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.generation.values import contrast
from neggen_jax.generation.values.contrast import (
    UNKNOWN,
    normalised,
    same_value,
)

SAME = [
    ("Red", "red"),
    ("grey", "Gray"),
    ("color", "colour"),
    ("navy", "dark blue"),
    ("Navy-Blue", "Dark  Blue"),
    ("pale pink", "light pink"),
    ("Café", "cafe"),
    ("Brontë", "bronte"),
    ("Bjørn", "Bjorn"),
    ("Straße", "strasse"),
    ("Stripe", "striped"),
    ("stripes", "Stripy"),
    ("polka dots", "dotted"),
    ("Solid", "plain"),
    ("solid colour", "plain"),
    ("red-coloured", "red"),
    ("red in color", "red"),
    ("wooden", "wood"),
    ("women's", "Womens"),
    ("women\u2019s", "woman"),
    ("women", "Woman"),
    ("ladies'", "women"),
    ("children", "Kids"),
    ("dresses", "dress"),
    ("scarves", "scarf"),
    ("hoodies", "hoodie"),
    ("bikinis", "bikini"),
    ("boxes", "box"),
    ("blouses", "blouse"),
    ("t-shirts", "T Shirt"),
    ("tees", "tshirt"),
    ("off-white", "Offwhite"),
    ("V-neck", "v neck"),
    ("personalized", "personalised"),
    ("a floral print", "floral printed"),
    ("cotton & wool", "cotton and wool"),
    ("1,000 sheets", "1000 sheet"),
    ("2,5 mm", "2.5mm"),
    (".5 inch", "0.5 inch"),
    ("two", "2"),
    ("8.5 x 11", "8.5\N{MULTIPLICATION SIGN}11"),
    ("XL", "extra large"),
    ("autumn", "Fall"),
    ("\u2018silk\u2019.", "silk"),
    ("ﬁne", "fine"),  # A ligature.
    ("N/A", "unknown"),
    ("Not specified", "none"),
]

DIFFERENT = [
    ("red", "blue"),
    ("red", "dark red"),
    ("light blue", "dark blue"),
    ("navy", "blue"),
    ("silk", "silky"),
    ("glass", "grass"),
    ("striped", "hooped"),  # Two patterns of the bazaar.
    ("teal", "turquoise"),
    ("shirt dress", "dress shirt"),
    ("A-line", "line"),
    ("2.5 mm", "25 mm"),
    ("10 0", "100"),
    (".5", "5"),
    ("$5", "€5"),
    ("5%", "5"),
    ("H&M", "H&M+"),
    ("S", "L"),
    ("solid oak", "oak"),
    ("か", "が"),  # A mark that makes another letter.
    ("й", "и"),
    ("हिन्दी", "हन्द"),
    ("!!!", "???"),
    ("", "red"),
    ("men", "women"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_in_other_words(one, other):
    assert same_value(one, other)
    assert same_value(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_a_contrast(one, other):
    assert not same_value(one, other)
    assert not same_value(other, one)


@pytest.mark.parametrize("value", ["n/a", "None", "undefined", "Unknown."])
def test_a_value_that_says_nothing(value):
    assert normalised(value) == UNKNOWN


@pytest.mark.parametrize("value", ["Nonesuch", "another", "no stripes"])
def test_a_value_that_says_something(value):
    assert normalised(value) != UNKNOWN


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(value):
    once = normalised(value)
    assert normalised(once) == once
    assert same_value(value, once)


@given(st.text(alphabet="aeghinorsty s'-", max_size=24))
def test_normalising_words_twice_changes_nothing(value):
    # Letters that make plurals, synonyms and articles.
    assert normalised(normalised(value)) == normalised(value)


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=30))
def test_case_and_outer_spaces_make_no_difference(value):
    assert same_value(f"  {value.upper()} ", value.lower())


def test_what_tables_keep_is_kept():
    # Else a word would be the same as its synonym, but not as itself.
    tables = (
        contrast._WORDS,
        contrast._VALUES,
        contrast._SAME_PHRASES,
        contrast._SINGULAR,
    )
    for table in tables:
        for other, kept in table.items():
            assert normalised(kept) == normalised(normalised(kept))
            assert same_value(other, kept), (other, kept)
