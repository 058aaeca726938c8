"""The pipeline: from a dataset's items to a complete set of counterfactuals.

`launch/generate.py` calls `generate`: tasks that have no record yet go to the
writer, as many at once as it can do; each record goes to the journal as it
completes. Killed or stopped at any time, the same command goes on. When all
records are there they are merged and encoded.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from neggen_jax.generation import tasks, writers
from neggen_jax.generation.records import Record
from neggen_jax.generation.sets import (
    carrying,
    files,
    ledger,
    merging,
    pipeline,
)
from neggen_jax.generation.sets.ledger import Ledger, Shard
from neggen_jax.generation.sets.progress import Progress
from neggen_jax.generation.tasks import Plan
from neggen_jax.generation.values import mining

# Options of `tasks.plan`; what else there is, is the writer's.
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
    encoder: str | None = None,
    encoder_model: str | None = None,
    encoder_like: str = "",
    **options: Any,
) -> dict[str, Any] | None:
    """Writes counterfactuals of a dataset's items, or goes on with it.

    Args:
      directory: of the dataset.
      backend: who writes, of `writers.OPTIONS`.
      set_name: of the set; by default the backend's, but "probes" for probes
        and "random" for random contrasts.
      scope: which records to write in this call.
      merge: write nothing; merge the shards that are there.
      encode: encode the set when it is complete.
      encoder: "tfidf" or "transformers"; by default that which has encoded
        the set before, or else "tfidf".
      encoder_model: path or hub name of a sentence encoder.
      encoder_like: another set, encoded already, whose texts the encoder
        learns from.
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
    name = set_name or _usual_name(backend, options)
    path = sets.locate(directory, name)
    known = store.describe(directory)
    asked = encoder or "", encoder_model, encoder_like
    if encode and not encoder:
        asked = _as_before(path, encoder_model, encoder_like)
    if not merge and not _write(directory, path, backend, scope, options):
        return None
    manifest = merging.merge(path, store.items_digest(known))
    summarise(manifest["counts"], path)
    if not encode:
        return manifest
    if not merge and _is_encoded(manifest, *asked):
        print("it is encoded already; --merge encodes it again")
        return manifest
    from neggen_jax.generation.sets import encode as encoding

    kind, model, like = asked
    encoding.encode(directory, name, encoder=kind, model=model, like=like)
    return sets.read_manifest(directory, name)


def _usual_name(backend: str, options: Mapping[str, Any]) -> str:
    """What configs and measurements look for."""
    if options.get("probe"):
        return "probes"
    return "random" if options.get("contrast") == "random" else backend


def summarise(counts: Mapping[str, Any], path: Path) -> None:
    """Prints what a set holds: accepted, failed and why, what was changed.

    Args:
      counts: of the manifest.
      path: of the set.
    """
    print(f"{path.name}, in {path}")
    for modality, found in counts.items():
        accepted, total = found["accepted"], found["accepted"] + found["failed"]
        print(
            f"  {modality}: {accepted:,} of {total:,} accepted "
            f"({accepted / total:.1%}), {found['counterfactuals']:,} "
            "counterfactuals"
        )
        for title, column in (("failed", "reasons"), ("changed", "changed")):
            told = [f"{word} {n:,}" for word, n in found[column].items()]
            if told:
                print(f"    {title}: {', '.join(told[:12])}")


def _as_before(
    path: Path, model: str | None, like: str
) -> tuple[str, str | None, str]:
    """Encoder, model and other set, where nobody says which encoder.

    Vectors of one kind are never replaced by those of another unasked.
    """
    manifest = path / sets.MANIFEST
    known = files.read_json(manifest) if manifest.exists() else {}
    before = known.get("encoding") or {}
    if before.get("encoder") == "transformers" and model is None:
        raise InputError(
            "The set was encoded by a neural network, and nobody says where "
            "it is now.",
            where=path,
            found=(before.get("model") or {}).get("name"),
            fix="add --encoder=transformers --encoder_model=PATH, or another "
            "--encoder, or --noencode",
        )
    taught = (before.get("like") or {}).get("set", "")
    return before.get("encoder", "tfidf"), model, like or taught


def _is_encoded(
    manifest: Mapping[str, Any], encoder: str, model: str | None, like: str
) -> bool:
    known = manifest.get("encoding", {})
    told, other = known.get("model") or {}, known.get("like") or {}
    return (
        known.get("encoder") == encoder
        and (model is None or told.get("name") == Path(model).name)
        and other.get("set", "") == like
    )


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
    known = store.describe(directory)
    shard = Shard.parse(scope.shard, catalog.num_items)
    wanted = _chosen(scope, shard)
    items, plan, words = _planned(
        catalog, known["source"], backend, planned, told.pop("words", None)
    )
    choice = writers.choose(backend, items, plan, told)
    settings = {
        **choice.settings,
        **plan.settings(),
        "words": words,
        "items": catalog.num_items,
        "source": store.items_digest(known),
    }
    before = carrying.carried(
        known["source"].get("extends"), path.name, settings, shard, items.ids
    )
    with Ledger(path, shard, plan.modalities, settings, before) as book:
        total = sum(1 for _ in _todo(book, plan, wanted, scope))
        done = len(wanted) * len(plan.modalities) - total
        total = min(total, scope.limit or total)
        todo = itertools.islice(_todo(book, plan, wanted, scope), total)
        work = tasks.make(items, plan, todo)
        title = f"{path.name} of {catalog.name}"
        if shard.count > 1:
            title += f", shard {scope.shard}"
        stopped = 0
        with Progress(title, total + done, done) as progress:

            def keep(record: Record) -> None:
                book.append(record)
                progress.advance(record.accepted)

            if total:
                writer = choice.load(path / f"requests-{shard.label}.jsonl")
                stopped = pipeline.run(work, writer, keep)
        return _ended(book, stopped, directory, path.name)


