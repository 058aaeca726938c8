"""Records of a counterfactual set on disk: resumable and sharded.

`generate.py` writes what it gets into a `Ledger`, one for each shard
of the items; `merging.py` merges them when all are complete. Files of a set:

    shard-<i>-of-<n>.json      settings: all that shapes the records
    records-<i>-of-<n>.jsonl   the journal: a line a record, as they complete;
                               sorted when it is complete
    records.jsonl              all shards, sorted by item and modality
    manifest.json              how the set came about; written last

A process may be killed at any time. What it had written of its last line is
cut off by the next one; everything else is there.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from neggen_jax import locks
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.records import Record
from neggen_jax.generation.sets.files import (
    check_same,
    disk,
    read_json,
    replacing,
    write_json,
)

# State of a task.
OPEN, ACCEPTED, FAILED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """A contiguous part of the items.

    Attributes:
      index: of the shard, from 0.
      count: of shards.
      num_items: of the dataset.
    """

    index: int
    count: int
    num_items: int

    @property
    def items(self) -> range:
        """The items of the shard; no shard has two more than another."""
        cuts = [
            self.num_items * place // self.count
            for place in (self.index, self.index + 1)
        ]
        return range(*cuts)

    @property
    def label(self) -> str:
        """As in names of files."""
        return f"{self.index}-of-{self.count}"

    @classmethod
    def parse(cls, text: str, num_items: int) -> Shard:
        """Reads "i/n".

        Raises:
          InputError: if it is not that.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        index, count = map(int, match.groups()) if match else (0, 0)
        if not index < count <= max(num_items, 1):
            raise InputError(
                "This is not a shard of the items.",
                where="--shard",
                expected=f"i/n with i from 0 to n - 1, and n at most "
                f"{num_items}",
                found=text,
            )
        return cls(index, count, num_items)


