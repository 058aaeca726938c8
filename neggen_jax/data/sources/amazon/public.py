"""Where the releases are published, and what has been counted in them."""

from __future__ import annotations

from typing import NamedTuple

from neggen_jax.errors import InputError, nearest

_SNAP = "https://snap.stanford.edu/data/amazon/productGraph"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"

# Release -> part -> address; {} is the category. 2014 and 2018 have all
# reviews of a category, and their 5-core.
FILES = {
    "2014": {
        "core": f"{_SNAP}/categoryFiles/reviews_{{}}_5.json.gz",
        "full": f"{_SNAP}/categoryFiles/reviews_{{}}.json.gz",
        "meta": f"{_SNAP}/categoryFiles/meta_{{}}.json.gz",
        "images": f"{_SNAP}/image_features/categoryFiles/image_features_{{}}.b",
    },
    "2018": {
        "core": f"{_UCSD}/amazon_v2/categoryFilesSmall/{{}}_5.json.gz",
        "full": f"{_UCSD}/amazon_v2/categoryFiles/{{}}.json.gz",
        "meta": f"{_UCSD}/amazon_v2/metaFiles2/meta_{{}}.json.gz",
    },
    "2023": {
        "full": f"{_UCSD}/amazon_2023/raw/review_categories/{{}}.jsonl.gz",
        "meta": f"{_UCSD}/amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
    },
}
# What is brought if nothing else is said.
USUAL = {
    "2014": ("core", "meta", "images"),
    "2018": ("core", "meta"),
    "2023": ("full", "meta"),
}


class Counted(NamedTuple):
    """Sizes of a 5-core, as everybody has counted them."""

    users: int
    items: int
    interactions: int


# The 5-core files of 2014.
STATISTICS = {
    "Baby": Counted(19_445, 7_050, 160_792),
    "Sports_and_Outdoors": Counted(35_598, 18_357, 296_337),
    "Clothing_Shoes_and_Jewelry": Counted(39_387, 23_033, 278_677),
}


def addresses(
    category: str, release: str, parts: tuple[str, ...] = ()
) -> list[str]:
    """Where the files of a category are.

    Args:
      category: as it is written in the files' names.
      release: one of `FILES`.
      parts: which of its files; the usual ones if none are named.

    Raises:
      InputError: for unknown words.
    """
    if release not in FILES:
        raise InputError(
            f"There is no release {release!r}.",
            where="--release",
            fix=nearest(release, FILES),
        )
    if not category.replace("_", "").isalnum():
        raise InputError(
            "This is no name of a category.",
            where="--category",
            expected="letters and _, such as Sports_and_Outdoors",
            found=repr(category),
        )
    files = FILES[release]
    for part in parts:
        if part not in files:
            raise InputError(
                f"The release {release} has no part {part!r}.",
                where="--parts",
                fix=nearest(part, files),
            )
    return [files[part].format(category) for part in parts or USUAL[release]]
