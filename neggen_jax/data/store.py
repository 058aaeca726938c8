"""Dataset directories: a validated `Catalog` on disk, and back.

Every source ends here (`save`, called by `data/prepare.py`), and training,
generation and evaluation begin here (`load`). Layout of a directory:

    catalog.json        what this is: format version, name, sizes, source,
                        fingerprint, shards, image root. Written last: a
                        directory without it is not complete
    pairs/              the interactions by user, and by item, as arrays;
                        see data/pairs.py
    dataset_info.json, features.json, <name>-<split>.tfrecord-*
                        the interactions once more, as a TFDS dataset with
                        the splits train, valid and test
    items/              the items' records, as a second TFDS dataset: id,
                        title, text, attributes (name, value), image path
    users/              the users' own identifiers, where the source has any:
                        a third one, 65,536 to a record
    features/<modality>.npy, .present.npy, .json
                        vectors, mask of the items that have them, manifest
    images/             of sources that draw their own images
    counterfactuals/    what launch/generate.py makes of the items; see
                        data/counterfactuals.py
    truth.npz           of sources that know it (the bazaar); never read here

One record of the interactions is a block of up to 65,536 of them, and each
of its columns (users and items int32, timestamps int64, or empty where there
are none) is the plain bytes of a little-endian array.
`tfds.builder_from_directory(DIR)` opens the directory for everybody else's
tools; `load` maps arrays, and needs NumPy alone.

The fingerprint in catalog.json covers what training sees, and is checked by
every `load` that is not told that another process does; digests cover the
rest. A directory appears whole or not at all: it is written beside its place,
read back, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import (
    SPLITS,
    Catalog,
    Features,
    ItemRecords,
)
from neggen_jax.data import counterfactuals as rewritten
from neggen_jax.data import directories, pairs, tables
from neggen_jax.errors import InputError

FORMAT = 2
_CATALOG = "catalog.json"
_FIELDS = {
    "name": str,
    "num_users": int,
    "num_items": int,
    "counts": dict,
    "timestamps": list,
    "modalities": list,
    "source": dict,
    "fingerprint": str,
    "image_root": str,
    "files": dict,
}
# All that a dataset directory may hold and still be replaced by another.
# Counterfactuals are not among it: they may have taken days to generate.
_OURS = re.compile(
    r"(catalog|dataset_info|features)\.json|truth\.npz|.+\.tfrecord-\d+"
    r"|pairs|items|users|features|images|plots"
)
_FIX = "prepare it again with launch/prepare.py, with --overwrite"


def save(
    catalog: Catalog,
    directory: str | os.PathLike[str],
    *,
    source: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes a dataset directory.

    Args:
      catalog: validated; with records, if the items' records are to be kept.
      directory: where to.
      source: how the catalogue was made; any JSON.
      overwrite: replace a dataset directory that is there already.

    Raises:
      InputError: if the directory exists or the disk is full. What was there
        before is then still there, and nothing else.
    """
    with replacing(directory, overwrite=overwrite) as partial:
        write(catalog, partial, source=source)


def replacing(
    directory: str | os.PathLike[str], *, overwrite: bool = False
) -> AbstractContextManager[Path]:
    """Yields a temporary sibling that becomes the dataset directory.

    For sources with files of their own (images, truth), which they put there
    before they call `write`. See `directories.replacing`.
    """
    return directories.replacing(directory, overwrite=overwrite, ours=_OURS)


def write(
    catalog: Catalog, directory: Path, *, source: Mapping[str, Any]
) -> None:
    """Writes everything of a dataset directory into an existing directory.

    Raises:
      OSError: if the disk is full; `replacing` makes an `InputError` of it.
    """
    name = _snake_case(catalog.name)
    try:
        files = tables.write_interactions(catalog.splits, directory, name)
        files["pairs"] = pairs.write(catalog, directory)
        if catalog.records is not None:
            path = directory / "items"
            files["items"] = tables.write_items(catalog.records, path, name)
        if catalog.user_ids is not None:
            path = directory / "users"
            files["users"] = tables.write_users(catalog.user_ids, path, name)
        for modality, matrix in catalog.features.items():
            _write_features(matrix, directory / "features", modality)
        known = _description(catalog, directory, source, files)
        _write_json(directory / _CATALOG, known)
    except OSError as error:
        # NumPy tells of a short write without an error number.
        message = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, message) from error
    load(directory)


