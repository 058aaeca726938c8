"""Files of reviews -> `Log`, one line in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.data.sources.amazon.releases import REVIEWS, Release
from neggen_jax.data.sources.lines import object_of, read_lines
from neggen_jax.data.sources.log import Log, Words
from neggen_jax.errors import InputError

_BLOCK = 2**16  # reviews that are gathered before they become arrays


def read_reviews(
    path: Path, release: Release, min_rating: float | None = None
) -> Log:
    """Reads who reviewed what and when.

    Args:
      path: JSON lines, gzipped or not.
      release: what the fields are called.
      min_rating: leave out reviews with fewer stars.

    Returns:
      The log, in the order of the file; times in the release's unit.

    Raises:
      InputError: naming the line that is wrong.
    """
    users, items = Words(), Words()
    times: list[np.ndarray] = []
    block: tuple[list[str], list[str], list[int]] = ([], [], [])
    empty = True
    for line in read_lines(path, label="reviews"):
        empty = False
        review = object_of(line, path, REVIEWS)
        user = review.get(release.user)
        item = review.get(release.item)
        time = review.get(release.time)
        if not (
            isinstance(user, str)
            and isinstance(item, str)
            and isinstance(time, int)
            and user
            and item
        ):
            raise _incomplete(review, release, f"{path}, line {line.number}")
        if min_rating is not None:
            rating = review.get(release.rating)
            if not isinstance(rating, int | float):
                where = f"{path}, line {line.number}"
                raise _incomplete(review, release, where)
            if rating < min_rating:
                continue
        block[0].append(user)
        block[1].append(item)
        block[2].append(time)
        if len(block[0]) == _BLOCK:
            _move(block, users, items, times, path)
    if empty:
        raise InputError("The reviews file is empty.", where=path)
    _move(block, users, items, times, path)
    return Log(users.column(), items.column(), np.concatenate(times))


def _move(
    block: tuple[list[str], list[str], list[int]],
    users: Words,
    items: Words,
    times: list[np.ndarray],
    path: Path,
) -> None:
    """Makes arrays of what was gathered, and starts anew."""
    try:
        users.add(block[0])
        items.add(block[1])
        times.append(np.array(block[2], np.int64))
    except (UnicodeEncodeError, OverflowError) as error:
        raise InputError(
            "A review has a name or time that cannot be kept.",
            where=path,
            found=error,
        ) from None
    for column in block:
        column.clear()


def _incomplete(
    review: dict[str, Any], release: Release, where: str
) -> InputError:
    wanted = (release.user, release.item, release.time, release.rating)
    return InputError(
        "A review lacks a field, or has it of another type.",
        where=where,
        expected=f"{wanted[0]} and {wanted[1]} (words), {wanted[2]} (a whole "
        f"number), {wanted[3]} (a number), as in the release {release.year}",
        found=", ".join(
            f"{name}: {type(review[name]).__name__}"
            if name in review
            else f"no {name}"
            for name in wanted
        ),
        fix="is the file of another release? --release tells which",
    )
