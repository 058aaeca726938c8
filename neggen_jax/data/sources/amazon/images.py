"""The image features of 2014: a binary file without a header.

One record a product: its identifier, 10 bytes of ASCII, and 4096 numbers of
single precision, from a network that others have run over the pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from neggen_jax.catalog import Features
from neggen_jax.data.sources.lines import is_gzip
from neggen_jax.errors import InputError

WIDTH = 4096
_NAME = 10  # bytes
RECORD = np.dtype([("id", f"S{_NAME}"), ("values", "<f4", (WIDTH,))])
_BLOCK = 256  # records that are read at a time, some 4 MB


def read_image_features(
    path: Path, ids: Sequence[str], scratch: Path
) -> Features:
    """Reads the vectors of some items.

    They go through a file on disk and are mapped from there, so that memory
    does not grow with the catalogue.

    Args:
      path: the file.
      ids: the items, in the order of the rows.
      scratch: directory with room for the rows; nothing is left in it.

    Returns:
      float32 `[len(ids), 4096]`; items that it does not have are absent.

    Raises:
      InputError: if its length is no multiple of a record's, or it holds
        what is no identifier, NaN or infinity, naming the byte.
    """
    if is_gzip(path):
        raise InputError(
            "The file of image features is gzipped.",
            where=path,
            fix=f"gunzip {path.name}",
        )
    size = path.stat().st_size
    if not size or size % RECORD.itemsize:
        raise InputError(
            "The file of image features is cut off, or is something else.",
            where=f"{path}, byte {size - size % RECORD.itemsize}",
            expected=f"records of {RECORD.itemsize:,} bytes",
            found=f"{size:,} bytes, {size % RECORD.itemsize:,} too many"
            if size
            else "an empty file",
            fix="download it again",
        )
    places = {name.encode(): place for place, name in enumerate(ids)}
    present = np.zeros(len(ids), np.bool_)
    copy = scratch / ".image_features"
    try:
        with path.open("rb") as source, copy.open("wb") as target:
            for start in _blocks(size):
                block = np.frombuffer(
                    source.read(_BLOCK * RECORD.itemsize), RECORD
                )
                _check(block, path, start)
                rows = zip(block["id"], block["values"], strict=True)
                for name, row in rows:
                    place = places.pop(name, None)
                    # A row of zeros is no picture.
                    if place is None or not row.any():
                        continue
                    target.seek(place * row.nbytes)
                    target.write(row.tobytes())
                    present[place] = True
            target.truncate(len(ids) * WIDTH * 4)
        values = np.memmap(copy, "<f4", "r", shape=(len(ids), WIDTH))
    finally:
        # What is mapped stays until nobody has it any more.
        copy.unlink(missing_ok=True)
    if not present.any():
        raise InputError(
            "The file of image features has none of the items.",
            where=path,
            expected=f"products such as {ids[0]!r}",
        )
    manifest = {
        "encoder": "file",
        "version": None,
        "parameters": {"file": path.name},
    }
    return Features(np.asarray(values), present, manifest)


def _blocks(size: int) -> Iterable[int]:
    from neggen_jax.data.features import tracked

    starts = range(0, size, _BLOCK * RECORD.itemsize)
    return tracked(starts, "image features")


def _check(block: np.ndarray, path: Path, start: int) -> None:
    """Sees whether these are records at all; if not, where not."""
    if not block.size:
        raise InputError("The file was cut off meanwhile.", where=path)
    # A loop over identifiers is short beside one over values.
    named = np.array([name.isalnum() for name in block["id"]])
    finite = np.isfinite(block["values"]).all(axis=1)
    for fine, problem in (
        (named, "A record of image features begins with no identifier."),
        (finite, "A record of image features holds NaN or infinity."),
    ):
        if not fine.all():
            bad = int(np.argmin(fine))
            raise InputError(
                problem,
                where=f"{path}, byte {start + bad * RECORD.itemsize}",
                found=repr(bytes(block["id"][bad])),
                fix="download it again",
            )
