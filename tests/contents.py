"""Texts and pictures for the tests of features and of their encoders."""

import functools
import hashlib
import json

import numpy as np
from PIL import Image, ImageDraw

from neggen_jax.catalog import ItemRecords
from neggen_jax.data.features import extract

TEXTS = [
    "Red dress. A light summer dress of cotton",
    "Blue dress. A warm winter dress of wool, wool, wool",
    "Red scarf. Wool, for the winter",
    "",
    "Office chair with five wheels",
    "Desk. For the office; five drawers. Oak",
    "!!!",
    "Chair of oak",
]


def make_records(texts=(), images=(), root="", attributes=None):
    number = max(len(texts), len(images))
    empty = [""] * number
    return ItemRecords(
        ids=[f"id{i}" for i in range(number)],
        titles=empty,
        texts=list(texts) or empty,
        attributes=attributes or [{} for _ in range(number)],
        images=list(images) or empty,
        image_root=str(root),
    )


def paint(path, colour, stripes, seed=0, size=(90, 120)):
    """A garment-like block on white, a little different for each seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    x, y = rng.integers(15, 22, 2)
    draw.rectangle((x, y, size[0] - x, size[1] - y), fill=colour)
    for row in range(y, size[1] - y, 12) if stripes else ():
        draw.rectangle((x, row, size[0] - x, row + 5), fill="black")
    image.save(path)


quick = functools.partial(extract, progress=False)


def check_invariants(features, number):
    """What `Catalog.validate` and cosine similarity rely on."""
    values, present = features.values, features.present
    assert values.dtype == np.float32
    assert present.dtype == np.bool_
    assert values.shape == (number, features.manifest["dim"])
    lengths = np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(lengths, present, atol=1e-5)
    manifest = json.loads(json.dumps(features.manifest))
    assert manifest == features.manifest
    assert manifest["absent"] == (~present).sum()
    assert manifest["sha256"] == hashlib.sha256(values.tobytes()).hexdigest()


def paint_shop(path):
    """Two colours x plain and striped, three of each; as JPEG."""
    kinds = [(c, s) for c in ("red", "blue") for s in (False, True)] * 3
    names = [f"{i:02d}.jpg" for i in range(len(kinds))]
    for seed, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        paint(path / name, *kind, seed=seed)
    return make_records(images=names, root=path), kinds
