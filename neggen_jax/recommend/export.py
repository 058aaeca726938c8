"""A finished run as files that other systems read.

    manifest.json              what this is; written last
    users.safetensors          "vectors", float32 [num_users, d]
    items.safetensors          "vectors", float32 [num_items, d]
    users.parquet              id, vector
    items.parquet              id, title, vector
    scorer.stablehlo           the ranking, as jax.export serialises it
    saved_model/               the same for TensorFlow, if asked for
    index.faiss                approximate neighbours, if asked for

The directory appears whole or not at all. In a bucket, where directories
do not, the manifest is what says that all is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from neggen_jax import storage
from neggen_jax.checkpoint import read_json
from neggen_jax.data import directories
from neggen_jax.errors import InputError
from neggen_jax.recommend import ann as approximate
from neggen_jax.recommend import scorer
from neggen_jax.recommend.asked import Asked, Names
from neggen_jax.recommend.lists import Lister
from neggen_jax.recommend.trained import Trained

MANIFEST = "manifest.json"
_OURS = re.compile(
    r"manifest\.json|(users|items)\.(safetensors|parquet)"
    r"|scorer\.stablehlo|saved_model|index\.faiss"
)
_ROWS = 2**16  # of a group of rows
_MEASURED = 1024  # users by whom an index is measured


def export(
    trained: Trained,
    directory: str | os.PathLike[str],
    *,
    k: int = 20,
    ann: str = "",
    ann_search: str = "",
    saved_model: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes an export.

    Args:
      trained: see `trained.load`; with new items, if they are to be in it.
      directory: to be made, here or in a bucket.
      k: length of the scorer's lists.
      ann: FAISS's description of an index; "" makes none. See `ann.build`.
      ann_search: its parameters of searching.
      saved_model: also save the scorer as a SavedModel of TensorFlow.
      overwrite: whether it may replace an export that is there.

    Returns:
      The manifest.

    Raises:
      InputError: if the directory is there already or cannot be written, k is
        larger than the catalogue, or FAISS is missing.
    """
    count = trained.run.catalog.num_users
    if not 1 <= k <= trained.num_items:
        raise InputError(
            "The lists are longer than the catalogue.",
            where="--k",
            expected=f"from 1 to {trained.num_items}",
            found=k,
        )
    with _replacing(directory, overwrite) as partial:
        items = trained.item_vectors
        dim = items.shape[1]
        _write(partial, "items", items, trained.item_names, trained.titles)
        program = scorer.serialised(len(items), dim, k)
        (partial / "scorer.stablehlo").write_bytes(program)
        if saved_model:
            scorer.save_model(str(partial / "saved_model"), items, k)
        about = _about(trained, dim, k)
        if ann:
            rows, exact = _exact(trained, k)
            vectors = np.asarray(trained.users[rows], np.float32)
            about["ann"] = approximate.build(
                items,
                vectors,
                exact,
                partial / "index.faiss",
                index=ann,
                search=ann_search,
            )
        users = np.asarray(trained.users[:count], np.float32)
        _write(partial, "users", users, trained.user_names, [])
        about["files"] = _digests(partial)
        text = json.dumps(about, indent=2, ensure_ascii=False)
        (partial / MANIFEST).write_text(text + "\n", "utf-8")
    return about


def _about(trained: Trained, dim: int, k: int) -> dict[str, Any]:
    run = trained.run
    about = {
        "format": 1,
        "dataset": run.catalog.name,
        "fingerprint": run.catalog.identity,
        "encoder": run.config.encoder.name,
        "step": trained.step,
        "metric": run.config.train.metric,
        "users": run.catalog.num_users,
        "items": trained.num_items,
        "new_items": trained.num_items - run.catalog.num_items,
        "dim": dim,
        "dtype": "float32",
        "score": "inner product of a user's and an item's vector; whatever "
        "negatives have taught of an item (NegGen's causal effect) is in it",
        "scorer": {
            "file": "scorer.stablehlo",
            "arguments": [
                "queries f32[b,d]",
                "items f32[n,d]",
                "seen i32[b,m]",
            ],
            "results": ["scores f32[b,k]", "items i32[b,k]"],
            "k": k,
            "platforms": list(scorer.PLATFORMS),
            "jax": jax.__version__,
        },
    }
    results = trained.workdir / "results.json"
    if results.exists():
        found = read_json(results)
        if found.get("step") == trained.step:
            about |= {split: found[split] for split in ("valid", "test")}
    return about


def _write(
    directory: Path,
    name: str,
    vectors: np.ndarray,
    names: Names,
    titles: list[str],
) -> None:
    """One table twice: for who computes, and for who looks up."""
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.numpy import save_file

    save_file({"vectors": vectors}, directory / f"{name}.safetensors")
    dim = vectors.shape[1]
    schema = {"id": pa.string()}
    if titles:
        schema["title"] = pa.string()
    schema["vector"] = pa.list_(pa.float32(), dim)
    path = directory / f"{name}.parquet"
    with parquet.ParquetWriter(path, pa.schema(list(schema.items()))) as file:
        for start in range(0, len(vectors), _ROWS):
            rows = range(start, min(start + _ROWS, len(vectors)))
            flat = pa.array(vectors[rows.start : rows.stop].reshape(-1))
            columns = [
                pa.array([names[row] for row in rows], pa.string()),
                *([pa.array(titles[rows.start : rows.stop])] if titles else []),
                pa.FixedSizeListArray.from_arrays(flat, dim),
            ]
            file.write_table(pa.table(columns, schema=file.schema))
    # Which would be for this user alone.
    shutil.copymode(path, directory / f"{name}.safetensors")


def _exact(trained: Trained, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Some users, and their best items with none left out."""
    count = trained.run.catalog.num_users
    drawn = np.random.default_rng(trained.run.config.seed).permutation(count)
    rows = np.sort(drawn[:_MEASURED])
    lister = Lister(
        trained.run,
        trained.users,
        trained.items,
        trained.num_items,
        k=k,
        seen=(),
    )
    asked = [Asked(trained.user_names[row], int(row)) for row in rows]
    return rows, np.concatenate([lists.items for lists in lister(asked)])


def _digests(directory: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = path.relative_to(directory).as_posix()
            found[name] = {"bytes": path.stat().st_size, "sha256": digest}
    return found


@contextlib.contextmanager
def _replacing(
    directory: str | os.PathLike[str], overwrite: bool
) -> Iterator[Path]:
    """Yields a directory of this machine that becomes the export."""
    if not storage.remote(directory):
        storage.path(directory)
        with directories.replacing(
            directory, overwrite=overwrite, ours=_OURS
        ) as partial:
            yield partial
        return
    target = storage.path(directory)
    manifest = target / MANIFEST
    if manifest.exists() and not overwrite:
        raise InputError(
            "The output exists already.",
            where=target,
            fix="name another one, or pass --overwrite to replace it",
        )
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        yield here
        try:
            manifest.unlink(missing_ok=True)
            paths = [path for path in here.rglob("*") if path.is_file()]
            for path in sorted(paths, key=lambda p: (p.name == MANIFEST, p)):
                name = path.relative_to(here).as_posix()
                storage.upload(path, target / name)
        except OSError as error:
            raise InputError(
                "The export could not be written.",
                where=target,
                found=error,
                fix="see to the bucket, then run the same command again",
            ) from error
