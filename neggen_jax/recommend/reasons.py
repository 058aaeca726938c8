"""Why an item is on somebody's list: what they have, and what the item is.

Two kinds of reasons, both in units of the score:

- *item*: what an item of the user's history adds to the score, by the linear
  map of `folding.py`; with these, the map's constant and what the vector has
  beyond the map, the score is complete. For an encoder that propagates over
  the user-item graph the largest part is exact, else it is foreseen.
- *attribute*, of runs with a causal module: by how much the item's score for
  this user falls when one attribute is another, as a counterfactual of the
  item has it, all else being the same (`probes.py`). An alternative that
  changes several attributes at once tells of them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.catalog import Counterfactuals
from neggen_jax.data import counterfactuals as sets
from neggen_jax.data import store
from neggen_jax.generation import records
from neggen_jax.negatives.counterfactual import Counterfactual
from neggen_jax.probes import Probe, ask, check_space, source_of
from neggen_jax.recommend.folding import Folding
from neggen_jax.recommend.lists import Lists
from neggen_jax.run import Run

# (modality, item, alternative) -> attribute, its value, the other one.
Changes = Mapping[tuple[str, int, int], tuple[str, str, str]]


def by_items(
    folding: Folding, history: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """What each item of a history adds to some scores, `[n, k]`.

    Args:
      folding: the map.
      history: int32 `[n]`.
      vectors: `[k, d]`, of the items that are recommended.
    """
    return folding.parts(history) @ vectors.T


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """Asks a run's causal module about attributes of items.

    Attributes:
      run: composed.
      params: of the recommender.
      source: name of the source that has the module.
      known: the set of counterfactuals.
      which: its alternatives.
      changes: what each of them changes.
      base: float32 `[num_items, d]`, items without their effects.
    """

    run: Run
    params: Any
    source: str
    known: Counterfactuals
    which: list[Probe]
    changes: Changes
    base: np.ndarray

    def worths(
        self, users: np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """By how much scores fall with each alternative.

        Args:
          users: float32 `[b, d]`.
          items: int32 `[b, k]`; those that are not in the catalogue have none.

        Returns:
          float32 `[b, k, A]`, and bool `[b, k, A]` whether there is one.
        """
        count = len(self.base)
        inside = (items >= 0) & (items < count)
        some, where = np.unique(np.where(inside, items, 0), return_inverse=True)
        # Powers of two: programs are compiled for each number of items.
        rows = np.resize(some, 1 << max(len(some) - 1, 1).bit_length())
        dim = self.base.shape[1]
        said = ask(
            self.run,
            self.params,
            self.source,
            self.known,
            self.which,
            dim,
            rows,
        )
        source = self.run.program.recommender.sources[self.source]
        assert isinstance(source, Counterfactual)
        base = jnp.asarray(self.base[rows][:, None])
        one, other = (
            np.asarray(source.moved(base, jnp.asarray(effect)))
            for effect in (said.before, said.after)
        )
        where = where.reshape(items.shape)
        # Users by blocks would be [b, k, A, d]: each by themselves.
        fall = one - other
        worth = np.stack(
            [fall[w] @ user for w, user in zip(where, users, strict=True)]
        )
        return worth, said.changed[where] & inside[..., None]

    def told(self, item: int, alternative: int) -> dict[str, str] | None:
        """What an alternative changes, as a reason has it."""
        probe = self.which[alternative]
        change = self.changes.get((probe.modality, item, probe.slot))
        if change is None:
            return None
        names = "attribute", "value", "instead"
        return {
            **dict(zip(names, change, strict=True)),
            "modality": probe.modality,
        }


def attributes_of(
    run: Run, params: Any, set_name: str = ""
) -> Attributes | None:
    """Makes ready to ask a run about attributes.

    Args:
      run: composed.
      params: of the recommender.
      set_name: of counterfactuals of the dataset; "" for the run's own. One
        with probes changes one attribute at a time.

    Returns:
      None if the run has no causal module, or gives items the
      counterfactuals of others.

    Raises:
      InputError: if there is no such set, or it is of another space.
    """
    sources = run.program.recommender.sources.values()
    ours = run.catalog.counterfactuals
    if not any(isinstance(source, Counterfactual) for source in sources):
        if set_name:
            source_of(run)
        return None
    if ours is None or run.config.data.counterfactuals.shuffled:
        return None
    name = source_of(run)
    directory = Path(run.config.data.path).absolute()
    known = ours
    if set_name and set_name != ours.name:
        digest = store.items_digest(store.describe(directory))
        known = sets.read(directory, set_name, run.catalog.num_items, digest)
        check_space(ours, known)
    source: Any = run.program.recommender.sources[name]
    read = {*(source.modalities or ours.modalities)} & {*known.modalities}
    which = [
        Probe(modality, "", slot, -1)
        for modality in sorted(read)
        for slot in range(known.modalities[modality].alternatives)
    ]

    def encode(module: Any, inputs: Any) -> Any:
        return module.encoder(inputs).whole().items

    model = run.program.recommender
    base = jax.jit(
        lambda params, inputs: model.apply(
            {"params": params}, inputs, method=encode
        )
    )(params, run.inputs)
    return Attributes(
        run,
        params,
        name,
        known,
        which,
        _changes(sets.locate(directory, known.name), known),
        np.asarray(base, np.float32)[: run.catalog.num_items],
    )


def _changes(path: Path, known: Counterfactuals) -> Changes:
    """What the records of a set say of its alternatives."""
    probes = known.manifest.get("probes")
    found = {}
    for _, record, _ in records.read(path / sets.RECORDS):
        for number, made in enumerate(record.negatives):
            slot = number
            if probes is not None:
                (changed,) = made.changes
                slot = probes[record.modality].index(changed)
            pairs = made.changes.values()
            found[record.modality, record.item, slot] = (
                ", ".join(made.changes),
                ", ".join(old for old, _ in pairs),
                ", ".join(new for _, new in pairs),
            )
    return found


class Reasons:
    """The reasons of lists.

    Args:
      folding: the map from histories to vectors.
      attributes: of a run that has them.
      vectors: float32 `[num_items, d]`, of all items that are ranked.
      count: at most so many of each kind.
    """

    def __init__(
        self,
        folding: Folding,
        attributes: Attributes | None,
        vectors: np.ndarray,
        count: int,
    ):
        self._folding, self._attributes = folding, attributes
        self._vectors, self._count = vectors, count

    def __call__(self, lists: Lists, histories: list[np.ndarray]) -> Any:
        """Reasons of each user's items, `[b][k]` lists of rows.

        Items are told by their row numbers.
        """
        shape = lists.items.shape
        worth = there = np.zeros((*shape, 0))
        if self._attributes is not None:
            worth, there = self._attributes.worths(lists.vectors, lists.items)
        return [
            [
                [*items, *self._of_item(item, worth[b, n], there[b, n])]
                for n, (item, items) in enumerate(
                    zip(
                        lists.items[b],
                        self._of_history(histories[b], lists.items[b]),
                        strict=True,
                    )
                )
            ]
            for b in range(shape[0])
        ]

    def _of_history(self, history: np.ndarray, items: np.ndarray) -> Any:
        # Nobody asks about the end of a list that is short.
        worth = by_items(self._folding, history, self._vectors[items])
        best = np.argsort(-worth, axis=0, kind="stable")[: self._count]
        return [
            [
                {
                    "kind": "item",
                    "worth": float(worth[at, n]),
                    "item": history[at],
                }
                for at in column
                if worth[at, n] > 0
            ]
            for n, column in enumerate(best.T)
        ]

    def _of_item(
        self, item: int, worth: np.ndarray, there: np.ndarray
    ) -> list[dict[str, Any]]:
        found = []
        for at in np.argsort(-worth, kind="stable"):
            assert self._attributes is not None
            told = self._attributes.told(int(item), int(at))
            if there[at] and worth[at] > 0 and told is not None:
                found.append(
                    {"kind": "attribute", "worth": float(worth[at]), **told}
                )
        return found[: self._count]
