"""The different texts of a set's records, read from their file when wanted.

`encode.py` encodes them. A set of a large catalogue has more text than fits
in memory: `survey` reads all records once and keeps a few numbers a text,
`Texts.take` reads some texts again.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.data import counterfactuals as sets
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.sets.merging import reason_kind

DESCRIPTION = -1  # in the place of an alternative
_COLUMNS = ("item", "modality", "slot", "line", "place")


@dataclasses.dataclass(frozen=True)
class Texts:
    """The different texts of a set, in the order in which they first occur.

    Attributes:
      path: file of the records.
      digest: SHA-256 of that file.
      num_items: of the dataset.
      modalities: those that have records.
      alternatives: K of the arrays.
      first: `[texts]`, the occurrence in which each text comes first.
      text: `[occurrences]`, which text occurs.
      item: `[occurrences]`, of which item.
      modality: `[occurrences]`, index into `records.MODALITIES`.
      slot: `[occurrences]`, which alternative; `DESCRIPTION` for none.
      line: `[occurrences]`, where the line begins, in bytes.
      place: `[occurrences]`, position among the record's alternatives.
    """

    path: Path
    digest: str
    num_items: int
    modalities: tuple[str, ...]
    alternatives: int
    first: np.ndarray
    text: np.ndarray
    item: np.ndarray
    modality: np.ndarray
    slot: np.ndarray
    line: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def take(self, which: Iterable[int]) -> list[str]:
        """Reads some texts."""
        found, start, record = [], -1, None
        with self.path.open("rb") as file:
            for occurrence in self.first[list(which)]:
                if start != self.line[occurrence]:
                    start = self.line[occurrence]
                    file.seek(start)
                    record = records.parse(file.readline(), self.path)
                assert record is not None
                place = self.place[occurrence]
                found.append(
                    record.description
                    if place == DESCRIPTION
                    else record.negatives[place].text
                )
        return found


def survey(path: Path, num_items: int, manifest: Mapping[str, Any]) -> Texts:
    """Reads all records once: what they hold, and whether they may.

    Args:
      path: directory of the set.
      num_items: of the dataset.
      manifest: of the set. If it names attributes under "probes", alternative
        k is the one that changes the k-th of its modality's alone; else it is
        the k-th of its record.

    Raises:
      InputError: if a record is not what it should be, or none holds a
        counterfactual.
    """
    probes = _probes(manifest, path)
    rows = array.array("q")  # of `_COLUMNS`
    hashes = bytearray()
    seen: set[str] = set()
    reasons: collections.Counter[str] = collections.Counter()
    file = path / sets.RECORDS
    for start, record, where in _read(file, num_items):
        seen.add(record.modality)
        if not record.accepted:
            reasons[reason_kind(record.error)] += 1
        slots = _slots(record, probes, where)
        said = [record.description, *(made.text for made in record.negatives)]
        for place, (slot, piece) in enumerate(
            zip([DESCRIPTION, *slots], said, strict=True), DESCRIPTION
        ):
            if not piece.strip():
                continue
            hashes += _hashed(piece, where)
            rows.extend((record.item, record.key[1], slot, start, place))
    columns = np.array(rows).reshape(-1, len(_COLUMNS)).T
    found = dict(zip(_COLUMNS, columns, strict=True))
    if not (found["slot"] != DESCRIPTION).any():
        failed = ", ".join(f"{n} for {w!r}" for w, n in reasons.most_common(3))
        raise InputError(
            "No record of the set was accepted: there is no counterfactual to "
            "encode.",
            where=file,
            expected="at least one accepted record",
            found=f"{reasons.total()} that failed, of them {failed}"
            if reasons
            else "no records, or none with a word",
            fix="see with launch/inspect_records.py why none was accepted",
        )
    most = int(found["slot"].max()) + 1
    if probes is not None:
        most = max(len(names) for names in probes.values())
    first, text = _distinct(np.frombuffer(bytes(hashes), "<u8").reshape(-1, 2))
    return Texts(
        path=file,
        digest=sets.digest(file),
        num_items=num_items,
        modalities=tuple(m for m in records.MODALITIES if m in seen),
        alternatives=most,
        first=first,
        text=text,
        **found,
    )


def _read(
    path: Path, num_items: int
) -> Iterator[tuple[int, records.Record, str]]:
    """Yields (first byte, record, where it stands), in the order of keys."""
    before = -1, 0
    try:
        for start, record, where in records.read(path):
            if record.key <= before or record.item >= num_items:
                raise InputError(
                    "A record does not stand where it should.",
                    where=where,
                    expected=f"items below {num_items} in order, each "
                    "modality once",
                    found=f"item {record.item}, {record.modality}",
                    fix="merge the shards again: launch/generate.py --merge",
                )
            yield start, record, where
            before = record.key
    except OSError as error:
        raise InputError(
            "The records of the set cannot be opened.",
            where=path,
            found=error.strerror,
            fix="generate them again, or bring them back",
        ) from None


def _slots(
    record: records.Record,
    probes: Mapping[str, Sequence[str]] | None,
    where: str,
) -> list[int]:
    """Which alternative each counterfactual of a record is."""
    if probes is None:
        return list(range(len(record.negatives)))
    names = list(probes.get(record.modality, ()))
    slots: list[int] = []
    for made in record.negatives:
        changed = list(made.changes)
        if len(changed) != 1 or changed[0] not in names:
            raise InputError(
                "A counterfactual of a set with probes is none of them.",
                where=where,
                expected=f"a change of one attribute of {', '.join(names)}",
                found=", ".join(changed),
            )
        slots.append(names.index(changed[0]))
    if len(set(slots)) < len(slots):
        raise InputError(
            "Two counterfactuals of an item are the same probe.", where=where
        )
    return slots


def _probes(
    manifest: Mapping[str, Any], path: Path
) -> Mapping[str, Sequence[str]] | None:
    probes = manifest.get("probes")
    if probes is None:
        return None
    lists = probes.values() if isinstance(probes, dict) else ()
    if not any(lists) or not all(
        isinstance(names, list) and len(set(names)) == len(names)
        for names in lists
    ):
        raise InputError(
            "The probes of a set are not what they should be.",
            where=path / sets.MANIFEST,
            expected="for each modality a list of attributes, each once",
            found=json.dumps(probes),
        )
    return probes


def _hashed(text: str, where: str) -> bytes:
    """16 bytes that stand for a text."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            "A text holds half of a character (a lone surrogate).",
            where=where,
            found=f"{text[error.start]!a} in {text[:40]!a}",
            fix="take it out, or generate the record again",
        ) from None
    return hashlib.blake2b(data, digest_size=16).digest()


def _distinct(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers different rows by where they come first.

    Args:
      hashes: `[n, 2]`.

    Returns:
      The position of each different row, ascending; which of them each row
      is, `[n]`.
    """
    order = np.lexsort(hashes.T)  # stable: equal rows stay in order
    begins = np.ones(len(order), bool)
    begins[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    first = order[begins]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    which = np.empty(len(order), np.int64)
    which[order] = rank[np.cumsum(begins) - 1]
    return np.sort(first), which