def load(
    directory: str | os.PathLike[str],
    *,
    records: bool = False,
    counterfactuals: str | None = None,
    trust: bool = False,
) -> Catalog:
    """Reads a dataset directory.

    Args:
      directory: written by `save`.
      records: also read the items' records and the users' own identifiers,
        which training does not need.
      counterfactuals: name of the set of them to read also.
      trust: do not read everything to see whether it was changed; where
        several processes load the same directory, one of them that does is
        enough.

    Returns:
      The catalogue. Interactions and vectors are mapped, not copied, into
      memory.

    Raises:
      InputError: if the directory is missing, incomplete, of another format,
        damaged, or not what its fingerprint says; or if the set of
        counterfactuals is (see `data/counterfactuals.py`).
    """
    directory = Path(directory).absolute()
    known = describe(directory)
    splits, index = pairs.read(
        directory, known["files"].get("pairs", ()), _read_array
    )
    pairs.check(directory, known, splits, index)
    features = {
        modality: _read_features(directory / "features", modality)
        for modality in known["modalities"]
    }
    items, users = None, None
    if records:
        items, users = read_records(directory), read_users(directory)
    made = None
    if counterfactuals is not None:
        made = rewritten.read(
            directory,
            counterfactuals,
            known["num_items"],
            items_digest(known),
            trust,
        )
    catalog = Catalog(
        name=known["name"],
        num_users=known["num_users"],
        num_items=known["num_items"],
        splits=splits,
        features=features,
        records=items,
        user_ids=users,
        counterfactuals=made,
        indexed=index,
        verified=known["fingerprint"] if trust else "",
    )
    if trust:
        return catalog
    for part in ("pairs", *SPLITS):
        _intact(directory, known["files"].get(part, {}))
    if catalog.fingerprint != known["fingerprint"]:
        raise _changed(_culprit(directory, catalog))
    return catalog


def read_records(directory: str | os.PathLike[str]) -> ItemRecords | None:
    """Reads the items' records alone, for who has the rest already.

    Args:
      directory: written by `save`.

    Returns:
      The records; None for a dataset without.

    Raises:
      InputError: if the directory is not what `describe` wants, or the
        records are damaged or were changed.
    """
    directory = Path(directory).absolute()
    known = describe(directory)
    if "items" not in known["files"]:
        return None
    paths = _intact(directory, known["files"]["items"])
    root = known["image_root"] and os.fspath(directory / known["image_root"])
    return tables.read_items(paths, root)


def read_users(directory: str | os.PathLike[str]) -> list[str] | None:
    """Reads the users' own identifiers alone; None if there are none.

    Raises:
      InputError: see `read_records`.
    """
    directory = Path(directory).absolute()
    known = describe(directory)
    if "users" not in known["files"]:
        return None
    return tables.read_users(_intact(directory, known["files"]["users"]))


def items_digest(known: Mapping[str, Any]) -> str:
    """Digest of the items' records, by which what is made of them knows them.

    Args:
      known: of `describe`.

    Returns:
      Hex digest; "" for a dataset without records.
    """
    files = known["files"].get("items", {})
    digests = [files[name] for name in sorted(files)]
    if not digests:
        return ""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:32]


