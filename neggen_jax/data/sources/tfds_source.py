"""A TFDS dataset that is on this machine -> `Catalog`.

Any whose examples are single interactions, such as `movielens/100k-ratings`:
users, items, perhaps ratings, times and titles. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from neggen_jax.catalog import Catalog, ItemRecords
from neggen_jax.data.features import tracked
from neggen_jax.data.sources import columns as naming
from neggen_jax.data.sources.assemble import Rules, assemble
from neggen_jax.data.sources.columns import LABELS, Columns, guess
from neggen_jax.data.sources.log import Log, Words, join
from neggen_jax.errors import InputError

_BLOCK = 8192  # examples that are read at a time


def read_tfds(
    *,
    name: str,
    data_dir: str | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    time_column: str | None = None,
    min_rating: float | None = None,
    **rules: Unpack[Rules],
) -> Catalog:
    """Reads a dataset that `tfds build` or `download_and_prepare` has made.

    Its splits are the catalogue's if they are called train, valid and test
    (or as people call them); otherwise all of them are split anew.

    Args:
      name: as `tfds.builder` takes it, such as "movielens/100k-ratings".
      data_dir: where datasets are; None for TFDS's own place.
      user_column: and so on: names of the features; None to find them.
      min_rating: leave out interactions with a lower rating.
      **rules: see `assemble.assemble`.

    Raises:
      InputError: if it is not there, or has no users and items.
    """
    builder = _builder(name, data_dir)
    features = [str(feature) for feature in builder.info.features]
    columns = naming.choose(
        features,
        f"features of {name}",
        given={
            "user": user_column,
            "item": item_column,
            "rating": rating_column,
            "time": time_column,
        },
        need=["user", "item"] + ["rating"] * (min_rating is not None),
    )._replace(split="")
    title = guess("title", features)
    sizes = {s: i.num_examples for s, i in builder.info.splits.items()}
    labels = {s: LABELS[s.lower()] for s in sizes if s.lower() in LABELS}
    titles: dict[str, str] = {}
    logs = []
    for part, size in sizes.items():
        blocks = _blocks(builder, part, size, [*columns, title])
        log = _log(blocks, columns, min_rating, title, titles)
        if len(labels) == len(sizes) == 3:
            marks = np.full(len(log), labels[part], np.int8)
            log = dataclasses.replace(log, labels=marks)
        logs.append(log)
    catalog = assemble(
        join(logs),
        name.replace("/", "-").partition(":")[0],
        **rules,
    )
    if not titles:
        return catalog
    ids = catalog.item_names()
    empty = [""] * len(ids)
    records = ItemRecords(
        ids,
        [titles.get(i, "") for i in ids],
        empty,
        [{} for _ in ids],
        [*empty],
    )
    return dataclasses.replace(catalog, records=records)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (
        tfds.core.DatasetNotFoundError,
        ValueError,
        AttributeError,
        OSError,
    ) as error:
        raise InputError(
            f"There is no TFDS dataset {name!r}.",
            where=f"--data_dir={data_dir or tfds.core.constants.DATA_DIR}",
            found=(str(error).strip() or type(error).__name__).splitlines()[0],
            fix="check the name; with `tfds build` it is made",
        ) from None
    # Of one that was not made there are no splits.
    if not builder.is_prepared() or not builder.info.splits:
        raise InputError(
            "The TFDS dataset is not on this machine.",
            where=builder.data_dir,
            fix=f"run `tfds build {name}`, or name its place with --data_dir",
        )
    return builder


def _blocks(
    builder: Any, part: str, size: int, names: Sequence[str]
) -> Iterable[Mapping[str, np.ndarray]]:
    import tensorflow_datasets as tfds

    decoders = tfds.decode.PartialDecoding(
        {name: True for name in names if name}
    )
    data = builder.as_dataset(split=part, decoders=decoders)
    steps = range(0, max(size, 1), _BLOCK)
    blocks = tfds.as_numpy(data.batch(_BLOCK))
    for _, block in zip(
        tracked(steps, f"reading {part}"), blocks, strict=False
    ):
        yield block


def _log(
    blocks: Iterable[Mapping[str, np.ndarray]],
    columns: Columns,
    min_rating: float | None,
    title: str,
    titles: dict[str, str],
) -> Log:
    users, items = Words(), Words()
    times = [np.empty(0, np.int64)]
    for block in blocks:
        names = _strings(block[columns.item])
        if title:
            titles.update(zip(names, _strings(block[title]), strict=True))
        rows = np.ones(len(names), np.bool_)
        if min_rating is not None:
            rows = np.asarray(block[columns.rating] >= min_rating)
        kept = np.flatnonzero(rows)
        owners = _strings(block[columns.user])
        users.add([owners[row] for row in kept])
        items.add([names[row] for row in kept])
        if columns.time:
            times.append(block[columns.time][rows].astype(np.int64))
    when = np.concatenate(times) if columns.time else None
    return Log(users.column(), items.column(), when)


def _strings(values: np.ndarray) -> list[str]:
    """Identifiers, which TFDS keeps as bytes or numbers."""
    if values.ndim != 1 or values.dtype.kind not in "OSiu":
        raise InputError(
            "A feature of the TFDS dataset is no column of names.",
            expected="one string or whole number for each example",
            found=f"{values.dtype} of the shape {values.shape}",
            fix="name other features with --user_column and --item_column",
        )
    return [
        str(value, "utf-8", "replace")
        if isinstance(value, bytes)
        else str(value)
        for value in values.tolist()
    ]
