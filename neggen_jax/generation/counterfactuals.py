"""The pipeline: from a dataset's items to a complete set of counterfactuals.

`launch/generate.py` calls `generate`: tasks that have no record yet go to the
writer, as many at once as it can do; each record goes to the journal as it
completes. Killed or stopped at any time, the same command goes on. When all
records are there they are merged and encoded.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.catalog import Catalog, ItemRecords
from neggen_jax.data import counterfactuals as sets
from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.generation import (
    ledger,
    merging,
    mining,
    pipeline,
    tasks,
    writers,
)
from neggen_jax.generation.ledger import Ledger, Shard
from neggen_jax.generation.progress import Progress
from neggen_jax.generation.records import Record
from neggen_jax.generation.seen import names_of
from neggen_jax.generation.tasks import Plan, Task

_PLAN = (
    "modalities",
    "image_attributes",
    "text_attributes",
    "kept",
    "changeable",
    "told",
)


@dataclasses.dataclass(frozen=True)
class Scope:
    """Which records are written in one call.

    Attributes:
      shard: which part of the items, as "i/n".
      limit: records at most; None for all.
      items: of which items, as "0,5,7-9"; None for all of the shard.
      retry_failed: whether to ask again what has failed before.
    """

    shard: str = "0/1"
    limit: int | None = None
    items: str | None = None
    retry_failed: bool = False


def generate(
    directory: str | os.PathLike[str],
    *,
    backend: str = "attributes",
    set_name: str | None = None,
    scope: Scope = Scope(),
    merge: bool = False,
    encode: bool = True,
    encoder: str = "tfidf",
    encoder_model: str | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Writes counterfactuals of a dataset's items, or goes on with it.

    Args:
      directory: of the dataset.
      backend: who writes, of `writers.OPTIONS`.
      set_name: of the set; by default the backend's.
      scope: which records to write in this call.
      merge: write nothing; merge the shards that are there.
      encode: encode the set when it is complete.
      encoder: "tfidf" or "transformers".
      encoder_model: path or hub name of a sentence encoder.
      **options: of `tasks.plan`, and of the writer.

    Returns:
      The manifest of a complete set; None if there is more to do.

    Raises:
      InputError: for bad options or data, a set that was begun with other
        options, a full disk, or a backend with which there is no going on.
        Records that were written, stay.
      SystemExit: if the process was told to stop (status 128 + signal).
    """
    directory = Path(directory)
    path = sets.locate(directory, set_name or backend)
    known = store.describe(directory)
    if not merge and not _write(directory, path, backend, scope, options):
        return None
    manifest = merging.merge(path, store.items_digest(known))
    summarise(manifest["counts"], path)
    if not encode:
        return manifest
    from neggen_jax.generation import encode as encoding

    encoding.encode(directory, path.name, encoder=encoder, model=encoder_model)
    return sets.read_manifest(directory, path.name)


def _write(
    directory: Path,
    path: Path,
    backend: str,
    scope: Scope,
    options: Mapping[str, Any],
) -> bool:
    """Writes records; whether the whole set is complete now."""
    planned = {n: v for n, v in options.items() if n in _PLAN}
    told = {n: v for n, v in options.items() if n not in _PLAN}
    writers.check(backend, told)
    catalog = store.load(directory, records=True)
    items = catalog.records
    if items is None:
        raise InputError(
            "The dataset has no records of its items.",
            where=directory,
            expected="texts, attributes or pictures",
            fix="prepare it from a source that has them",
        )
    if backend == "attributes":
        items = mining.with_kinds(items)
    known = store.describe(directory)
    plan = _plan(items, catalog, known["source"], backend, planned)
    choice = writers.choose(backend, items, plan, told)
    shard = Shard.parse(scope.shard, catalog.num_items)
    settings = {
        **choice.settings,
        **plan.settings(),
        "items": catalog.num_items,
        "source": store.items_digest(known),
    }
    with Ledger(path, shard, plan.modalities, settings) as book:
        todo, done = _todo(book, plan, scope)
        title = f"{path.name} of {catalog.name}"
        if shard.count > 1:
            title += f", shard {scope.shard}"
        with Progress(title, len(todo) + done, done) as progress:

            def keep(record: Record) -> None:
                book.append(record)
                progress.advance(record.accepted)

            stopped = 0
            if todo:
                writer = choice.load(path / f"requests-{shard.label}.jsonl")
                work = _listed(items, plan, todo)
                stopped = pipeline.run(work, writer, keep)
        return _ended(book, stopped, directory, path.name)


