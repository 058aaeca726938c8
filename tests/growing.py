"""A shop with a past and a present, for the tests of datasets that grow."""

import csv
import json
import pathlib

import numpy as np

from neggen_jax.data.prepare import prepare

COLOURS = ("red", "green", "blue", "grey", "white")
KINDS = ("scarf", "coat", "shoe")
NOW = 1000  # the present begins
ITEMS = 52
NAMES = ("user_id", "item_id", "timestamp")


def rows(users, items, each, start, seed):
    """Interactions of users with some of the items, in random order."""
    rng = np.random.default_rng(seed)
    out = [
        (f"u{user:02d}", f"i{item:02d}", start + int(rng.integers(900)))
        for user in users
        for item in rng.permutation(items)[:each]
    ]
    rng.shuffle(out := np.array(out, object))
    return [tuple(row) for row in out]


# Identifiers of newcomers stand before and between those that are known.
PAST = rows(range(5, 35, 2), np.arange(4, 48, 2), 9, 0, seed=1)
PRESENT = [
    *rows(range(2, 42, 3), np.arange(1, ITEMS), 9, NOW, seed=2),
    ("u07", "i01", NOW + 950),  # known, and late
]


def write(path: pathlib.Path, table, names=NAMES) -> pathlib.Path:
    """A table and, beside it, what is told of all items."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *table])
    with (path.parent / "items.jsonl").open("w") as file:
        for item in range(ITEMS):
            title = f"{COLOURS[item % 5]} {KINDS[item % 3]}"
            text = "" if item == 3 else f"{title} of make {item // 4}"
            told = {"colour": COLOURS[item % 5], "kind": KINDS[item % 3]}
            line = {"id": f"i{item:02d}", "text": text}
            if text:
                line["attributes"] = told
            file.write(json.dumps(line) + "\n")
    return path


def past(root: pathlib.Path, **options) -> pathlib.Path:
    """The dataset directory of what was there first."""
    file = write(root / "raw" / "past.csv", PAST)
    prepare("csv", file, root / "past", split="random", **options)
    return root / "past"


def present(root: pathlib.Path, table=PRESENT, **options) -> pathlib.Path:
    """A directory that extends it."""
    file = write(root / "raw" / "present.csv", table)
    options = {"extends": root / "past", "split": "temporal", **options}
    prepare("csv", file, root / "present", **options)
    return root / "present"
