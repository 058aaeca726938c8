"""The three releases: what their files and fields are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neggen_jax.data.sources.lines import object_of, read_lines
from neggen_jax.errors import InputError, nearest

REVIEWS = "reviews file"


class Release(NamedTuple):
    """One release of the reviews.

    Attributes:
      year: that it is called by.
      user: field with the reviewer.
      item: field with the product.
      rating: field with 1 to 5 stars.
      time: field with the time.
      mark: a field that only this release has.
      unit: of the times.
      reviews: names of the files with reviews, the smaller first.
      meta: name of the file with items.
    """

    year: str
    user: str
    item: str
    rating: str
    time: str
    mark: str
    unit: str
    reviews: tuple[str, ...]
    meta: str


_OLD = ("reviewerID", "asin", "overall", "unixReviewTime")
RELEASES = {
    release.year: release
    for release in (
        Release(
            "2014",
            *_OLD,
            mark="helpful",
            unit="s",
            reviews=("reviews_{}_5.json", "reviews_{}.json"),
            meta="meta_{}.json",
        ),
        Release(
            "2018",
            *_OLD,
            mark="verified",
            unit="s",
            reviews=("{}_5.json", "{}.json"),
            meta="meta_{}.json",
        ),
        # Several products may be variants of one, which is their parent.
        Release(
            "2023",
            *("user_id", "parent_asin", "rating", "timestamp"),
            mark="parent_asin",
            unit="ms",
            reviews=("{}.jsonl",),
            meta="meta_{}.jsonl",
        ),
    )
}


def find_reviews(
    root: Path, category: str | None, file: str | None
) -> tuple[Path, str]:
    """The file with the reviews, and the category that it is of.

    Args:
      root: the input directory.
      category: such as "Baby"; None if there is only one.
      file: its name, where there are several of the category.

    Raises:
      InputError: if it is not there, or it is unclear which is meant.
    """
    if not root.is_dir():
        raise InputError("There is no such input directory.", where=root)
    found = {}
    for path in sorted(root.iterdir()):
        of = _category(path.name)
        if of and path.is_file() and category in (None, of):
            found[path.name] = path, of
    if file is not None:
        if file not in found:
            raise InputError(
                "There is no such reviews file.",
                where=root / file,
                fix=nearest(file, found) if found else None,
            )
        return found[file]
    if len(found) != 1:
        wanted = category or "CATEGORY"
        raise InputError(
            "It is not clear which reviews are meant."
            if found
            else "The input directory has no reviews.",
            where=root,
            expected=" or ".join(
                f"{name.format(wanted)}.gz"
                for release in RELEASES.values()
                for name in release.reviews
            ),
            found=", ".join(found) or "none of these",
            fix="name it with --category, or with --file"
            if found
            else "launch/fetch_amazon.py brings them; --category is written "
            "as in the files' names",
        )
    return next(iter(found.values()))


def find_beside(root: Path, name: str) -> Path | None:
    """A file by its name, gzipped or not; None if there is none."""
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def recognise(path: Path, told: str = "auto") -> Release:
    """Tells the release by the first review.

    Args:
      path: the reviews.
      told: its year, or "auto" to find out.

    Raises:
      InputError: if there is no such release, or it cannot be told.
    """
    if told != "auto":
        if told not in RELEASES:
            raise InputError(
                f"There is no release {told!r}.",
                where="--release",
                fix=nearest(told, (*RELEASES, "auto")),
            )
        return RELEASES[told]
    line = next(read_lines(path), None)
    if line is None:
        raise InputError("The reviews file is empty.", where=path)
    review = object_of(line, path, REVIEWS)
    for release in RELEASES.values():
        if release.user in review and release.mark in review:
            return release
    # The first two differ in their metadata alone, which tells itself.
    if _has(review, RELEASES["2018"]):
        old = path.name.startswith("reviews_")
        return RELEASES["2014" if old else "2018"]
    raise InputError(
        "These are not the reviews of a release that is known.",
        where=f"{path}, line 1",
        expected="fields "
        + " or ".join(
            f"{r.user}, {r.item}, {r.time} ({r.year})"
            for r in RELEASES.values()
        ),
        found=", ".join(review) or "no fields",
    )


def _has(review: Mapping[str, Any], release: Release) -> bool:
    return release.user in review and release.item in review


def _category(name: str) -> str:
    """The category that a file has the reviews of, by its name; "" if none."""
    plain = name.removesuffix(".gz")
    if plain.startswith(("meta_", "items")):
        return ""
    for pattern in (r"reviews_(.+?)(?:_5)?\.json", r"(.+?)(?:_5)?\.jsonl?"):
        if match := re.fullmatch(pattern, plain):
            return "" if match[1] == "downloads" else match[1]
    return ""
