"""Figures of a counterfactual set: how much there is, and how different.

Made of records, and of their vectors where they are encoded; shown by
`inspect.py`.
"""

from __future__ import annotations

import array
import collections
import hashlib
import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from neggen_jax.catalog import Counterfactuals, Rewritten
from neggen_jax.generation.inspection import wording
from neggen_jax.generation.records import MODALITIES, Record
from neggen_jax.generation.sets import merging

# Counterfactuals whose words are compared, and pairs of items, at most.
SAMPLE = 10_000
BINS = 40
_QUANTILES = (5, 25, 50, 75, 95)
_BLOCK = 8_192


def summary(
    records: Iterable[Record],
    counterfactuals: Counterfactuals | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Counts and compares.

    Args:
      records: of a set, each task once; they are read once, one by one.
      counterfactuals: the same, encoded.
      seed: of the samples that what is costly is measured on.

    Returns:
      JSON of numbers; None stands for what cannot be said. Shares and cosines
      are fractions. `balance["ratio"]` is the mean cosine distance between
      factual and counterfactual of the modality that moves least over that of
      the one that moves most: 1 where all move alike.
    """
    counts = {modality: _Counts(seed) for modality in MODALITIES}
    for record in records:
        counts[record.modality].add(record)
    known = {m: c for m, c in counts.items() if c.records}
    told = {m: c.as_json() for m, c in known.items()}
    vectors = counterfactuals.modalities if counterfactuals else {}
    for modality, about in told.items():
        rows = vectors.get(modality)
        about["similarity"] = rows and _similarity(rows, seed)
    total = sum(c.records for c in known.values())
    accepted = sum(c.accepted for c in known.values())
    return {
        "records": total,
        "accepted": accepted,
        "failed": total - accepted,
        "rate": _share(accepted, total),
        "attempts": sum(c.attempts for c in known.values()),
        "items": _items(known),
        "modalities": told,
        "balance": _balance(told),
    }


def table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Figures by modality.

    Returns:
      Rows; the first holds the modalities, the first of each row its label.
    """
    told = figures["modalities"]
    names = [m for m in MODALITIES if m in told]
    return [
        ("", *names),
        *(
            (label, *(tell(told[name]) for name in names))
            for label, tell in _ROWS
        ),
    ]


def headlines(figures: dict[str, Any]) -> list[str]:
    """What is to be known of the whole set first."""
    total, sizes = figures["records"], figures["items"]
    found = [f"{percent(figures['rate'])} of {total:,} records accepted"]
    if sizes:
        most = max(sizes, key=int)
        kind = " of both modalities" * (most == "2")
        rest = sum(sizes.values()) - sizes[most]
        more = f", {rest:,} more with one of them" * (rest > 0)
        found.append(f"{sizes[most]:,} items with counterfactuals{kind}{more}")
    if requests := figures["attempts"]:  # a rule asks nobody
        found.append(f"{requests / total:.2f} requests a record")
    balance = figures["balance"]
    if balance and balance["ratio"] is not None:
        moved = ", ".join(
            f"{m} {d:.3f}" for m, d in balance["distance"].items()
        )
        found.append(
            f"{balance['ratio']:.2f} balance of the modalities; mean cosine "
            f"distance: {moved}"
        )
    return found


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures of `summary` for the terminal."""
    told = figures["modalities"]
    if not told:
        return []
    rows = table(figures)
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    out = [
        row[0].ljust(widths[0]) + "".join(map(str.rjust, row[1:], widths[1:]))
        for row in rows
    ]
    for modality, about in told.items():
        for title, name in (("changed", "changed"), ("failed", "reasons")):
            for word, count in list(about[name].items())[:8]:
                out.append(f"{modality} {title:<8}{count:>10,}  {word}")
    return [*out, *headlines(figures)]


class _Counts(merging.Counts):
    """What is counted of one modality, and a sample of its texts."""

    def __init__(self, seed: int):
        super().__init__()
        self.described = self.unchanged = self.repeated = 0
        self.sizes: collections.Counter[int] = collections.Counter()
        self.items = array.array("q")
        self._texts, self._descriptions = bytearray(), bytearray()
        self._random = random.Random(seed)
        self._sample: list[tuple[str, str]] = []

    def add(self, record: Record) -> None:
        """Counts one record."""
        before = self.negatives
        super().add(record)
        if record.description:
            self.described += 1
            self._descriptions += _hashed(record.description)
        if record.accepted:
            self.items.append(record.item)
        said = [_plain(record.description)]
        for place, made in enumerate(record.negatives, 1):
            self.sizes[len(made.changes)] += 1
            text = _plain(made.text)
            self.unchanged += text == said[0]
            self.repeated += text in said[1:]
            said.append(text)
            self._texts += _hashed(made.text)
            self._draw(record.description, made.text, before + place)

    def _draw(self, description: str, text: str, number: int) -> None:
        """Keeps a random sample of the `number` pairs there have been."""
        if len(self._sample) < SAMPLE:
            self._sample.append((description, text))
            return
        place = self._random.randrange(number)
        if place < SAMPLE:
            self._sample[place] = description, text

    def as_json(self) -> dict[str, Any]:
        """What is known of the modality without vectors."""
        shares = np.array([wording.changed_share(*p) for p in self._sample])
        return {
            "records": self.records,
            "accepted": self.accepted,
            "failed": self.records - self.accepted,
            "rate": _share(self.accepted, self.records),
            "attempts": self.attempts,
            "reasons": dict(self.reasons.most_common()),
            "counterfactuals": self.negatives,
            "changed": dict(self.changed.most_common()),
            "attributes_changed": {
                str(size): self.sizes[size] for size in sorted(self.sizes)
            },
            "different": _different(self._texts),
            "unchanged": self.unchanged,
            "repeated": self.repeated,
            "described": self.described,
            "different_descriptions": _different(self._descriptions),
            "words_changed": _distribution(shares, 0.0),
        }


def _items(known: dict[str, _Counts]) -> dict[str, int]:
    """How many items have counterfactuals in how many modalities."""
    every = [np.unique(np.array(c.items, np.int64)) for c in known.values()]
    if not every:
        return {}
    _, times = np.unique(np.concatenate(every), return_counts=True)
    return {
        str(number): int((times == number).sum())
        for number in range(1, len(every) + 1)
    }


def _similarity(rows: Rewritten, seed: int) -> dict[str, Any] | None:
    """Cosines of the factual vectors with their counterfactual ones."""
    found = []
    for start in range(0, len(rows.factual), _BLOCK):
        some = slice(start, start + _BLOCK)
        # Rows have length one, or are zero where `present` is False.
        cosines = np.einsum(
            "if,ikf->ik", rows.factual[some], rows.counterfactual[some]
        )
        found.append(cosines[rows.present[some]])
    values = np.concatenate(found)
    there = np.flatnonzero(rows.described)
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(there)[: SAMPLE + 1]
    others = np.einsum(
        "if,if->i", rows.factual[pairs[:-1]], rows.factual[pairs[1:]]
    )
    about = _distribution(values, -1.0)
    if about is None:
        return None
    random_items = _distribution(others, -1.0)
    return about | {"distance": 1 - about["mean"], "items": random_items}


def _distribution(values: np.ndarray, low: float) -> dict[str, Any] | None:
    """Mean, quantiles, and a histogram of equal bins from `low` to 1."""
    if not values.size:
        return None
    values = values.astype(np.float64)
    counts, _ = np.histogram(values.clip(low, 1), BINS, (low, 1.0))
    cuts = np.percentile(values, _QUANTILES)
    return {
        "number": int(values.size),
        "mean": float(values.mean()),
        "quantiles": {
            str(q): float(cut) for q, cut in zip(_QUANTILES, cuts, strict=True)
        },
        "histogram": counts.tolist(),
        "from": low,
    }


def _balance(told: dict[str, Any]) -> dict[str, Any] | None:
    """How far each modality's texts are moved, and how evenly."""
    distances = {
        modality: about["similarity"]["distance"]
        for modality, about in told.items()
        if about["similarity"]
    }
    if not distances:
        return None
    most = max(distances.values())
    ratio = min(distances.values()) / most if len(distances) > 1 else None
    return {"distance": distances, "ratio": ratio if most > 0 else None}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _plain(text: str) -> str:
    """Text without what does not make another one of it."""
    return " ".join(text.casefold().split())


def _hashed(text: str) -> bytes:
    data = _plain(text).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8).digest()


