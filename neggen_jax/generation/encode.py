"""Texts of a counterfactual set -> vectors beside its records.

Stands behind `counterfactuals.py`, which completes a set, and before
`data/counterfactuals.py`, by which training reads what is written here.

All texts of a set - both modalities, factual and counterfactual - are encoded
by one encoder that learned from all of them, so that vectors differ where
texts do and nowhere else. Memory holds a few numbers a text, and blocks of
texts and vectors; the records stay in their file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.data import counterfactuals as sets
from neggen_jax.data import features, store
from neggen_jax.data.counterfactuals import Counterfactuals, Rewritten
from neggen_jax.data.encoders import Encoder, Tfidf, untracked
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.texts import DESCRIPTION, Texts, survey

# Texts that an encoder learns from, and those it is given at a time after.
_SAMPLE, _BLOCK = Tfidf.sample, 8_192
_ROWS = 8_192  # rows of an array that are written at a time
_PARTIAL = ".encoding"
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
)


def encode(
    directory: str | os.PathLike[str],
    set_name: str,
    *,
    encoder: str = "tfidf",
    model: str | None = None,
    dim: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Counterfactuals:
    """Encodes a complete set, and says so in its manifest.

    Each text is encoded once however often it occurs. A record that failed
    still gives its description, if it has one. If the manifest names
    attributes under "probes", alternative k of an item is the one that
    changes the k-th of them alone; else it is the k-th of its record.

    Args:
      directory: of the dataset.
      set_name: of the set.
      encoder: "tfidf" or "transformers".
      model: see `features.extract`, as of what follows.
      dim: width of the vectors.
      batch_size: texts a neural network is given at a time.
      seed: of the encoder's random numbers.
      progress: whether to show on stderr how far the work is.

    Returns:
      The set as it is on disk. The same records and settings give the same
      bytes; what was there before stays until all is written.

    Raises:
      InputError: if the set is not complete, of other items or without a
        counterfactual, a record is not what it should be, the encoder cannot
        be made, or the disk is full.
    """
    directory = Path(directory).absolute()
    described = store.describe(directory)
    path = sets.locate(directory, set_name)
    manifest = sets.read_manifest(directory, set_name)
    source = store.items_digest(described)
    if manifest.get("source", source) != source:
        raise InputError(
            "The counterfactuals were made of other items.",
            where=path,
            expected="records of the items that the dataset has now",
            fix="generate them again, or prepare the dataset as it was",
        )
    kind = features.encoder_of("text", encoder, dim, batch_size, seed)
    texts = survey(path, described["num_items"], manifest)
    # Made late enough that nobody waits for weights to hear of bad records.
    track = features.tracked if progress else untracked
    coder = kind(model, dim, batch_size, seed, track)
    with _writing(path) as partial:
        vectors = _vectors(coder, texts, partial / "vectors.npy", track)
        made = Counterfactuals(set_name, _scatter(texts, vectors, partial))
        made.validate(texts.num_items)
        known = {
            "encoder": encoder,
            **coder.about(),
            "items": texts.num_items,
            "source": source,
            "records": texts.digest,
            "texts": len(texts),
            **_about(made, texts),
        }
        del vectors, made
        for file in known["sha256"]:
            (partial / file).replace(path / file)
        _write_manifest(path, {**manifest, "encoding": known})
    return sets.read(directory, set_name, texts.num_items, source)


# -- vectors -----------------------------------------------------------------


def _vectors(coder: Encoder, texts: Texts, path: Path, track: Any) -> Any:
    """Encodes all texts into a file; unit rows, or zero; `[texts, f]`."""
    total = len(texts)
    sample, rest = np.arange(total), np.arange(0)
    if total > _SAMPLE:
        drawn = np.random.default_rng(coder.seed).permutation(total)
        sample, rest = np.sort(drawn[:_SAMPLE]), np.sort(drawn[_SAMPLE:])
    some = coder.fit_transform(texts.take(sample))
    vectors = _allocate(path, (total, some.shape[1]), np.float32)
    vectors[sample] = some
    # Blocks are short: one bar for all of them, instead of one for each.
    coder.track = untracked
    starts = range(0, len(rest), _BLOCK)
    for start in track(starts, "other texts") if len(rest) else ():
        block = rest[start : start + _BLOCK]
        vectors[block] = coder.transform(texts.take(block))
    blocks = [slice(i, i + _ROWS) for i in range(0, total, _ROWS)]
    # What is next to nothing is so beside the longest of all.
    longest = max(_longest(vectors[rows]) for rows in blocks)
    for rows in blocks:
        vectors[rows] = features.unit_rows(vectors[rows], longest)
    return vectors


def _longest(values: np.ndarray) -> float:
    return float(np.linalg.norm(values, axis=1).max())


def _scatter(
    texts: Texts, vectors: np.ndarray, directory: Path
) -> dict[str, Rewritten]:
    """Writes the arrays of all modalities."""
    # Of some texts - without a word - the encoder can say nothing.
    told = np.concatenate(
        [
            vectors[i : i + _ROWS].any(axis=1)
            for i in range(0, len(vectors), _ROWS)
        ]
    )[texts.text]
    size, width = texts.num_items, vectors.shape[1]
    found = {}
    for modality in texts.modalities:
        ours = texts.modality == records.MODALITIES.index(modality)
        shapes = {
            "factual": (size, width),
            "described": (size,),
            "counterfactual": (size, texts.alternatives, width),
            "present": (size, texts.alternatives),
        }
        arrays = {
            name: _allocate(
                directory / f"{modality}.{name}.npy",
                shape,
                sets.ARRAYS[name][0],
            )
            for name, shape in shapes.items()
        }
        some = np.flatnonzero(ours & told & (texts.slot == DESCRIPTION))
        _copy(arrays["factual"], (texts.item,), some, texts, vectors)
        arrays["described"][texts.item[some]] = True
        # What nothing is told of as it is, is not told of as it might be.
        told_of = arrays["described"][texts.item]
        some = np.flatnonzero(
            ours & told & told_of & (texts.slot != DESCRIPTION)
        )
        at = texts.item, texts.slot
        _copy(arrays["counterfactual"], at, some, texts, vectors)
        arrays["present"][texts.item[some], texts.slot[some]] = True
        found[modality] = Rewritten(**arrays)
    return found


def _copy(
    target: np.ndarray,
    at: tuple[np.ndarray, ...],
    some: np.ndarray,
    texts: Texts,
    vectors: np.ndarray,
) -> None:
    for start in range(0, len(some), _ROWS):
        block = some[start : start + _ROWS]
        place = tuple(axis[block] for axis in at)
        target[place] = vectors[texts.text[block]]


def _allocate(path: Path, shape: tuple[int, ...], dtype: type) -> Any:
    """An array of zeros in a file, with room for it on the disk.

    A mapped file that the disk has no room for would not raise an error when
    it is written, but end the process. (Where room cannot be asked for, as on
    macOS, it may.)
    """
    values = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with path.open("r+b") as file, contextlib.suppress(AttributeError):
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return values


# -- the set's files ---------------------------------------------------------


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A folder for what is not yet complete; it is gone afterwards."""
    partial = path / _PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise InputError(
            "The vectors could not be written.",
            where=path,
            found=error.strerror,
            fix="free some space, and encode again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _about(made: Counterfactuals, texts: Texts) -> dict[str, Any]:
    """What the manifest says of the arrays."""
    sums = {
        f"{modality}.{name}.npy": hashlib.sha256(values.data).hexdigest()
        for modality, name, values in made.arrays()
    }
    counts = {
        modality: {
            "described": int(rows.described.sum()),
            "items": int(rows.present.any(axis=1).sum()),
            "counterfactuals": int(rows.present.sum()),
        }
        for modality, rows in made.modalities.items()
    }
    one = next(iter(made.modalities.values()))
    return {
        "modalities": list(made.modalities),
        "alternatives": texts.alternatives,
        "dim": one.dim,
        "counts": counts,
        "fingerprint": made.fingerprint,
        "sha256": sums,
    }


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    partial = path / _PARTIAL / sets.MANIFEST
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", "utf-8")
    partial.replace(path / sets.MANIFEST)