class Ledger:
    """The records of one shard.

    Args:
      directory: of the set; made if need be.
      shard: which part of the items.
      modalities: that each item has a task of.
      settings: all that shapes the records, as JSON.
      before: lines of records with which the journal begins, if it has none.

    Raises:
      InputError: if another process writes this shard, it or another one
        was begun with other settings or another number of shards, or it is
        damaged.
    """

    def __init__(
        self,
        directory: Path,
        shard: Shard,
        modalities: tuple[str, ...],
        settings: Mapping[str, Any],
        before: Iterable[bytes] = (),
    ):
        self.directory, self.shard = directory, shard
        self._before = before
        self._modalities = modalities
        self._settings = {
            **settings,
            "shard": shard.index,
            "shards": shard.count,
        }
        self.path = directory / f"records-{shard.label}.jsonl"
        self._about = directory / f"shard-{shard.label}.json"
        size = len(shard.items) * len(modalities)
        self._state = bytearray(size)
        self._starts = array.array("q", [-1]) * size
        self._end = 0
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Ledger:
        try:
            with disk(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                self._files.enter_context(_locked(self.directory, self.shard))
                self._check_settings()
                if not _begun(self.path):
                    with replacing(self.path) as file:
                        file.writelines(self._before)
                self._file: BinaryIO = self._files.enter_context(
                    self.path.open("a+b", buffering=0)
                )
            self._recover()
        except BaseException:
            self._files.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __len__(self) -> int:
        """Number of the shard's tasks."""
        return len(self._state)

    @property
    def missing(self) -> int:
        """Number of tasks without a record."""
        return self._state.count(OPEN)

    def state(self, item: int, modality: str) -> int:
        """`OPEN`, `ACCEPTED` or `FAILED`."""
        return self._state[self._place(item, modality)]

    def append(self, record: Record) -> None:
        """Writes one record, which replaces a failed one of the same task.

        Raises:
          InputError: if the disk is full. The journal is then as it was.
        """
        place = self._place(record.item, record.modality)
        if self._state[place] == ACCEPTED:
            raise AssertionError(f"{record.key} is already written")
        line = record.to_line().encode("utf-8", "replace")
        start = self._end
        with disk(self.path):
            try:
                written = 0
                while written < len(line):
                    written += self._file.write(line[written:]) or 0
            except BaseException:
                os.ftruncate(self._file.fileno(), start)
                raise
        self._end += len(line)
        self._note(place, record, start)

    def lines(self) -> Iterator[bytes]:
        """Yields the last record of each task that has one, in order."""
        with self.path.open("rb") as file:
            for start in self._starts:
                if start >= 0:
                    file.seek(start)
                    yield file.readline()

    def finish(self) -> None:
        """Sorts the journal of a complete shard, one record a task.

        Nothing can be written afterwards.

        Raises:
          InputError: if the disk is full. The journal is then as it was.
        """
        assert not self.missing
        with disk(self.path):
            self._file.close()
            with replacing(self.path) as file:
                file.writelines(self.lines())

    def _place(self, item: int, modality: str) -> int:
        row = item - self.shard.items.start
        return row * len(self._modalities) + self._modalities.index(modality)

    def _note(self, place: int, record: Record, start: int) -> None:
        self._state[place] = ACCEPTED if record.accepted else FAILED
        self._starts[place] = start

    def _check_settings(self) -> None:
        others = [
            path.name
            for path in sorted(self.directory.glob("shard-*-of-*.json"))
            if not path.stem.endswith(f"-of-{self.shard.count}")
        ]
        if others:
            raise InputError(
                "The set was begun with another number of shards.",
                where=self.directory,
                expected=f"shards of {self.shard.count}",
                found=", ".join(others[:4]),
                fix="go on with that number, or name another --set",
            )
        for path in self.directory.glob(f"shard-*-of-{self.shard.count}.json"):
            # Told before days are spent on what will not merge.
            label = path.stem.removeprefix("shard-")
            if path != self._about and _begun(
                self.directory / f"records-{label}.jsonl"
            ):
                known = read_json(path)
                ours = {**self._settings, "shard": known.get("shard")}
                check_same(path, known, ours)
                break
        if _begun(self.path):
            known = read_json(self._about)
            check_same(self._about, known, self._settings)
        else:
            write_json(self._about, self._settings)

    def _recover(self) -> None:
        """Reads the journal and cuts off a line that was not finished."""
        for start, record, where in records.read(self.path, torn=True):
            self._check_ours(record, where)
            place = self._place(record.item, record.modality)
            if self._state[place] == ACCEPTED:
                raise InputError(
                    "A task has two records.",
                    where=where,
                    found=f"item {record.item}, {record.modality}",
                    fix="delete one of the lines",
                )
            self._note(place, record, start)
            self._end = start
        with self.path.open("rb") as file:
            file.seek(self._end)
            line = file.readline()
            self._end += len(line) * line.endswith(b"\n")
        with disk(self.path):
            os.ftruncate(self._file.fileno(), self._end)

    def _check_ours(self, record: Record, where: str) -> None:
        if (
            record.item not in self.shard.items
            or record.modality not in self._modalities
        ):
            ours = self.shard.items
            raise InputError(
                "A record is not of this shard.",
                where=where,
                expected=f"items {ours.start} to {ours.stop - 1}, "
                f"{' and '.join(self._modalities)}",
                found=f"item {record.item}, {record.modality}",
                fix="delete the line, or bring back the file that was here",
            )


def _begun(journal: Path) -> bool:
    return journal.exists() and journal.stat().st_size > 0


def _locked(directory: Path, shard: Shard) -> AbstractContextManager[None]:
    """Keeps a shard from being written by two processes at once.

    Raises:
      InputError: if another process writes it.
    """
    return locks.alone(
        directory / f".shard-{shard.label}.lock",
        "Another process writes this shard.",
        directory / f"records-{shard.label}.jsonl",
        "wait for it, or stop it; or take another --shard or --set",
    )
