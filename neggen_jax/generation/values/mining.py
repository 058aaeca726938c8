"""Attributes that nobody has written down, found in the items' own words.

For the writer without a model: an item without a category still says in its
title what it is, and its description tells colours, materials and the like.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import html
import importlib.resources
import os
import re
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from neggen_jax.catalog import ItemRecords
from neggen_jax.data.categories import KINDS
from neggen_jax.errors import InputError
from neggen_jax.generation.values import contrast, seen

KIND = "kind"
NONE = "none"
# Characters of a description that are about the item for sure; at length
# it may come to speak of others.
_BEGIN = 400
# Items that must share a word before it passes for a kind.
_SHARED = 4
# Where the name of the thing ends and the particulars begin.
_CUT = re.compile(
    r"[,;:()\[\]/|\u2013\u2014]|\s-|-\s"
    r"|\s(?:with|for|in|by|w/|and|&|of|from|to|at|on)\s",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\w-])[^\W\d_]{3,}(?:-[^\W\d_]+)*(?![\w-])")
# Words that end names of things without saying what they are.
_EMPTY = frozenset(
    """
    pack set count piece box roll case kit size color colour style series
    edition model new all black white blue red green clear assorted each
    reg plus wireless compatible replacement
    """.split()  # noqa: SIM905
)


def enriched(
    records: ItemRecords, words: str | None = None
) -> tuple[ItemRecords, tuple[str, ...], str]:
    """Gives items the attributes that their own words tell.

    Args:
      records: the items.
      words: a file like `words.toml`; None for that itself, "none" for no
        attributes but the kind.

    Returns:
      The items, names of what was found, and a digest of the words.
    """
    own = seen.names_of(records.attributes)
    records = with_kinds(records)
    digest = ""
    if words != NONE:
        families, digest = read_words(words)
        records = with_told(records, families)
    names = seen.names_of(records.attributes)
    return records, tuple(n for n in names if n not in own), digest


def with_kinds(records: ItemRecords) -> ItemRecords:
    """Gives each item an attribute "kind", the thing its title names.

    That is, in English, the last noun before the particulars: "label" of
    "Avery Removable Labels, 1 inch, pack of 600". Words that few titles end
    with give way to those before them.

    Args:
      records: the items.

    Returns:
      The records themselves if there is an attribute that says the kind.
    """
    known = {name for item in records.attributes for name in item}
    if known & set(KINDS):
        return records
    # "Canon" is what a thing may be called, but a brand.
    named = {
        contrast.normalised(value)
        for item in records.attributes
        for value in item.values()
    }
    words = [_candidates(title, named) for title in records.titles]
    ends = collections.Counter(each[0] for each in words if each)
    attributes = []
    for item, each in zip(records.attributes, words, strict=True):
        usual = [word for word in each if ends[word] >= _SHARED]
        kind = (usual or each or [""])[0]
        attributes.append({**item, KIND: kind} if kind else item)
    return dataclasses.replace(records, attributes=attributes)


def _candidates(title: str, named: Set[str]) -> list[str]:
    """What a title may name, the likeliest first."""
    for part in _CUT.split(html.unescape(title)):
        words = [contrast.normalised(word) for word in _WORD.findall(part)]
        words = [word for word in words[::-1] if word not in _EMPTY | named]
        if words:
            return words
    return []


def read_words(
    path: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, Family], str]:
    """Reads which words tell which attribute.

    Args:
      path: a file like `words.toml`; None for that itself.

    Returns:
      Attribute -> what finds it, and a digest of the file.

    Raises:
      InputError: if it cannot be read, or is not such a file.
    """
    own = importlib.resources.files("neggen_jax.generation.values")
    try:
        file = own.joinpath("words.toml") if path is None else Path(path)
        data = file.read_bytes()
        tables = tomllib.loads(data.decode("utf-8"))
        found = {name: Family.read(table) for name, table in tables.items()}
    except (OSError, ValueError, TypeError, AttributeError, re.error) as error:
        raise InputError(
            "The file of words cannot be read.",
            where="words.toml" if path is None else path,
            expected="a table of values or patterns for each attribute",
            found=f"{type(error).__name__}: {error}",
            fix="start from a copy of generation/values/words.toml",
        ) from error
    return found, hashlib.sha256(data).hexdigest()[:12]


def with_told(
    records: ItemRecords, families: Mapping[str, Family]
) -> ItemRecords:
    """Gives each item the attributes that its title and text tell.

    An attribute that items have themselves is left to them, and words that
    are part of another attribute's value - the black of "Black & Decker" -
    are not looked at.
    """
    known = set(map(contrast.normalised, seen.names_of(records.attributes)))
    attributes = []
    for item, told in enumerate(records.attributes):
        title = _without(records.titles[item], told)
        begin = records.texts[item][:_BEGIN]
        text = f"{title}. {_without(begin, told)}"
        more = {
            name: value
            for name, family in families.items()
            if contrast.normalised(name) not in known
            and (value := family.first(title if family.titles else text))
        }
        attributes.append({**told, **more})
    return dataclasses.replace(records, attributes=attributes)


def _without(text: str, own: Mapping[str, str]) -> str:
    """A text in lower case, without the values of an item's attributes."""
    text = text.lower()
    for value in own.values():
        if value.strip() and value.strip().lower() in text:
            text = whole(value.strip()).sub(" | ", text)
    return text


@dataclasses.dataclass(frozen=True)
class Family:
    """What finds the values of an attribute.

    Attributes:
      pattern: of any of them, the longest first.
      hints: one of which a text must hold; none if it need not.
      titles: whether it is looked for in titles alone.
    """

    pattern: re.Pattern[str]
    hints: tuple[str, ...]
    titles: bool

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Family:
        """Reads a table of the file."""
        known = {"values", "patterns", "in_titles"}
        if set(table) - known or not set(table) & {"values", "patterns"}:
            raise ValueError(f"{', '.join(table) or 'nothing'} in a table")
        values = sorted(table.get("values", ()), key=len, reverse=True)
        patterns = table.get("patterns", ())
        joined = "|".join([*patterns, *map(re.escape, values)])
        hints = () if patterns else tuple(value.lower() for value in values)
        titles = bool(table.get("in_titles", False))
        return cls(whole(joined, escaped=True), hints, titles)

    def first(self, text: str) -> str:
        """The first value in a text in lower case, or ""."""
        # To look for plain words first saves most of the time.
        if self.hints and not any(hint in text for hint in self.hints):
            return ""
        match = self.pattern.search(text)
        return " ".join(match[0].split()) if match else ""


@functools.lru_cache(maxsize=4096)
def whole(value: str, escaped: bool = False) -> re.Pattern[str]:
    """Finds a value as whole words in any case; its group 1.

    What a hyphen ties to other words is not the value: no lace in "lace-up".

    Args:
      value: what is looked for.
      escaped: whether it is a regular expression already.
    """
    words = value if escaped else re.escape(value)
    return re.compile(rf"(?<!\w)(?<!\w-)({words})(?!\w)(?!-\w)", re.IGNORECASE)
