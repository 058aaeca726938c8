"""Writes small files exactly as the public Amazon reviews come.

Reviews, metadata and image features of all three releases, with what is odd
about them: metadata of 2014 are Python literals, of 2018 some products occur
twice, of 2023 times are milliseconds and products have parents.
"""

import gzip
import json

import numpy as np

START = 1_300_000_000


def user_id(number, year="2014"):
    return f"A{number:027d}" if year == "2023" else f"A{number:013d}"


def item_id(number):
    return f"B{number:09d}"


def draw(users=40, items=25, per_user=8, seed=0):
    """(user, item, stars, seconds) of interactions, no pair twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for item in rng.permutation(items)[:per_user]:
            stars, time = rng.integers(1, 6), START + rng.integers(10**8)
            rows.append((user, int(item), int(stars), int(time)))
    rng.shuffle(rows)
    return rows


def review(year, user, item, stars, time):
    if year == "2023":
        return {
            "rating": float(stars),
            "title": "Good",
            "text": 'It says "so"\nand works',
            "images": [],
            "asin": f"C{item:09d}",
            "parent_asin": item_id(item),
            "user_id": user_id(user, year),
            "timestamp": time * 1000 + 123,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
    old = {
        "reviewerID": user_id(user),
        "asin": item_id(item),
        "reviewerName": "Zoë “Z”",
        "reviewText": "It works.\nFine",
        "overall": float(stars),
        "summary": "Good",
        "unixReviewTime": time,
        "reviewTime": "03 13, 2011",
    }
    if year == "2014":
        return old | {"helpful": [0, 1]}
    return old | {"verified": True, "style": {"Color:": " Red"}, "vote": "2"}


def product(year, item):
    """What is told of an item: of each third something is missing."""
    title = f'Thing &amp; {item} it\'s "fine"'
    if year == "2014":
        told = {
            "asin": item_id(item),
            "title": title,
            "description": f"A thing numbered {item}.",
            "price": 9.99,
            "imUrl": "http://example.invalid/x.jpg",
            "related": {"also_bought": [item_id(0), item_id(1)]},
            "salesRank": {"Baby": item},
            "brand": f"Maker {item % 3}",
            "categories": [["Baby", f"Kind {item % 4}"]],
        }
        missing = ("brand", "description", "")[item % 3]
    elif year == "2018":
        told = {
            "category": ["Office", f"Kind {item % 4}", "x" * 200],
            "description": [f"A thing numbered {item}.", "<b>Two</b> parts"],
            "title": title,
            "image": [],
            "brand": f"Maker {item % 3}",
            "feature": ["It is blue"],
            "asin": item_id(item),
            "imageURLHighRes": ["http://example.invalid/x.jpg"],
        }
        missing = ("brand", "feature", "")[item % 3]
    else:
        told = {
            "main_category": "Baby",
            "title": title,
            "average_rating": 4.5,
            "features": ["It is blue"],
            "description": [f"A thing numbered {item}."],
            "price": None,
            "images": [{"hi_res": None, "large": "x", "variant": "MAIN"}],
            "store": f"Maker {item % 3}",
            "categories": ["Baby Products", f"Kind {item % 4}"],
            "details": {"Color": "Blue", "Package Weight": "2 pounds"},
            "parent_asin": item_id(item),
        }
        missing = ("store", "features", "")[item % 3]
    told.pop(missing, None)
    return told


def spell(year, told):
    """A product as a line of its release."""
    return repr(told) if year == "2014" else json.dumps(told)


def names(year, category):
    """Files of reviews and of metadata."""
    return {
        "2014": (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"),
        "2018": (f"{category}_5.json.gz", f"meta_{category}.json.gz"),
        "2023": (f"{category}.jsonl.gz", f"meta_{category}.jsonl.gz"),
    }[year]


def write_lines(path, lines):
    """Writes a gzipped file of lines."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for line in lines:
            file.write(line + "\n")


def write(root, year, category, rows=None, items=25):
    """Writes reviews and metadata; the rows that were written."""
    root.mkdir(parents=True, exist_ok=True)
    rows = draw(items=items) if rows is None else rows
    reviews, meta = names(year, category)
    write_lines(root / reviews, (json.dumps(review(year, *r)) for r in rows))
    # One product that nobody has reviewed, and one that is not told of.
    told = [product(year, item) for item in [items + 7, *range(1, items)]]
    if year == "2018":
        told.append(told[3] | {"title": "The same once more"})
    write_lines(root / meta, (spell(year, t) for t in told))
    return rows


def write_images(root, category, items, seed=0):
    """Writes image features of the items given; `[n, 4096]`, as written."""
    rng = np.random.default_rng(seed)
    values = rng.random((len(items), 4096), np.float32)
    with open(root / f"image_features_{category}.b", "wb") as file:
        for item, row in zip(items, values, strict=True):
            file.write(item_id(item).encode() + row.tobytes())
    return values