def describe(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What catalog.json says of a dataset directory.

    Raises:
      InputError: if it is not a complete dataset directory of this format.
    """
    path = Path(directory) / _CATALOG
    if not path.parent.is_dir():
        raise InputError(
            "There is no such dataset directory.",
            where=path.parent,
            fix="make one with launch/prepare.py",
        )
    if not path.exists():
        names = sorted(entry.name for entry in path.parent.iterdir())
        raise InputError(
            "This is not a complete dataset directory.",
            where=path.parent,
            expected=f"a file {_CATALOG}, which is written last",
            found=", ".join(names[:8]) or "an empty directory",
            fix=_FIX,
        )
    known = _read_json(path)
    if known.get("format") != FORMAT:
        raise InputError(
            "The dataset directory has another format version.",
            where=path,
            expected=FORMAT,
            found=known.get("format"),
            fix=_FIX,
        )
    for field, kind in _FIELDS.items():
        if not isinstance(known.get(field), kind):
            raise InputError(
                f"The field {field!r} is missing or of the wrong type.",
                where=path,
                expected=kind.__name__,
                found=repr(known.get(field)),
                fix=_FIX,
            )
    return known


def _description(
    catalog: Catalog,
    directory: Path,
    source: Mapping[str, Any],
    files: Mapping[str, Sequence[Path]],
) -> dict[str, Any]:
    root = catalog.records.image_root if catalog.records else ""
    if root and Path(root).resolve().is_relative_to(directory):
        # Images in the directory move with it.
        root = Path(root).resolve().relative_to(directory).as_posix()
    elif root:
        root = os.fspath(Path(root).resolve())
    parts = catalog.splits
    return {
        "format": FORMAT,
        "name": catalog.name,
        "num_users": catalog.num_users,
        "num_items": catalog.num_items,
        "counts": {split: len(parts[split]) for split in SPLITS},
        "timestamps": [
            split for split in SPLITS if parts[split].timestamps is not None
        ],
        "modalities": list(catalog.features),
        "source": dict(source),
        "fingerprint": catalog.fingerprint,
        "image_root": root,
        "files": {
            kind: {
                p.relative_to(directory).as_posix(): _digest(p) for p in paths
            }
            for kind, paths in files.items()
        },
    }


def _write_features(matrix: Features, directory: Path, modality: str) -> None:
    directory.mkdir(exist_ok=True)
    values = np.ascontiguousarray(matrix.values, np.float32)
    np.save(directory / f"{modality}.npy", values)
    np.save(directory / f"{modality}.present.npy", matrix.present)
    about = {"shape": values.shape, "sha256": _sha256(values)}
    _write_json(directory / f"{modality}.json", {**matrix.manifest, **about})


def _read_features(directory: Path, modality: str) -> Features:
    return Features(
        values=_read_array(directory / f"{modality}.npy", np.float32),
        present=_read_array(directory / f"{modality}.present.npy", np.bool_),
        manifest=_read_json(directory / f"{modality}.json"),
    )


def _read_array(path: Path, dtype: type) -> np.ndarray:
    try:
        array = np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, error) from error
    if array.dtype != dtype:
        raise _changed(path)
    return array


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"{type(value).__name__} instead of an object")
    return value


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact(directory: Path, files: Mapping[str, str]) -> list[Path]:
    """The paths of `files`, none of which has changed."""
    paths = [directory / name for name in files]
    for path, digest in zip(paths, files.values(), strict=True):
        # A missing file is found by whoever reads it.
        if path.exists() and _digest(path) != digest:
            raise _changed(path)
    return paths


def _culprit(directory: Path, catalog: Catalog) -> Path:
    """The changed feature file, or the directory if it is none of them."""
    for modality, matrix in catalog.features.items():
        path = directory / "features" / f"{modality}.npy"
        if _sha256(matrix.values) != matrix.manifest.get("sha256"):
            return path
        if not np.array_equal(matrix.present, matrix.values.any(axis=1)):
            return path.with_suffix(".present.npy")
    return directory


def _damaged(path: Path, found: object) -> InputError:
    return InputError(
        "A file of the dataset directory cannot be read.",
        where=path,
        found=found,
        fix=_FIX,
    )


def _changed(path: Path) -> InputError:
    return InputError(
        "The dataset was changed since it was prepared.",
        where=path,
        expected="the contents whose fingerprint is in " + _CATALOG,
        fix=_FIX,
    )


def _snake_case(name: str) -> str:
    """The name as TFDS wants it: lower case, no signs, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return name if name[:1].isalpha() else f"catalog_{name}".strip("_")
