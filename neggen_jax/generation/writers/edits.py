"""Finding an attribute's value in a text, and writing another one instead.

Used by `attributes.py`. A text is taken apart once, into what stays and the
places of each attribute; description, masked text and counterfactuals are
put together from the same pieces, so they differ nowhere else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from neggen_jax.data.features import joint
from neggen_jax.generation.values.mining import whole


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a text tells an attribute.

    Attributes:
      name: of the attribute.
      words: how the text puts its value.
    """

    name: str
    words: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A text, taken apart.

    Attributes:
      pieces: what stays, and places of attributes.
      values: name -> value, of the attributes that have places.
    """

    pieces: tuple[str | Place, ...]
    values: Mapping[str, str]

    @classmethod
    def of(
        cls, pieces: Iterable[str | Place], values: Mapping[str, str]
    ) -> Template:
        """Makes one; places of attributes that are not in `values` stay."""
        return cls(
            tuple(
                piece.words
                if isinstance(piece, Place) and piece.name not in values
                else piece
                for piece in pieces
                if piece != ""
            ),
            dict(values),
        )

    def factual(self) -> str:
        """The text as it is."""
        return "".join(
            p if isinstance(p, str) else p.words for p in self.pieces
        )

    def masked(self, names: Iterable[str]) -> str:
        """The text with `[MASK_k]` for the k-th of `names`, from 1."""
        marks = {n: f"[MASK_{k}]" for k, n in enumerate(names, 1)}
        return self._with(lambda place: marks.get(place.name, place.words))

    def changed(self, new: Mapping[str, str]) -> str:
        """The text with other values of some attributes."""
        return self._with(
            lambda place: (
                dressed(new[place.name], place.words, self.values[place.name])
                if place.name in new
                else place.words
            )
        )

    def _with(self, put: Callable[[Place], str]) -> str:
        return "".join(p if isinstance(p, str) else put(p) for p in self.pieces)


def spoken(name: str) -> str:
    """An attribute's name in words."""
    return name.replace("_", " ")


def take_apart(
    text: str, values: Mapping[str, str], left: Iterable[str] = ()
) -> Template:
    """Finds the places of attributes in a text.

    "name: value" is always the attribute's. Elsewhere a value is looked for
    as whole words in any case, longer values first; but not if it also is,
    or is part of, a value that stays: then nobody knows whose words they are.
    An attribute that has no place gets one at the end, as "name: value".

    Args:
      text: in words.
      values: name -> value of the attributes to be found.
      left: values of attributes that stay as they are.
    """
    found: dict[int, tuple[int, str]] = {}

    def look(pattern: re.Pattern[str], name: str) -> None:
        for match in pattern.finditer(text):
            start, end = match.span(1)
            if not any(s < end and start < e for s, (e, _) in found.items()):
                found[start] = end, name

    for name, value in values.items():
        label = re.escape(f"{spoken(name)}: ")
        told = rf"(?<!\w){label}({re.escape(value)})(?=;|\.|$)"
        look(re.compile(told), name)
    staying = " | ".join(left)
    for name, value in sorted(values.items(), key=lambda v: -len(v[1])):
        words = whole(value)
        if not words.search(staying):
            look(words, name)
    pieces: list[str | Place] = []
    at = 0
    for start, (end, name) in sorted(found.items()):
        pieces += [text[at:start], Place(name, text[start:end])]
        at = end
    pieces.append(text[at:])
    without = values.keys() - {name for _, name in found.values()}
    for name in values:
        if name in without:
            lead = f"{joint(text.rstrip())}{spoken(name)}: "
            pieces += [lead, Place(name, values[name])]
            text = values[name]
    return Template.of(pieces, values)


def dressed(new: str, words: str, value: str) -> str:
    """A new value as the text would put it.

    Args:
      new: as the catalogue has it.
      words: what stood there.
      value: what stood there as the catalogue has it.
    """
    if words == value:
        return new
    if words == words.lower() or words[0].islower():
        return lowered(new)
    if words == words.upper():
        return new.upper()
    parts = re.findall(r"[^\W\d_]+", words)
    several = len(parts) > 1 or not words[0].isalpha()
    if several and all(part[0].isupper() for part in parts):
        return re.sub(r"(?<![\w'])[^\W\d_]", lambda m: m[0].upper(), new)
    return raised(new)


def raised(value: str) -> str:
    """The first letter in upper case."""
    return value[:1].upper() + value[1:]


def lowered(value: str) -> str:
    """Plain words in lower case; "3D" and "McCoy" stay as they are."""
    return re.sub(
        r"(?<!\w)[^\W\d_][^\W\d_A-Z]+(?!\w)", lambda m: m[0].lower(), value
    )
