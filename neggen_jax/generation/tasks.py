"""What is to be written: one task for each modality of each item.

The work list is a function of the dataset and the options alone, in the
order of the items, so that any shard and any later run agree on it. `plan`
settles the options for a catalogue, `make` lists the tasks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from neggen_jax.catalog import ItemRecords
from neggen_jax.data.categories import KINDS
from neggen_jax.data.features import item_text, joint
from neggen_jax.errors import InputError, nearest
from neggen_jax.generation.records import MODALITIES
from neggen_jax.generation.values import seen


@dataclasses.dataclass(frozen=True)
class Task:
    """One modality of one item, to be described and rewritten.

    Attributes:
      item: index of the item.
      id: the source's own identifier.
      modality: "text" or "image".
      text: for "text", what is to be rewritten; for "image", what is known
        of the item in words, which helps to describe its picture. "" where
        there is nothing.
      attributes: structured attributes that this modality shows and that may
        be changed.
      kept: the attributes that say what kind of thing it is, and others that
        this modality shows; never changed.
      image: path of the picture, for "image"; "" where there is none.
    """

    item: int
    id: str
    modality: str
    text: str
    attributes: Mapping[str, str]
    kept: Mapping[str, str]
    image: str = ""

    @property
    def missing(self) -> str:
        """What there would have to be to describe, or "" if it is there."""
        if self.modality == "image":
            return "" if self.image else "the item has no picture"
        return "" if self.text else "the item has no text"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of the work, settled for a catalogue.

    Attributes:
      modalities: to be rewritten, in the order of `records.MODALITIES`.
      shown: modality -> attributes that it shows, kept ones included.
      kept: attributes that say what kind of thing an item is, the most
        telling first.
      again: attributes that those determine and that therefore say the kind
        again; left alone as well.
      changeable: modality -> attributes that may be changed.
      told: attributes that are told in the text beside title and
        description.
      mined: attributes that were found in title or description.
    """

    modalities: tuple[str, ...]
    shown: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...]
    again: tuple[str, ...]
    changeable: Mapping[str, tuple[str, ...]]
    told: tuple[str, ...]
    mined: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "modalities": list(self.modalities),
            "shown": {name: list(self.shown[name]) for name in self.shown},
            "kept": list(self.kept),
            "left_alone": list(self.again),
            "changeable": {m: list(self.changeable[m]) for m in self.shown},
            "told": list(self.told),
            "mined": list(self.mined),
        }


def plan(
    records: ItemRecords,
    *,
    modalities: Sequence[str] | None = None,
    image_attributes: Sequence[str] | None = None,
    text_attributes: Sequence[str] | None = None,
    kept: Sequence[str] | None = None,
    changeable: Sequence[str] | None = None,
    told: Sequence[str] | None = None,
    mined: Sequence[str] = (),
) -> Plan:
    """Settles what is to be rewritten.

    Args:
      records: the items.
      modalities: of "text" and "image"; by default those that there are.
      image_attributes: what pictures show; by default nothing.
      text_attributes: what texts tell; by default all others.
      kept: attributes that are never changed; by default the first of
        `KINDS` that exists.
      changeable: attributes that alone may be changed; by default all that
        neither are kept nor follow from those that are.
      told: attributes that are told in the text beside title and
        description; by default all of the text.

    Raises:
      InputError: for words that nothing is called.
    """
    known = seen.names_of(records.attributes)
    given = {
        "image_attributes": image_attributes,
        "text_attributes": text_attributes,
        "kept": kept,
        "changeable": changeable,
        "told": told,
    }
    for option, names in given.items():
        for name in names or ():
            if name not in known:
                raise InputError(
                    f"No item has the attribute {name!r}.",
                    where=f"--{option}",
                    fix=nearest(name, known) if known else "leave it out",
                )
    image = tuple(image_attributes or ())
    if text_attributes is None:
        text_attributes = [name for name in known if name not in image]
    text_attributes = list(dict.fromkeys((*text_attributes, *mined)))
    shown = {"text": tuple(text_attributes), "image": image}
    if kept is None:
        kept = [name for name in KINDS if name in known][:1]
    relations = seen.Dependencies(records.attributes)
    again = tuple(
        name
        for name in known
        if name not in kept
        and any(relations.determines(kind, name) for kind in kept)
        and not (changeable and name in changeable)
    )
    allowed = known if changeable is None else changeable
    return Plan(
        modalities=_modalities(records, modalities),
        shown=shown,
        kept=tuple(kept),
        again=again,
        changeable={
            modality: tuple(
                name
                for name in names
                if name in allowed and name not in (*kept, *again)
            )
            for modality, names in shown.items()
        },
        mined=tuple(name for name in mined if name in known),
        told=tuple(
            name
            for name in text_attributes
            if (name not in mined if told is None else name in told)
        ),
    )


def places(chosen: Plan, items: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yields (item, modality) of some items, modality after modality."""
    for item in items:
        for modality in chosen.modalities:
            yield item, modality


def make(
    records: ItemRecords,
    chosen: Plan,
    which: Iterable[tuple[int, str]] | None = None,
) -> Iterator[Task]:
    """Makes tasks.

    Args:
      records: the items.
      chosen: what is to be rewritten.
      which: of `places`; None for those of all items.

    Yields:
      A task for each, also where there is nothing to describe: `Task.missing`
      says so, and so will its record.
    """
    if which is None:
        which = places(chosen, range(len(records)))
    for item, modality in which:
        yield _make(records, chosen, item, modality)


def _make(records: ItemRecords, chosen: Plan, item: int, modality: str) -> Task:
    every = {
        name: value.strip()
        for name, value in records.attributes[item].items()
        if value.strip()
    }
    changed = chosen.changeable[modality]
    attributes = {
        name: every[name]
        for name in changed
        if name in every and not seen.vague(every[name])
    }
    left = (*chosen.kept, *chosen.shown[modality])
    kept = {
        name: every[name]
        for name in dict.fromkeys(left)
        if name in every and name not in changed
    }
    image = ""
    text = item_text(records, item, chosen.told)
    if modality == "image":
        told = [name for name in every if name in (*kept, *attributes)]
        known = "; ".join(f"{n.replace('_', ' ')}: {every[n]}" for n in told)
        title = records.titles[item].strip()
        text = title + joint(title) * bool(known) + known
        if file := records.images[item]:
            image = os.path.join(records.image_root, file)
    return Task(
        item, records.ids[item], modality, text, attributes, kept, image
    )


def _modalities(
    records: ItemRecords, asked: Sequence[str] | None
) -> tuple[str, ...]:
    told = *records.titles, *records.texts, *records.attributes
    there = {"text": any(told), "image": any(records.images)}
    having = [modality for modality in MODALITIES if there[modality]]
    if asked is None:
        asked = having
    for modality in asked:
        if modality not in having:
            raise InputError(
                f"No item has the modality {modality!r}.",
                where="--modalities",
                fix=nearest(modality, having)
                if having
                else "prepare the dataset with it",
            )
    if not asked:
        raise InputError(
            "There is nothing to rewrite.",
            expected="items with texts, attributes or pictures",
            fix="name the modalities with --modalities=text,image",
        )
    return tuple(modality for modality in MODALITIES if modality in asked)