def _planned(
    catalog: Catalog,
    source: Mapping[str, Any],
    backend: str,
    options: Mapping[str, Any],
    words: str | None,
) -> tuple[ItemRecords, Plan, str]:
    """The items, the plan, and a digest of the words looked for in texts.

    The plan has what the dataset itself knows of its attributes, where the
    options say nothing.
    """
    items = catalog.records
    if items is None:
        raise InputError(
            "The dataset has no records of its items.",
            where=catalog.name,
            expected="texts, attributes or pictures",
            fix="prepare it from a source that has them",
        )
    asked: dict[str, Any] = {name: options.get(name) for name in _PLAN}
    for name in ("image_attributes", "text_attributes", "told"):
        if asked[name] is None:
            asked[name] = source.get(name)
    if asked["told"] is None and "text" in catalog.features:
        # What the items' own text vectors were made of.
        manifest = catalog.features["text"].manifest
        asked["told"] = manifest.get("source", {}).get("attributes")
    if backend != "attributes":
        plan = tasks.plan(items, **asked)
        _check_shown(plan, options)
        return items, plan, ""
    items, mined, digest = mining.enriched(items, words)
    plan = tasks.plan(items, mined=mined, **asked)
    _check_shown(plan, options)
    if "image" in plan.modalities and not plan.shown["image"]:
        raise InputError(
            "Nobody knows what the pictures show.",
            where="--image_attributes",
            expected="names of the attributes that can be seen",
            fix=f"name them (known: {', '.join(plan.shown['text'])}), leave "
            "pictures out with --modalities=text, or let a language model "
            "look at them with --backend",
        )
    return items, plan, digest


def _check_shown(plan: Plan, options: Mapping[str, Any]) -> None:
    """Refuses to be told what pictures show where there are none."""
    asked = options.get("image_attributes")
    chosen = options.get("modalities")
    if asked and not chosen and "image" not in plan.modalities:
        raise InputError(
            "No item has a picture.",
            where="--image_attributes",
            expected="a dataset that was prepared with pictures",
            found=", ".join(asked),
            fix="leave it out, or prepare the dataset with them",
        )


def _chosen(scope: Scope, shard: Shard) -> Sequence[int]:
    """The items of a shard that are in the scope, in order."""
    if scope.limit is not None and scope.limit < 1:
        raise InputError(
            "This is no number of records to write.",
            where="--limit",
            expected="at least 1",
            found=scope.limit,
        )
    if scope.items is None:
        return shard.items
    found: set[int] = set()
    for word in scope.items.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", word)
        first = int(match[1]) if match else 1
        last = int(match[2] or match[1]) if match else 0
        if not first <= last < shard.num_items:
            raise InputError(
                "These are not items of the dataset.",
                where="--items",
                expected="indices and ranges such as 0,5,7-9, below "
                f"{shard.num_items}",
                found=word,
            )
        found.update(range(first, last + 1))
    return sorted(found.intersection(shard.items))


def _todo(
    book: Ledger, plan: Plan, wanted: Sequence[int], scope: Scope
) -> Iterator[tuple[int, str]]:
    """Yields what is to be written, in order."""
    wrong = (ledger.OPEN, ledger.FAILED)[: 2 if scope.retry_failed else 1]
    for item, modality in tasks.places(plan, wanted):
        if book.state(item, modality) in wrong:
            yield item, modality


def _ended(book: Ledger, stopped: int, directory: Path, name: str) -> bool:
    """Says what is to be done next; whether the set is complete."""
    shard, done = book.shard, len(book) - book.missing
    if stopped:
        print(
            f"stopped: {done:,} of {len(book):,} records are in {book.path}; "
            "the same command goes on from there",
            flush=True,
        )
        sys.stderr.flush()
        if any(
            thread is not threading.main_thread() and not thread.daemon
            for thread in threading.enumerate()
        ):
            # A thread that still computes would be waited for.
            os._exit(128 + stopped)
        raise SystemExit(128 + stopped)
    if book.missing:
        print(
            f"{book.missing:,} of {len(book):,} records are still to be "
            "written: the same command without --limit and --items writes them"
        )
        return False
    book.finish()
    if shard.count > 1:
        print(
            f"shard {shard.index}/{shard.count} is complete; when all are: "
            f"launch/generate.py --data={directory} --set={name} --merge"
        )
    return shard.count == 1
