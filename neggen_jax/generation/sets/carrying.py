"""Records of a dataset that was extended, for the one that extends it.

Its items are the first ones there, and as they were. What has been written of
them need not be written again, if it would be with the same settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.data import counterfactuals as sets
from neggen_jax.generation import records
from neggen_jax.generation.sets.files import read_json
from neggen_jax.generation.sets.ledger import Shard

# Settings that tell which items, and which part of them.
_ITEMS = ("items", "source", "shard", "shards")


def carried(
    extends: Mapping[str, Any] | None,
    name: str,
    settings: Mapping[str, Any],
    shard: Shard,
    ids: Sequence[str],
) -> Iterator[bytes]:
    """Yields the lines of a complete set of the dataset that was extended.

    Args:
      extends: of the description of the dataset; None if it extends none.
      name: of the set.
      settings: that records are to be written with.
      shard: of the items that are to be written.
      ids: the items' identifiers.
    """
    if extends is None:
        return
    path = sets.locate(Path(extends["input"]), name)
    about = next(iter(sorted(path.glob("shard-*-of-*.json"))), None)
    if about is None or not (path / sets.MANIFEST).exists():
        return
    known = read_json(about)
    differ = sorted(
        key
        for key in (known.keys() | settings.keys()) - {*_ITEMS}
        if known.get(key) != settings.get(key)
    )
    if differ:
        print(
            f"records of {path} are not taken over: they were written with "
            f"another {', '.join(differ)}"
        )
        return
    print(f"records of {path} are taken over")
    for _, record, _ in records.read(path / sets.RECORDS):
        if record.item in shard.items and record.id == ids[record.item]:
            yield record.to_line().encode("utf-8", "replace")
