"""What is in a dataset directory, printed and drawn.

`launch/prepare.py` ends with it: the numbers by which data are known, and
those by which one sees that something went wrong.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from neggen_jax.catalog import SPLITS, Catalog

PLOT = "plots/summary.png"
_QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)


def summarise(
    catalog: Catalog, directory: str | os.PathLike[str], *, plot: bool = True
) -> None:
    """Prints what is in a dataset directory, and draws it there.

    Args:
      catalog: that the directory has.
      directory: where the plot goes, to `PLOT`.
      plot: whether to draw.
    """
    from rich.console import Console
    from rich.text import Text

    # Not a table, which cuts what a narrow terminal has no room for.
    console = Console(soft_wrap=True, highlight=False)
    console.print(catalog.name, style="italic", markup=False)
    told = {**describe(catalog), "fingerprint": catalog.fingerprint}
    width = max(map(len, told)) + 2
    for name, value in told.items():
        console.print(Text(f" {name:<{width}}", "bold") + Text(value))
    console.print(f" in {os.fspath(directory)}", markup=False)
    if plot:
        from neggen_jax import plots, plots_data

        figure = plots_data.dataset(
            catalog.name, *degrees(catalog), presence(catalog)
        )
        plots.save(figure, Path(directory) / PLOT)


def describe(catalog: Catalog) -> dict[str, str]:
    """What there is to say, by name; each in a line."""
    parts = catalog.splits
    total = sum(len(parts[split]) for split in SPLITS)
    counts = [f"{split} {len(parts[split]):,}" for split in SPLITS]
    by_user, by_item = degrees(catalog)
    unseen = int((catalog.popularity() == 0).sum())
    told = {
        "users": f"{catalog.num_users:,}",
        "items": f"{catalog.num_items:,}; {unseen:,} of them not in train",
        "interactions": f"{total:,} ({', '.join(counts)})",
        "density": f"{total / (catalog.num_users * catalog.num_items):.4%}",
        "per user": _quantiles(by_user),
        "per item": _quantiles(by_item),
        "top decile": f"{top_share(by_item):.1%} of the interactions are with "
        "the tenth of the items that have most",
    }
    timed = all(parts[split].timestamps is not None for split in SPLITS)
    told["times"] = "known" if timed else "none"
    for modality, matrix in catalog.features.items():
        absent = catalog.num_items - int(matrix.present.sum())
        encoder = matrix.manifest.get("encoder", "unknown")
        told[modality] = (
            f"{matrix.dim} dimensions by {encoder}; {absent:,} items without"
        )
    if not catalog.features:
        told["modalities"] = "none"
    if len(catalog.features) > 1:
        bare = ~np.any([m.present for m in catalog.features.values()], axis=0)
        told["no modality"] = f"{int(bare.sum()):,} items"
    return told


def degrees(catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """Interactions of each user, and of each item, over all splits."""
    users = np.zeros(catalog.num_users, np.int64)
    items = np.zeros(catalog.num_items, np.int64)
    for part in catalog.splits.values():
        users += np.bincount(part.users, minlength=len(users))
        items += np.bincount(part.items, minlength=len(items))
    return users, items


def top_share(by_item: np.ndarray) -> float:
    """Share of the interactions that the most popular tenth of items has.

    Args:
      by_item: interactions of each item; the tenth is rounded up.
    """
    most = np.sort(by_item)[::-1][: -(-len(by_item) // 10)]
    return float(most.sum() / max(by_item.sum(), 1))


def presence(catalog: Catalog) -> dict[str, tuple[float, float]]:
    """Modality -> share of items, and of interactions, that have it."""
    _, by_item = degrees(catalog)
    return {
        name: (
            float(matrix.present.mean()),
            float(by_item[matrix.present].sum() / by_item.sum()),
        )
        for name, matrix in catalog.features.items()
    }


def _quantiles(counts: np.ndarray) -> str:
    values = np.quantile(counts, _QUANTILES, method="nearest")
    names = ("least", "25%", "median", "75%", "95%", "most")
    parts = [f"{n} {v:,.0f}" for n, v in zip(names, values, strict=True)]
    return f"mean {counts.mean():.1f}; {', '.join(parts)}"