def _ended(book: Ledger, stopped: int, directory: Path, name: str) -> bool:
    """Says what is to be done next; whether the set is complete."""
    if stopped:
        _leave(book, stopped)
    if book.missing:
        print(
            f"{book.missing:,} of {len(book):,} records are still to be "
            "written: the same command without --limit and --items writes "
            "them"
        )
        return False
    book.finish()
    shard = book.shard
    if shard.count > 1:
        print(
            f"shard {shard.index}/{shard.count} is complete; when all are: "
            f"launch/generate.py --data={directory} --set={name} --merge"
        )
    return shard.count == 1


def _todo(
    book: Ledger, plan: Plan, scope: Scope
) -> tuple[list[tuple[int, str]], int]:
    """What is to be written in this call, and how much of it is there."""
    if scope.limit is not None and scope.limit < 1:
        raise InputError(
            "This is no number of records to write.",
            where="--limit",
            expected="at least 1",
            found=scope.limit,
        )
    wanted = _chosen(scope.items, book.shard)
    wrong = (ledger.OPEN, ledger.FAILED)[: 2 if scope.retry_failed else 1]
    todo = [
        (item, modality)
        for item in wanted
        for modality in plan.modalities
        if book.state(item, modality) in wrong
    ]
    done = len(wanted) * len(plan.modalities) - len(todo)
    return todo[: scope.limit], done


def _plan(
    about: ItemRecords,
    catalog: Catalog,
    source: Mapping[str, Any],
    backend: str,
    options: Mapping[str, Any],
) -> Plan:
    """The plan, with what the dataset itself knows of its attributes."""
    asked = {name: options.get(name) for name in _PLAN}
    for name in ("image_attributes", "text_attributes"):
        if asked[name] is None:
            asked[name] = source.get(name)
    if asked["told"] is None and "text" in catalog.features:
        # What the item's own text vectors were made of.
        manifest = catalog.features["text"].manifest
        asked["told"] = manifest.get("source", {}).get("attributes")
    if asked["told"] is None:
        # Of a title that names the kind nobody needs to be told it.
        known = names_of(about.attributes)
        asked["told"] = [n for n in known if n != mining.KIND]
    plan = tasks.plan(about, **asked)
    if (
        backend == "attributes"
        and "image" in plan.modalities
        and not plan.shown["image"]
    ):
        raise InputError(
            "Nobody knows what the pictures show.",
            where="--image_attributes",
            expected="names of the attributes that can be seen",
            fix=f"name them (known: {', '.join(plan.shown['text'])}), leave "
            "pictures out with --modalities=text, or let a language model "
            "look at them with --backend",
        )
    return plan


def _chosen(text: str | None, part: Shard) -> Sequence[int]:
    """The items of "0,5,7-9" that are in a shard, in order."""
    if text is None:
        return part.items
    found = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", word)
        first, last = 1, 0
        if match:
            first = int(match[1])
            last = int(match[2] or match[1])
        if not first <= last < part.num_items:
            raise InputError(
                "These are not items of the dataset.",
                where="--items",
                expected="indices and ranges such as 0,5,7-9, below "
                f"{part.num_items}",
                found=word,
            )
        found |= set(range(first, last + 1)) & set(part.items)
    return sorted(found)


def _listed(
    items: ItemRecords, plan: Plan, todo: Sequence[tuple[int, str]]
) -> Iterator[Task]:
    """The tasks of some (item, modality)."""
    wanted = set(todo)
    for task in tasks.make(items, plan, sorted({item for item, _ in todo})):
        if (task.item, task.modality) in wanted:
            yield task


def _leave(book: Ledger, number: int) -> None:
    """Says how to go on, and ends the process."""
    print(
        f"stopped: {len(book) - book.missing:,} of {len(book):,} records are "
        f"in {book.path}; the same command goes on from there",
        flush=True,
    )
    sys.stderr.flush()
    if any(
        thread is not threading.main_thread() and not thread.daemon
        for thread in threading.enumerate()
    ):
        # A thread that still computes would be waited for.
        os._exit(128 + number)
    raise SystemExit(128 + number)


def summarise(counts: Mapping[str, Any], path: Path) -> None:
    """Prints what a set holds: accepted, failed and why, what was changed.

    Args:
      counts: of the manifest.
      path: of the set.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, title=path.name)
    table.add_column(style="bold")
    for modality, found in counts.items():
        total = found["accepted"] + found["failed"]
        table.add_row(
            modality,
            f"{found['accepted']:,} of {total:,} accepted "
            f"({found['accepted'] / total:.1%}), "
            f"{found['counterfactuals']:,} counterfactuals",
        )
        for title, names in (
            ("failed", found["reasons"]),
            ("changed", found["changed"]),
        ):
            if names:
                told = [f"{name} {n:,}" for name, n in names.items()]
                table.add_row(f"  {title}", ", ".join(told[:12]))
    table.add_row("directory", os.fspath(path))
    Console(soft_wrap=True).print(table)
