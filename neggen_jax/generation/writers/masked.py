"""A description with some of its words taken out, and others put in.

The way back from what a model copied to the words of the description
itself: whatever is filled in, the text outside the masks is the original's.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence

from neggen_jax.generation.values.contrast import normalised

# "[MASK_1]"; its number counts from one.
MASK = re.compile(r"\[MASK_([1-9]\d{0,2})\]")

# What models put for another when they copy.
_SIGNS = str.maketrans(
    {
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{HYPHEN}": "-",
        "\N{NON-BREAKING HYPHEN}": "-",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{MINUS SIGN}": "-",
    }
)
_END = ".,;:!?"


class Mismatch(ValueError):
    """A masked text that does not belong to its description; says why."""


@dataclasses.dataclass(frozen=True)
class Masked:
    """A description and the places of its masks.

    Attributes:
      description: without masks.
      attributes: name -> value, in the words of the description; mask k is
        the k-th.
      places: (start, end, k) of each mask in `description`, in order; k
        counts from 0. A value that is mentioned again has several.
    """

    description: str
    attributes: Mapping[str, str]
    places: tuple[tuple[int, int, int], ...]

    @property
    def text(self) -> str:
        """The description with `[MASK_k]` in the places."""
        return self._put(
            [f"[MASK_{k + 1}]" for k in range(len(self.attributes))]
        )

    @property
    def rest(self) -> str:
        """What is left of the description, spaces for masks."""
        return self._put([" "] * len(self.attributes))

    def fill(self, values: Sequence[str]) -> str:
        """The description with other values.

        Args:
          values: one a mask, in their order. A value in lower case gets a
            capital where the words it replaces have one.
        """
        return self._put(values, capitals=True)

    def _put(self, values: Sequence[str], capitals: bool = False) -> str:
        parts, end = [], 0
        mains = list(self.attributes.values())
        for start, stop, k in self.places:
            old, new = self.description[start:stop], values[k]
            if capitals:
                new = in_case_of(old, new, mains[k])
            parts += [self.description[end:start], new]
            end = stop
        return "".join([*parts, self.description[end:]])


def in_case_of(old: str, new: str, main: str) -> str:
    """Writes a new value as the words that it replaces are written.

    Args:
      old: the words.
      new: the value.
      main: the words of the place that the attribute's value was taken from.

    Returns:
      `new` with a capital if `old` has one and `new` has none, as at the
      beginning of a sentence; in lower case if only `main` stands at such a
      beginning.
    """
    if new.lower() == old.lower():
        return old
    if old[:1].isupper() and new.islower():
        return new[:1].upper() + new[1:]
    if old.islower() and main[:1].isupper() and new[1:].islower():
        return new.lower()
    return new


def align(
    description: str, masked: str, attributes: Mapping[str, str]
) -> Masked:
    """Finds in a description the places that a masked copy of it masks.

    Spaces, case, final punctuation, and the kinds of quotation marks and
    dashes may differ between the two. Places where a value is mentioned once
    more are found as well.

    Args:
      description: the original.
      masked: a copy with `[MASK_k]` for values, each of them once.
      attributes: name -> value of the masks, as copied.

    Raises:
      Mismatch: if filling the masks with the values does not give back the
        description, or a mask cuts a word.
    """
    whole, origin = _folded(description)
    values = list(attributes.values())
    built, spans = "", []
    for position, part in enumerate(MASK.split(masked)):
        if position % 2:
            k = int(part) - 1
            folded = _folded(values[k])[0]
            spans.append((len(built), len(built) + len(folded), k))
        else:
            folded = _folded(part)[0]
        built += folded
    if _bare(whole) != _bare(built):
        raise Mismatch(_difference(whole, built))
    places = [
        _place(description, origin, start, min(stop, len(origin)), k)
        for start, stop, k in spans
    ]
    words = {k: description[first:last] for first, last, k in places}
    return Masked(
        description,
        {name: words[k] for k, name in enumerate(attributes)},
        tuple(sorted(_mentions(description, places))),
    )


def _place(
    text: str, origin: list[int], start: int, stop: int, k: int
) -> tuple[int, int, int]:
    """Goes from a part of a folded text back to whole words of the text."""
    whole = 0 <= start < stop and not (
        # A letter such as "½" becomes several when it is folded.
        (start > 0 and origin[start] == origin[start - 1])
        or (stop < len(origin) and origin[stop] == origin[stop - 1])
    )
    first, last = (origin[start], origin[stop - 1] + 1) if whole else (0, 0)
    last = first + len(text[first:last].rstrip(_END).rstrip())
    if first == last or _cuts(text, first) or _cuts(text, last):
        raise Mismatch(
            f"[MASK_{k + 1}] stands for a part of a word; a value is made "
            "of whole words."
        )
    return first, last, k


def _folded(text: str) -> tuple[str, list[int]]:
    """Text without what may differ in a copy.

    Returns:
      The text, and where in `text` each of its letters comes from.
    """
    letters: list[str] = []
    origin: list[int] = []
    for position, letter in enumerate(text):
        if unicodedata.category(letter) in ("Cc", "Cf"):
            continue
        letter = letter.translate(_SIGNS)
        for one in unicodedata.normalize("NFKD", letter).casefold():
            if not one.isspace():
                letters.append(one)
                origin.append(position)
    return "".join(letters), origin


def _bare(folded: str) -> str:
    """Without punctuation at the end."""
    end = len(folded)
    while end and unicodedata.category(folded[end - 1])[0] == "P":
        end -= 1
    return folded[:end]


def _difference(whole: str, built: str) -> str:
    """Says where two folded texts part."""
    pairs = enumerate(zip(whole, built, strict=False))
    shortest = min(len(whole), len(built))
    at = next((i for i, (one, other) in pairs if one != other), shortest)
    return (
        "With the values in place of the masks, the masked text is not the "
        f"description: after {whole[max(0, at - 24) : at]!r} the description "
        f"has {whole[at : at + 24]!r} and yours {built[at : at + 24]!r} "
        "(spaces left out). Copy every other word unchanged."
    )


def _cuts(text: str, position: int) -> bool:
    """Whether a word or a number goes on across a position.

    Only in scripts with capitals: others write words without spaces.
    """
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if before.isdigit() and after.isdigit():
        return True
    return all(one.lower() != one.upper() for one in (before, after))


def _mentions(
    text: str, places: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Adds the places where the same words stand once more.

    Numbers are left alone - two pockets, two years - and words in capitals
    are found in capitals only: "IT" is not "it".
    """
    found = list(places)
    for start, stop, k in sorted(places, key=lambda x: (x[0] - x[1], x[2])):
        value = text[start:stop]
        letters = sum(one.isalpha() for one in value)
        if letters < 2 or normalised(value).replace(" ", "").isdigit():
            continue
        flags = re.NOFLAG if value.isupper() else re.IGNORECASE
        pattern = r"\s+".join(map(re.escape, value.split()))
        for match in re.finditer(pattern, text, flags):
            first, last = match.span()
            apart = all(last <= low or high <= first for low, high, _ in found)
            if apart and not (_cuts(text, first) or _cuts(text, last)):
                found.append((first, last, k))
    return found
