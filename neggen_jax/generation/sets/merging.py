"""Shards of a set -> its records in one file, counted, and its manifest.

Stands behind `ledger.py`, which writes the shards, and before `encode.py`,
which reads what is written here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.data.counterfactuals import MANIFEST, RECORDS
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.records import Record
from neggen_jax.generation.sets import files
from neggen_jax.generation.sets.ledger import Ledger, Shard

FORMAT = 1
# Reasons and attributes that are told by name; rarer ones are not.
_MOST_KINDS = 100
_LONGEST_KIND = 100
_PART = ("shard", "shards")


@dataclasses.dataclass
class Counts:
    """Counts of the records of one modality.

    Attributes:
      records: how many.
      accepted: of them.
      attempts: requests made in all.
      negatives: counterfactuals.
      reasons: kind of reason -> how many failed for it.
      changed: attribute -> in how many counterfactuals.
    """

    records: int = 0
    accepted: int = 0
    attempts: int = 0
    negatives: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    changed: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Counts one record."""
        self.records += 1
        self.accepted += record.accepted
        self.attempts += record.attempts
        self.negatives += len(record.negatives)
        if not record.accepted:
            self.reasons[reason_kind(record.error)] += 1
        for made in record.negatives:
            self.changed.update(made.changes.keys())

    def as_json(self) -> dict[str, Any]:
        """As the manifest tells it."""
        return {
            "accepted": self.accepted,
            "failed": self.records - self.accepted,
            "counterfactuals": self.negatives,
            "reasons": dict(self.reasons.most_common(_MOST_KINDS)),
            "changed": dict(self.changed.most_common(_MOST_KINDS)),
        }


def reason_kind(error: str) -> str:
    """What kind of reason it is: the reason without its particulars.

    What is quoted, numbers but of HTTP, and what follows the first sentence
    or the third colon would make a kind of each record.
    """
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", " ".join(error.split()))
    text = re.sub(r"(?<!HTTP )(?<!\d)\d+(?:[.,]\d+)*", "N", text)
    text = re.split(r"\.(?=\s|$)|\s\(|;", text, maxsplit=1)[0]
    return ":".join(text.split(":")[:3])[:_LONGEST_KIND].strip() or "unknown"


def merge(directory: Path, source: str) -> dict[str, Any]:
    """Makes one file of all shards of a set.

    Args:
      directory: of the set.
      source: digest of the items' records now, of `store.items_digest`.

    Returns:
      The manifest.

    Raises:
      InputError: if a shard is missing, not complete, of other settings or
        being written, or the disk is full.
    """
    settings = _settings(directory)
    files.check_source(directory, settings[0], source)
    manifest, merged = directory / MANIFEST, directory / RECORDS
    digest = hashlib.sha256()
    counts = {modality: Counts() for modality in records.MODALITIES}
    with contextlib.ExitStack() as stack:
        shards = [stack.enter_context(_open(directory, s)) for s in settings]
        _check_complete(directory, shards)
        stack.enter_context(files.disk(directory))
        before = files.read_json(manifest) if manifest.exists() else {}
        # A manifest tells of the records that are there, or is not there.
        manifest.unlink(missing_ok=True)
        with files.replacing(merged) as file:
            for shard in shards:
                for line in shard.lines():
                    record = records.parse(line, shard.path)
                    counts[record.modality].add(record)
                    digest.update(line)
                    file.write(line)
        about = {
            "format": FORMAT,
            **{k: v for k, v in settings[0].items() if k != "shard"},
            "counts": {m: c.as_json() for m, c in counts.items() if c.records},
            "attempts": sum(c.attempts for c in counts.values()),
            "records": digest.hexdigest(),
        }
        if before.get("records") == about["records"] and "encoding" in before:
            # The same texts: their vectors are still theirs.
            about["encoding"] = before["encoding"]
        files.write_json(manifest, about)
    return about


def _settings(directory: Path) -> list[dict[str, Any]]:
    """Settings of all shards, in order."""
    paths = sorted(directory.glob("shard-*-of-*.json"))
    found = [files.read_json(path) for path in paths]
    if not found:
        raise InputError(
            "There are no shards to merge.",
            where=directory,
            fix="generate them first: launch/generate.py without --merge",
        )
    for path, known in zip(paths, found, strict=True):
        _check_shard(path, known)
    count = found[0]["shards"]
    missing = sorted(set(range(count)) - {known["shard"] for known in found})
    if missing:
        raise InputError(
            "Not all shards of the set are there.",
            where=directory,
            expected=f"{count} shards",
            found=f"none of {_listed(f'{i}/{count}' for i in missing)}",
            fix=f"generate them first: --shard={missing[0]}/{count}",
        )
    for path, known in zip(paths, found, strict=True):
        alike = {**known, "shard": found[0]["shard"]}
        files.check_same(path, found[0], alike)
    return sorted(found, key=lambda known: known["shard"])


def _check_shard(path: Path, known: Mapping[str, Any]) -> None:
    place = re.fullmatch(r"shard-(\d+)-of-(\d+)", path.stem)
    told = known.get("shard"), known.get("shards")
    sound = isinstance(known.get("items"), int) and all(
        modality in records.MODALITIES
        for modality in known.get("modalities") or ("none",)
    )
    if not sound or place is None or told != tuple(map(int, place.groups())):
        raise InputError(
            "The settings of a shard are not what they should be.",
            where=path,
            found=f"shard {told[0]} of {told[1]}",
            fix="bring the file back, or generate the set again",
        )


def _open(directory: Path, known: Mapping[str, Any]) -> Ledger:
    shard = Shard(known["shard"], known["shards"], known["items"])
    settings = {k: v for k, v in known.items() if k not in _PART}
    return Ledger(directory, shard, tuple(known["modalities"]), settings)


def _check_complete(directory: Path, shards: Sequence[Ledger]) -> None:
    gaps = {
        f"{book.shard.index}/{book.shard.count}": book.missing
        for book in shards
        if book.missing
    }
    if gaps:
        raise InputError(
            "The set is not complete.",
            where=directory,
            expected="a record of each item and modality",
            found=_listed(f"{n} missing of shard {s}" for s, n in gaps.items()),
            fix="go on with the command that began it "
            f"(--shard={next(iter(gaps))})",
        )


def _listed(words: Iterable[str]) -> str:
    names = list(words)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
