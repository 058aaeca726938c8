"""One category's files -> `Catalog`.

The reviews are read once, and k-core and split made of them; then of
metadata and image features only what belongs to the items that are left.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Unpack

from neggen_jax.catalog import Catalog
from neggen_jax.data.sources.amazon.fetch import check_downloads
from neggen_jax.data.sources.amazon.images import read_image_features
from neggen_jax.data.sources.amazon.metadata import read_metadata
from neggen_jax.data.sources.amazon.public import STATISTICS, Counted
from neggen_jax.data.sources.amazon.releases import (
    Release,
    find_beside,
    find_reviews,
    recognise,
)
from neggen_jax.data.sources.amazon.reviews import read_reviews
from neggen_jax.data.sources.assemble import Rules, assemble
from neggen_jax.data.sources.log import Log


def read_amazon(
    directory: str | os.PathLike[str],
    *,
    scratch: Path | None,
    category: str | None = None,
    release: str = "auto",
    file: str | None = None,
    name: str | None = None,
    min_rating: float | None = None,
    **rules: Unpack[Rules],
) -> Catalog:
    """Reads the files of a category, as they are downloaded.

    Args:
      directory: with the reviews, and perhaps `meta_<category>` and
        `image_features_<category>.b`.
      scratch: directory with room for the image features; None to do
        without them.
      category: such as "Baby"; None if the directory has only one.
      release: "2014", "2018", "2023", or "auto" to tell by the contents.
      file: name of the file with reviews, where there are several.
      name: of the catalogue; None: the category's.
      min_rating: leave out reviews with fewer stars.
      **rules: see `assemble.assemble`; without a `core` it is 5.

    Raises:
      InputError: if a file is missing, cannot be read, is not what was
        downloaded, or breaks a rule.
    """
    rules = Rules(core=5) | rules
    root = Path(directory).absolute()
    path, category = find_reviews(root, category, file)
    kind = recognise(path, release)
    meta = find_beside(root, kind.meta.format(category))
    images = None
    if scratch is not None:
        images = find_beside(root, f"image_features_{category}.b")
    check_downloads(filter(None, (path, meta, images)))
    log = read_reviews(path, kind, min_rating)
    if min_rating is None:
        _check_statistics(log, path, kind, category)
    catalog = assemble(
        log,
        name or category,
        **rules,
    )
    ids = catalog.item_names()
    if meta is not None:
        records = read_metadata(meta, ids)
        catalog = dataclasses.replace(catalog, records=records)
    if images is not None and scratch is not None:
        features = {"image": read_image_features(images, ids, scratch)}
        catalog = dataclasses.replace(catalog, features=features)
    return catalog


def _check_statistics(
    log: Log, path: Path, release: Release, category: str
) -> None:
    """Says so if a well-known 5-core has other sizes than it is known for."""
    known = STATISTICS.get(category)
    core = path.name.startswith(f"reviews_{category}_5.")
    if known is None or release.year != "2014" or not core:
        return
    found = Counted(len(log.users.names), len(log.items.names), len(log))
    if found != known:
        say = "{:,} users, {:,} items, {:,} interactions".format
        print(
            f"warning: {path.name} is not the 5-core that others have used: "
            f"it should have {say(*known)}, and has {say(*found)}",
            file=sys.stderr,
        )