def _different(hashes: bytearray) -> int:
    return len(np.unique(np.frombuffer(bytes(hashes), np.uint64)))


# -- in words ------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share as a person reads it."""
    if share is None:
        return "-"
    text = f"{100 * share:.1f}%"
    # Rounding hides neither the last failure nor the first success.
    if text == "100.0%" and share < 1:
        return "> 99.9%"
    return "< 0.1%" if text == "0.0%" and share > 0 else text


def _of(part: str, whole: str) -> Any:
    def tell(about: dict[str, Any]) -> str:
        total = about[whole]
        share = percent(about[part] / total) if total else "-"
        return f"{about[part]:,} ({share})"

    return tell


def _sizes(about: dict[str, Any]) -> str:
    sizes = about["attributes_changed"]
    total = sum(sizes.values())
    return ", ".join(
        f"{size}: {percent(n / total)}" for size, n in sizes.items()
    )


def _spread(name: str, inner: str = "") -> Any:
    def tell(about: dict[str, Any]) -> str:
        found = about[name]
        if found and inner:
            found = found[inner]
        if not found:
            return "-"
        low, high = found["quantiles"]["5"], found["quantiles"]["95"]
        return f"{found['mean']:.2f} ({low:.2f} to {high:.2f})"

    return tell


# Label of a figure of a modality, and how it is told.
_ROWS = (
    ("records", lambda about: f"{about['records']:,}"),
    ("accepted", _of("accepted", "records")),
    ("counterfactuals", lambda about: f"{about['counterfactuals']:,}"),
    ("attributes changed at once", _sizes),
    ("share of words changed", _spread("words_changed")),
    ("cosine with its counterfactual", _spread("similarity")),
    ("cosine of two random items", _spread("similarity", "items")),
    ("different counterfactuals", _of("different", "counterfactuals")),
    ("different descriptions", _of("different_descriptions", "described")),
    ("same as the description", lambda about: f"{about['unchanged']:,}"),
    ("twice for one item", lambda about: f"{about['repeated']:,}"),
)
