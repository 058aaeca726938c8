"""What the columns of a table of interactions are called.

For `own_files.py` and `tfds_source.py`; a name that is given is taken, else
the first of those that people use.
"""

from __future__ import annotations

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
    "title": ("title", "itemtitle", "movietitle", "producttitle", "name"),
    "text": ("description", "text", "itemtext", "detaildesc"),
    "image": ("image", "imagepath"),
}
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
    plain: dict[str, str] = {}
    for name in names:
        # RecBole writes "user_id:token".
        word = re.sub(r"[^a-z0-9]", "", name.partition(":")[0].lower())
        plain.setdefault(word, name)
    return next((plain[word] for word in USUAL[role] if word in plain), "")


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
        name = given.get(role)
        if name and name not in names:
            raise InputError(
                f"There is no column {name!r}.",
                where=where,
                fix=nearest(name, names),
            )
        chosen[role] = name or guess(role, names)
        if role in need and not chosen[role]:
            raise InputError(
                f"No column looks like that of the {role}.",
                where=where,
                expected="a name such as " + ", ".join(USUAL[role][:3]),
                found=", ".join(names) or "none",
                fix=f"name it with --{role}_column",
            )
    return Columns(**chosen)
