"""`Catalog` -> files of other toolboxes, to be compared on the same data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from neggen_jax.catalog import SPLITS, Catalog


def write_mmrec(catalog: Catalog, directory: str | os.PathLike[str]) -> None:
    """Writes what `data/sources/mmrec.py` reads: the layout of MMRec.

    Users and items are called by their indices. Vectors of absent items are
    zero, as that layout has no place to say so.

    Args:
      catalog: its interactions and features.
      directory: existing or new; files in it are replaced.
    """
    out = Path(directory)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f"{catalog.name}.inter", "w") as file:
        file.write("userID\titemID\tx_label\n")
        for label, split in enumerate(SPLITS):
            pairs = catalog.splits[split]
            rows = np.stack(
                [pairs.users, pairs.items, np.full(len(pairs), label)], axis=1
            )
            np.savetxt(file, rows, "%d", delimiter="\t")
    for name, features in catalog.features.items():
        np.save(out / f"{name}_feat.npy", features.values)
