"""What the columns of a table of interactions are called.

For `own_files.py` and `tfds_source.py`; a name that is given is taken, else
the first of those that people use.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from neggen_jax.errors import InputError, nearest

# Compared without case and signs; best first.
USUAL = {
    "user": (
        "user",
        "userid",
        "uid",
        "reviewerid",
        "customer",
        "customerid",
        "buyer",
        "buyerid",
        "memberid",
        "visitorid",
        "sessionid",
    ),
    "item": (
        "item",
        "itemid",
        "iid",
        "parentasin",
        "asin",
        "movieid",
        "product",
        "productid",
        "sku",
        "article",
        "articleid",
        "newsid",
        "bookid",
    ),
    "rating": ("rating", "userrating", "overall", "score", "stars"),
    "time": (
        *("timestamp", "time", "unixreviewtime", "datetime", "date", "tdat"),
        *("when", "createdat", "orderdate", "purchasedate", "day"),
    ),
    "split": ("split", "splitlabel", "xlabel", "fold"),
    "title": (
        *("title", "itemtitle", "movietitle", "producttitle", "name"),
        *("itemname", "productname", "prodname", "headline"),
    ),
    "text": (
        *("description", "text", "itemtext", "detaildesc", "itemdescription"),
        *("productdescription", "desc", "abstract", "summary", "body"),
    ),
    # No addresses: pictures are read from files.
    "image": (
        *("image", "imagepath", "imagefile", "imagefilename", "imagename"),
        *("images", "img", "imgpath", "picture", "picturepath", "picturefile"),
        *("pictures", "photo", "photopath", "photofile", "thumbnail"),
    ),
}
# What is known of an item, but for its identifier and attributes.
CONTENT = ("title", "text", "image")
# Words for the splits -> position in SPLITS.
LABELS = {
    "train": 0,
    "training": 0,
    "0": 0,
    "valid": 1,
    "validation": 1,
    "val": 1,
    "dev": 1,
    "1": 1,
    "test": 2,
    "testing": 2,
    "2": 2,
}


class Columns(NamedTuple):
    """Names of columns; "" where there is none."""

    user: str
    item: str
    rating: str = ""
    time: str = ""
    split: str = ""


def guess(role: str, names: Iterable[str]) -> str:
    """The column that plays a role of `USUAL`; "" if none looks like it."""
    return next(iter(candidates(role, tuple(names))), "")


# Of JSON lines, each has its own names: mostly those of the one before.
@functools.lru_cache(maxsize=1024)
def candidates(role: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """All that may play a role of `USUAL`, best first."""
    plain: dict[str, str] = {}
    for name in names:
        # RecBole writes "user_id:token".
        word = re.sub(r"[^a-z0-9]", "", name.partition(":")[0].lower())
        plain.setdefault(word, name)
    return tuple(plain[word] for word in USUAL[role] if word in plain)


def choose(
    names: Iterable[str],
    where: object,
    *,
    given: dict[str, str | None],
    need: Iterable[str] = ("user", "item"),
) -> Columns:
    """Finds out which columns are meant.

    Args:
      names: those that there are.
      where: the file, for errors.
      given: role -> name, where somebody has told it.
      need: roles that must be played.

    Raises:
      InputError: if one that was named is not there, or one is needed.
    """
    names = list(names)
    chosen = {}
    for role in Columns._fields:
        chosen[role] = _pick(role, names, where, given.get(role))
        if role in need and not chosen[role]:
            raise InputError(
                f"No column looks like that of the {role}.",
                where=where,
                expected="a name such as " + ", ".join(USUAL[role][:3]),
                found=", ".join(names) or "none",
                fix=f"name it with --{role}_column",
            )
    return Columns(**chosen)


def choose_content(
    names: Iterable[str], where: object, given: dict[str, str | None]
) -> dict[str, str]:
    """Finds out which columns of an items' table are not attributes.

    Args:
      names: those that there are.
      where: the file, for errors.
      given: role -> name, where somebody has told it.

    Returns:
      Column -> one of `CONTENT`.

    Raises:
      InputError: if one that was named is not there.
    """
    names = list(names)
    found = {
        _pick(role, names, where, given.get(role)): role for role in CONTENT
    }
    found.pop("", None)
    return found


def _pick(role: str, names: list[str], where: object, given: str | None) -> str:
    if given and given not in names:
        raise InputError(
            f"There is no column {given!r}.",
            where=where,
            fix=nearest(given, names),
        )
    return given or guess(role, names)
