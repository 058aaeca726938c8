"""An index of approximate nearest neighbours over the items; FAISS's.

What it is worth is measured: the share of the exact lists that it finds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.errors import InputError


def build(
    items: np.ndarray,
    users: np.ndarray,
    exact: np.ndarray,
    path: Path,
    *,
    index: str = "HNSW32",
    search: str = "",
) -> dict[str, Any]:
    """Makes an index of inner products and writes it.

    Args:
      items: float32 `[num_items, d]`.
      users: float32 `[n, d]`, by whom it is measured.
      exact: int32 `[n, k]`, their best items, none left out.
      path: of the file.
      index: a description for FAISS's `index_factory`, such as "HNSW32",
        "IVF256,Flat" or "IVF256,PQ16".
      search: parameters of searching, such as "efSearch=64" or "nprobe=16".

    Returns:
      For a manifest: what was built, and "recall" at "k" over "users".

    Raises:
      InputError: if FAISS is missing, or refuses the description.
    """
    faiss = _faiss()
    dim, k = items.shape[1], exact.shape[1]
    metric = faiss.METRIC_INNER_PRODUCT
    try:
        made = faiss.index_factory(dim, index, metric)
        made.train(np.ascontiguousarray(items))
        made.add(np.ascontiguousarray(items))
        if search:
            space = faiss.ParameterSpace()
            space.set_index_parameters(made, search)
    except RuntimeError as error:
        raise InputError(
            "FAISS does not make such an index.",
            where=f"--ann={index} --ann_search={search}",
            expected="what index_factory and ParameterSpace read, such as "
            "HNSW32 and efSearch=64",
            found=str(error).strip().splitlines()[-1][:200],
        ) from error
    _, found = made.search(np.ascontiguousarray(users), k)
    faiss.write_index(made, str(path))
    hits = (found[:, :, None] == exact[:, None, :]).any(axis=1)
    return {
        "library": f"faiss {faiss.__version__}",
        "index": index,
        "search": search,
        "metric": "inner product",
        "k": k,
        "users": len(users),
        "recall": float(hits.mean()),
    }


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "An index of nearest neighbours needs FAISS.",
            where="--ann",
            found=error,
            fix="pip install -r requirements-ann.txt",
        ) from error
    return faiss
