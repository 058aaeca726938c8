"""Shards of a set -> its records in one file, counted, and its manifest.

Stands behind `ledger.py`, which writes the shards, and before `encode.py`,
which reads what is written here.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.data.counterfactuals import MANIFEST, RECORDS
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.records import Record
from neggen_jax.generation.sets import ledger
from neggen_jax.generation.sets.ledger import Ledger, Shard

FORMAT = 1
# Reasons and attributes that are told by name; rarer ones are not.
_MOST_KINDS = 100
_LONGEST_KIND = 100
_PART = ("shard", "shards")


@dataclasses.dataclass
class Tally:
    """Counts of records.

    Attributes:
      accepted: modality -> how many.
      failed: modality -> how many.
      negatives: modality -> counterfactuals of the accepted ones.
      reasons: modality -> kind of reason -> how many.
      changed: modality -> attribute -> in how many counterfactuals.
      attempts: requests made in all.
    """

    accepted: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    failed: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    negatives: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    reasons: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    changed: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    attempts: int = 0

    def add(self, record: Record) -> None:
        """Counts one record."""
        modality = record.modality
        self.attempts += record.attempts
        self.negatives[modality] += len(record.negatives)
        if record.accepted:
            self.accepted[modality] += 1
        else:
            self.failed[modality] += 1
            self.reasons[modality][reason_kind(record.error)] += 1
        for made in record.negatives:
            self.changed[modality].update(made.changes.keys())

    def as_json(self) -> dict[str, Any]:
        """As the manifest tells it."""
        return {
            modality: {
                "accepted": self.accepted[modality],
                "failed": self.failed[modality],
                "counterfactuals": self.negatives[modality],
                "reasons": dict(
                    self.reasons[modality].most_common(_MOST_KINDS)
                ),
                "changed": dict(
                    self.changed[modality].most_common(_MOST_KINDS)
                ),
            }
            for modality in records.MODALITIES
            if self.accepted[modality] + self.failed[modality]
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
    if settings[0].get("source") != source:
        raise InputError(
            "The set was written of other items.",
            where=directory,
            expected=f"items of digest {source}, as the dataset has now",
            found=settings[0].get("source"),
            fix="name another --set, or prepare the dataset as it was",
        )
    _check_complete(directory, settings)
    with ledger.disk(directory):
        before = {}
        if (directory / MANIFEST).exists():
            before = ledger.read_json(directory / MANIFEST)
        # A manifest tells of the records that are there, or is not there.
        (directory / MANIFEST).unlink(missing_ok=True)
        tally, digest = Tally(), hashlib.sha256()
        with ledger.replacing(directory / RECORDS) as file:
            for known in settings:
                with _open(directory, known) as shard:
                    for line in shard.lines():
                        tally.add(records.parse(line, shard.path))
                        digest.update(line)
                        file.write(line)
        manifest = {
            "format": FORMAT,
            **{k: v for k, v in settings[0].items() if k != "shard"},
            "counts": tally.as_json(),
            "attempts": tally.attempts,
            "records": digest.hexdigest(),
        }
        if before.get("records") == manifest["records"]:
            # The same texts: their vectors are still theirs.
            known = {k: v for k, v in before.items() if k == "encoding"}
            manifest |= known
        ledger.write_json(directory / MANIFEST, manifest)
    return manifest


def _settings(directory: Path) -> list[dict[str, Any]]:
    """Settings of all shards, in order."""
    paths = sorted(directory.glob("shard-*-of-*.json"))
    found = [ledger.read_json(path) for path in paths]
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
        ledger.check_same(path, found[0], alike)
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


def _check_complete(
    directory: Path, settings: Sequence[Mapping[str, Any]]
) -> None:
    missing = {}
    for known in settings:
        with _open(directory, known) as shard:
            if shard.missing:
                missing[f"{known['shard']}/{known['shards']}"] = shard.missing
    if missing:
        raise InputError(
            "The set is not complete.",
            where=directory,
            expected="a record of each item and modality",
            found=_listed(
                f"{number} missing of shard {label}"
                for label, number in missing.items()
            ),
            fix="go on with the command that began it "
            f"(--shard={next(iter(missing))})",
        )


def _listed(words: Iterable[str]) -> str:
    names = list(words)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
