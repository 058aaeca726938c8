"""Texts of a counterfactual set -> vectors beside its records.

Stands behind `merging.py`, which completes a set, and before
`data/counterfactuals.py`, by which training reads what is written here.

All texts of a set - both modalities, factual and counterfactual - are encoded
by one encoder that learned from all of them, so that vectors differ where
texts do and nowhere else. Memory holds a few numbers a text, and blocks of
texts and vectors; the records stay in their file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.data import counterfactuals as sets
from neggen_jax.data import features, store
from neggen_jax.data.counterfactuals import Counterfactuals, Rewritten
from neggen_jax.data.encoders import Encoder, Tfidf, untracked
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.sets import files
from neggen_jax.generation.sets.texts import DESCRIPTION, Texts, survey

# Texts that an encoder learns from, and those it is given at a time after.
_SAMPLE, _BLOCK = Tfidf.sample, 8_192
_ROWS = 8_192  # rows of an array that are written at a time
_CHECKED = 64  # texts that show whether two encoders are the same
_PARTIAL = ".encoding"


def encode(
    directory: str | os.PathLike[str],
    set_name: str,
    *,
    encoder: str = "tfidf",
    model: str | None = None,
    dim: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    like: str = "",
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
      like: name of another set, encoded already with these settings, whose
        texts the encoder learns from; so that vectors of both sets are of
        one space. A neural network learns nothing, and needs no such set.
      progress: whether to show on stderr how far the work is.

    Returns:
      The set as it is on disk. The same records and settings give the same
      bytes; what was there before stays until all is written.

    Raises:
      InputError: if the set is not complete, of other items or without a
        counterfactual, a record is not what it should be, the encoder cannot
        be made or is not that of `like`, or the disk is full.
    """
    directory = Path(directory).absolute()
    described = store.describe(directory)
    path = sets.locate(directory, set_name)
    manifest = sets.read_manifest(directory, set_name)
    source = store.items_digest(described)
    files.check_source(path, manifest, source)
    kind = features.encoder_of("text", encoder, dim, batch_size, seed)
    texts = survey(path, described["num_items"], manifest)
    other = None
    if like:
        taught = sets.read(directory, like, texts.num_items, source)
        learned = survey(
            sets.locate(directory, like), texts.num_items, taught.manifest
        )
        other = {"set": like, "records": learned.digest}
    # Made late enough that nobody waits for weights to hear of bad records.
    track = features.tracked if progress else untracked
    coder = kind(model, dim, batch_size, seed, track)
    with _writing(path) as partial:
        if other is not None:
            _learn(coder, learned, taught)
        vectors = _vectors(
            coder, texts, partial / "vectors.npy", track, other is not None
        )
        made = Counterfactuals(set_name, _scatter(texts, vectors, partial))
        made.validate(texts.num_items)
        known = {
            "encoder": encoder,
            **coder.about(),
            "items": texts.num_items,
            "source": source,
            "records": texts.digest,
            "texts": len(texts),
            **({"like": other} if other else {}),
            **_about(made, texts),
        }
        del vectors, made
        for file in known["sha256"]:
            (partial / file).replace(path / file)
        manifest = {**manifest, "encoding": known}
        files.write_json(path / sets.MANIFEST, manifest)
    return sets.read(directory, set_name, texts.num_items, source)


# -- vectors -----------------------------------------------------------------


def _learn(coder: Encoder, texts: Texts, made: Counterfactuals) -> None:
    """Learns from the texts of another set, and makes sure that it has."""
    sample, _ = _sampled(len(texts), coder.seed)
    learned = coder.fit_transform(texts.take(sample))
    some = np.flatnonzero(texts.slot == DESCRIPTION)[:_CHECKED]
    rows = features.unit_rows(
        coder.transform(texts.take(texts.text[some])), _longest(learned)
    )
    parts = [made.modalities.get(name) for name in records.MODALITIES]
    want = np.stack(
        [
            part.factual[item]
            for item, number in zip(
                texts.item[some], texts.modality[some], strict=True
            )
            if (part := parts[number]) is not None
        ]
    )
    # Machines round otherwise; other encoders differ by far more.
    if rows.shape != want.shape or not np.allclose(rows, want, atol=1e-3):
        known = made.manifest["encoding"]
        ours = {**coder.about(), "dim": rows.shape[1]}
        raise InputError(
            f"The set {made.name!r} was encoded by another encoder.",
            where=texts.path.parent,
            expected={key: known.get(key) for key in ours},
            found=ours,
            fix="encode both sets again, with the same settings",
        )


def _sampled(total: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The texts that an encoder learns from, and the others, ascending."""
    if total <= _SAMPLE:
        return np.arange(total), np.arange(0)
    drawn = np.random.default_rng(seed).permutation(total)
    return np.sort(drawn[:_SAMPLE]), np.sort(drawn[_SAMPLE:])


def _vectors(
    coder: Encoder, texts: Texts, path: Path, track: Any, learned: bool = False
) -> Any:
    """Encodes all texts into a file; unit rows, or zero; `[texts, f]`."""
    total = len(texts)
    sample, rest = _sampled(total, coder.seed)
    encode = coder.transform if learned else coder.fit_transform
    some = encode(texts.take(sample))
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
        with files.disk(path, "vectors"):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
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
