"""The writer without a model: other values of the items' own attributes.

It stands where `prompted.py` does, and is the baseline that a language model
must beat. An attribute's value is exchanged for a contrasting one that
the catalogue has, if possible on an item of the same kind; attributes that
are functions of one another change together, to values that were seen
together.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from neggen_jax.catalog import ItemRecords
from neggen_jax.errors import InputError, nearest
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.generation.tasks import Plan, Task
from neggen_jax.generation.values import contrast, mining, seen
from neggen_jax.generation.writers import edits

CONTRASTS = ("contrasting", "random")
# Draws after which an alternative that repeats an earlier one is given up.
_TRIES = 16


class Attributes:
    """Writes counterfactuals by rule. See `Writer`.

    What is written of an item depends on the catalogue, the options and the
    item alone, whatever is written before it or elsewhere. Nobody is asked for
    it, so that a record's `attempts`, the requests that were made, are 0.

    Args:
      records: the items.
      plan: what may be changed.
      alternatives: K, counterfactuals an item and modality; fewer where
        there are not so many different ones.
      changes: attributes changed at a time, at most; a group of attributes
        that are functions of one another counts once.
      contrast: "contrasting", or "random": the ablation, which changes as
        many attributes, but any at all - kept or not, however they belong
        together - each to any value that the catalogue has.
      probe: instead, one counterfactual for each attribute that may be
        changed, in which it changes alone.
      seed: another one draws others.

    Raises:
      InputError: for unknown words, or if nothing can be changed.
    """

    name = "attributes"
    model = ""
    prompt_version = ""
    concurrency = 1  # it never waits

    def __init__(
        self,
        records: ItemRecords,
        plan: Plan,
        *,
        alternatives: int = 1,
        changes: int = 2,
        contrast: str = "contrasting",
        probe: bool = False,
        seed: int = 0,
    ):
        if contrast not in CONTRASTS:
            raise InputError(
                f"There is no contrast {contrast!r}.",
                where="--contrast",
                fix=nearest(contrast, CONTRASTS),
            )
        for flag, number in (
            ("alternatives", alternatives),
            ("changes", changes),
        ):
            if number < 1:
                raise InputError(
                    f"Counterfactuals cannot be written with {number} {flag}.",
                    where=f"--{flag}",
                    expected="at least 1",
                )
        _check_plan(plan)
        self._plan, self._seed = plan, seed
        self._items = records.attributes
        self._alternatives, self._changes = alternatives, changes
        self._random, self._probe = contrast == "random", probe
        self._groups = {
            modality: _groups(records, plan, modality, alone=probe)
            for modality in plan.modalities
        }
        self._values = _values(records, plan) if self._random else {}

    def settings(self) -> dict[str, Any]:
        """All that shapes what is written, as JSON."""
        about: dict[str, Any] = {
            "backend": self.name,
            "model": self.model,
            "prompt_version": self.prompt_version,
            "seed": self._seed,
        }
        if self._probe:
            plan = self._plan
            probes = {m: list(plan.changeable[m]) for m in plan.modalities}
            return about | {"probes": probes}
        return about | {
            "alternatives": self._alternatives,
            "changes": self._changes,
            "contrast": "random" if self._random else "contrasting",
        }

    async def write(self, task: Task) -> Record:
        """Writes what might have been, or why not."""
        return self.record(task)

    async def close(self) -> None:
        """There is nothing to give back."""

    def record(self, task: Task) -> Record:
        """`write`, for who does not wait."""
        base: dict[str, Any] = {
            "item": task.item,
            "id": task.id,
            "modality": task.modality,
            "backend": self.name,
        }
        changed = list(self._draw(task))
        every = {**task.kept, **task.attributes}
        old = {
            name: every[name]
            for name in self._told(task.modality)
            if any(name in new for new in changed)
        }
        template = self._template(task, old)
        described = template.factual()
        if not changed:
            problem = "no other value in the catalogue"
            if not task.attributes:
                problem = "no attribute that may be changed"
            return Record(**base, description=described, error=problem)
        return Record(
            **base,
            description=described,
            attributes=old,
            masked=template.masked(old),
            negatives=tuple(
                Alternative(
                    template.changed(new),
                    {
                        name: (old[name], new[name])
                        for name in old
                        if name in new
                    },
                )
                for new in changed
            ),
        )

    def _draw(self, task: Task) -> list[dict[str, str]]:
        """New values of each alternative, all different."""
        if self._probe:
            drawn = (
                self._new_values(_dice(self._seed, task, k), [group], task)
                for k, group in enumerate(self._groups[task.modality])
            )
            return [new for new in drawn if new]
        found: list[dict[str, str]] = []
        for number in range(self._alternatives):
            dice = _dice(self._seed, task, number)
            for _ in range(_TRIES):
                new = self._alternative(dice, task)
                if new and new not in found:
                    found.append(new)
                    break
        return found

    def _alternative(self, dice: random.Random, task: Task) -> dict[str, str]:
        groups = [
            group
            for group in self._groups[task.modality]
            if self._others(group, task)
        ]
        chosen = _shuffled(dice, groups)[: self._changes]
        new = self._new_values(dice, chosen, task)
        return self._scrambled(dice, task, len(new)) if self._random else new

    def _others(
        self, group: seen.Combinations, task: Task
    ) -> list[tuple[dict[str, str], int]]:
        ours = {
            n: task.attributes[n] for n in group.group if n in task.attributes
        }
        if not ours:
            return []
        return group.others(ours, self._items[task.item])

    def _new_values(
        self,
        dice: random.Random,
        groups: Sequence[seen.Combinations],
        task: Task,
    ) -> dict[str, str]:
        new: dict[str, str] = {}
        for group in groups:
            others = self._others(group, task)
            if not others:
                continue
            picked = _picked(dice, others)
            if _said(picked, task):
                unsaid = [one for one in others if not _said(one[0], task)]
                picked = _picked(dice, unsaid or others)
            new |= {
                name: value
                for name, value in picked.items()
                if not contrast.same_value(value, task.attributes[name])
            }
        return new

    def _scrambled(
        self, dice: random.Random, task: Task, count: int
    ) -> dict[str, str]:
        """Any values for any attributes, those that are kept as well."""
        every = {**task.kept, **task.attributes}
        names = [
            name
            for name in self._told(task.modality)
            if not seen.vague(every.get(name, ""))
        ]
        new: dict[str, str] = {}
        for name in _shuffled(dice, names):
            values = self._values[name]
            for _ in range(_TRIES if len(new) < count else 0):
                value = values[int(dice.random() * len(values))]
                if not contrast.same_value(value, every[name]):
                    new[name] = value
                    break
        return new

    def _told(self, modality: str) -> tuple[str, ...]:
        """Attributes that are told of a modality, in order."""
        return tuple(
            dict.fromkeys((*self._plan.kept, *self._plan.shown[modality]))
        )

    def _template(self, task: Task, old: Mapping[str, str]) -> edits.Template:
        every = {**task.kept, **task.attributes}
        left = [value for name, value in every.items() if name not in old]
        if task.modality == "text":
            return edits.take_apart(task.text, old, left)
        return caption(task, self._plan.kept, old)


def _said(new: Mapping[str, str], task: Task) -> bool:
    """Whether a text tells some of these values already."""
    return task.modality == "text" and any(
        value.lower() in task.text.lower()
        and mining.whole(value).search(task.text)
        for value in new.values()
    )


def caption(
    task: Task, kinds: Sequence[str], old: Mapping[str, str]
) -> edits.Template:
    """A picture in words: what kind of thing, and the attributes it shows.

    Args:
      task: of a picture.
      kinds: the attributes that say what kind of thing it is.
      old: attributes to have places, with their values.
    """
    every = {**task.kept, **task.attributes}
    shown = {
        name: edits.Place(name, edits.lowered(value))
        for name, value in every.items()
        if name not in kinds and not seen.vague(value)
    }
    kind = next((k for k in kinds if not seen.vague(every.get(k, ""))), "")
    noun = edits.Place(kind, edits.raised(every.get(kind, "product")))
    # Neither articles nor pronouns, which would have to agree.
    pieces: list[str | edits.Place] = [noun, "."]
    for number, (name, place) in enumerate(shown.items()):
        last = number == len(shown) - 1
        joint = " The" if number == 0 else " and the" if last else ", the"
        pieces += [f"{joint} {edits.spoken(name)} is ", place]
    pieces += ["."] if shown else []
    return edits.Template.of(pieces, old)


def _groups(
    records: ItemRecords, plan: Plan, modality: str, alone: bool
) -> list[seen.Combinations]:
    """What changes together, with the values it could have."""
    changeable = plan.changeable[modality]
    shown = [
        name
        for name in plan.shown[modality]
        if name not in (*plan.kept, *plan.again)
    ]
    relations = seen.Dependencies(records.attributes)
    found = []
    for group in seen.together(shown, relations):
        ours = tuple(name for name in group if name in changeable)
        # What belongs to the group and stays should still be true.
        stays = tuple(name for name in group if name not in changeable)
        levels = [
            (*plan.kept, *plan.again, *stays),
            (*plan.kept, *plan.again),
            plan.kept,
        ]
        if not set(ours) & set(plan.mined):
            # Words of a text say too little to be those of any other kind.
            levels += [plan.again, ()]
        for part in [(name,) for name in ours] if alone else [ours]:
            if part:
                found.append(
                    seen.Combinations(records.attributes, part, levels)
                )
    return found


def _values(records: ItemRecords, plan: Plan) -> dict[str, list[str]]:
    """All values of each attribute, sorted."""
    names = {*plan.kept, *plan.shown["text"], *plan.shown["image"]}
    found: dict[str, set[str]] = {name: set() for name in names}
    for item in records.attributes:
        for name in names & item.keys():
            if not seen.vague(item[name]):
                found[name].add(item[name].strip())
    return {name: sorted(values) for name, values in found.items()}


def _check_plan(plan: Plan) -> None:
    for modality in plan.modalities:
        if plan.changeable[modality]:
            continue
        known = sorted({*plan.shown["text"], *plan.shown["image"]})
        if not known:
            raise InputError(
                "The items have no attributes that could be changed.",
                expected="structured attributes, such as brand or colour",
                fix="use a language model: --backend=openai or transformers",
            )
        flag = "image_attributes" if modality == "image" else "changeable"
        raise InputError(
            f"No attribute of the modality {modality!r} may be changed.",
            expected="attributes that it shows, beside those that are kept",
            found=f"kept: {', '.join((*plan.kept, *plan.again)) or 'none'}",
            fix=f"name some with --{flag}=a,b (known: {', '.join(known)}), or "
            "leave the modality out with --modalities",
        )


def _dice(seed: int, task: Task, number: int) -> random.Random:
    """Random numbers of one alternative of one item, and of nothing else."""
    key = f"{seed}/{task.item}/{task.modality}/{number}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "little"))


def _shuffled(dice: random.Random, values: Sequence[Any]) -> list[Any]:
    # Of the generator only `random()` is promised to stay as it is.
    keyed = [(dice.random(), place) for place in range(len(values))]
    return [values[place] for _, place in sorted(keyed)]


def _picked(
    dice: random.Random, others: Sequence[tuple[dict[str, str], int]]
) -> dict[str, str]:
    """Draws by the root of how often values are seen.

    What is usual comes more often, and what is rare does come.
    """
    sums = list(itertools.accumulate(count**0.5 for _, count in others))
    at = bisect.bisect_right(sums, dice.random() * sums[-1])
    return others[min(at, len(sums) - 1)][0]
