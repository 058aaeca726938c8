"""Counterfactuals of a dataset: in memory, and read from its directory.

`Catalog.counterfactuals` holds what is defined here, and `data/store.py`
reads it with `read`. A dataset directory has any number of sets of them:

    counterfactuals/<set>/records.jsonl       what was written, or why not
    counterfactuals/<set>/manifest.json       how; last, what was encoded
    counterfactuals/<set>/<modality>.<array>.npy

Records are made by `neggen_jax/generation/sets/generate.py`, arrays by
`neggen_jax/generation/sets/encode.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.errors import InputError, nearest

FOLDER = "counterfactuals"
# Sets that configs name -> flags of launch/generate.py that make them.
_MAKING = {
    "attributes": " --backend=attributes",
    "random": " --backend=attributes --contrast=random",
    "probes": " --backend=attributes --probe",
}
MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
# What holds of each array: dtype, and number of axes.
ARRAYS: dict[str, tuple[type, int]] = {
    "factual": (np.float32, 2),
    "described": (np.bool_, 1),
    "counterfactual": (np.float32, 3),
    "present": (np.bool_, 2),
}
_BLOCK = 8_192  # items that are checked at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Rewritten:
    """One modality of all items in words, and those words rewritten.

    Attributes:
      factual: float32 `[num_items, f]`, the items as they are; zero where
        there is no description.
      described: bool `[num_items]`, whether there is.
      counterfactual: float32 `[num_items, K, f]`, as they might have been;
        zero where there is no such alternative.
      present: bool `[num_items, K]`, whether there is.
    """

    factual: np.ndarray
    described: np.ndarray
    counterfactual: np.ndarray
    present: np.ndarray

    @property
    def dim(self) -> int:
        """Width of one vector."""
        return self.factual.shape[1]

    @property
    def alternatives(self) -> int:
        """K, the most counterfactuals an item can have."""
        return self.present.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Counterfactuals:
    """One set of a dataset, encoded.

    Attributes:
      name: of the set.
      modalities: "text", "image" -> `Rewritten`, all of one shape; vectors
        of all are of one space.
      manifest: how the set came about.
      verified: the fingerprint, where somebody else has found it.
    """

    name: str
    modalities: Mapping[str, Rewritten]
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verified: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the arrays: their modality, shape and bytes.

        Not of the set's name, nor of what is only told about it.
        """
        if self.verified:
            return self.verified
        digest = hashlib.sha256()
        for modality, name, array in self.arrays():
            digest.update(json.dumps([modality, name, *array.shape]).encode())
            digest.update(np.ascontiguousarray(array, ARRAYS[name][0]).data)
        return digest.hexdigest()[:32]

    def arrays(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yields (modality, name, array), always in the same order."""
        for modality in sorted(self.modalities):
            for name in ARRAYS:
                yield modality, name, getattr(self.modalities[modality], name)

    def shuffled(self, seed: int) -> Counterfactuals:
        """Gives each item the counterfactuals of another one.

        All modalities of an item go together, to an item that has as many;
        so what is lost is only that they belong to the item.

        Args:
          seed: of the exchange.
        """
        rng = np.random.default_rng(seed)
        parts = [part.present for part in self.modalities.values()]
        masks = np.concatenate(parts, axis=1)
        place = np.arange(len(masks))
        _, kind = np.unique(masks, axis=0, return_inverse=True)
        for number in range(kind.max() + 1):
            # Along one cycle: nobody keeps their own but who is alone.
            circle = rng.permutation(np.flatnonzero(kind == number))
            place[circle] = np.roll(circle, 1)
        moved = {
            name: dataclasses.replace(
                part,
                counterfactual=part.counterfactual[place],
                present=part.present[place],
            )
            for name, part in self.modalities.items()
        }
        return dataclasses.replace(self, modalities=moved, verified="")

    def validate(self, num_items: int) -> Counterfactuals:
        """Checks every rule that training relies on.

        Args:
          num_items: of the catalogue.

        Returns:
          The counterfactuals themselves.

        Raises:
          InputError: naming the first rule that does not hold, and where.
        """
        where = f"counterfactuals {self.name!r}"
        if not self.modalities:
            raise InputError("A set of counterfactuals is empty.", where=where)
        first = next(iter(self.modalities.values()))
        sizes = (num_items, *first.counterfactual.shape[1:])
        for modality, name, array in self.arrays():
            _check_array(f"{where}, {modality}.{name}", name, array, sizes)
        for modality, rows in self.modalities.items():
            for start in range(0, num_items, _BLOCK):
                _check_rows(f"{where}, {modality}", rows, start)
        if not any(rows.present.any() for rows in self.modalities.values()):
            raise InputError(
                "No item has a counterfactual.",
                where=where,
                fix="see with launch/inspect_records.py why none was accepted",
            )
        return self


def _check_array(
    where: str, name: str, array: np.ndarray, sizes: tuple[int, ...]
) -> None:
    dtype, axes = ARRAYS[name]
    if len(sizes) != 3 or 0 in sizes:
        shape: tuple[int, ...] | None = None
    elif name == "factual":
        shape = sizes[0], sizes[2]
    else:
        shape = sizes[:axes]
    if array.dtype != dtype or array.shape != shape:
        expected = f"shape {shape}" if shape else f"{axes} axes, none empty"
        raise InputError(
            "An array of counterfactuals has another shape or type.",
            where=where,
            expected=f"{np.dtype(dtype)} of {expected}",
            found=f"{array.dtype} of shape {array.shape}",
            fix="one row an item; as many alternatives and as wide vectors "
            "in all modalities",
        )


def _check_rows(where: str, rows: Rewritten, start: int) -> None:
    some = slice(start, start + _BLOCK)
    described, present = rows.described[some], rows.present[some]
    for name, values, there in (
        ("factual", rows.factual[some], described),
        ("counterfactual", rows.counterfactual[some], present),
    ):
        finite = np.isfinite(values).all(axis=-1)
        wrong = finite & ((values != 0).any(axis=-1) != there)
        for bad, problem, expected in (
            (~finite, "A vector holds NaN or infinity.", "finite values"),
            (
                wrong,
                "A vector contradicts the mask of those that there are.",
                "zero exactly where the mask is False",
            ),
        ):
            if bad.any():
                at = np.argwhere(bad)[0]
                raise InputError(
                    problem,
                    where=f"{where}.{name}, item {start + at[0]}",
                    expected=expected,
                    found=f"{values[tuple(at)][:4]}, mask {there[tuple(at)]}",
                )
    orphans = present.any(axis=1) & ~described
    if orphans.any():
        raise InputError(
            "An item has a counterfactual and no description.",
            where=f"{where}, item {start + np.flatnonzero(orphans)[0]}",
            expected="nothing present where nothing is described",
        )


def locate(directory: Path, name: str) -> Path:
    """The directory of the set `name`, whether it is there or not.

    Args:
      directory: of the dataset.
      name: of the set.

    Raises:
      InputError: if the name is not a plain word.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII):
        raise InputError(
            "The name of a set of counterfactuals must be a plain word.",
            expected="letters, digits, '_', '-' and '.'",
            found=repr(name),
        )
    return directory / FOLDER / name


def read(
    directory: Path,
    name: str,
    num_items: int,
    source: str,
    trust: bool = False,
) -> Counterfactuals:
    """Reads a set, as `generation/sets/encode.py` has left it.

    Args:
      directory: of the dataset.
      name: of the set.
      num_items: of the dataset.
      source: digest of the items' records, of `store.items_digest`.
      trust: do not read the arrays to see whether they were changed.

    Returns:
      The counterfactuals; arrays are mapped, not copied, into memory.

    Raises:
      InputError: if there is no such set, it is not complete or not encoded,
        of other items, damaged, or changed since it was encoded.
    """
    path = locate(directory, name)
    command = f"launch/generate.py --data={directory} --set={name}"
    manifest = read_manifest(directory, name)
    known = manifest.get("encoding")
    if not isinstance(known, dict):
        raise InputError(
            "The counterfactuals have not been encoded yet.",
            where=path,
            expected="vectors of their texts",
            fix=f"encode them: python {command} --merge",
        )
    again = f"encode them again: python {command} --merge"
    for field, ours in (("items", num_items), ("source", source)):
        if known.get(field) != ours:
            raise InputError(
                "The counterfactuals were encoded for other items.",
                where=path,
                expected=f"{field} {ours}, as the dataset has now",
                found=known.get(field),
                fix="generate them again, or prepare the dataset as it was",
            )
    records = path / RECORDS
    # Training needs the arrays alone: they may travel without the records.
    if (
        not trust
        and records.exists()
        and digest(records) != known.get("records")
    ):
        raise InputError(
            "The records were changed since they were encoded.",
            where=records,
            fix=again,
        )
    found = Counterfactuals(
        name,
        {
            modality: Rewritten(
                **{n: _array(path / f"{modality}.{n}.npy", n) for n in ARRAYS}
            )
            for modality in known.get("modalities", ())
        },
        manifest,
        str(known.get("fingerprint")) if trust else "",
    )
    if found.fingerprint != known.get("fingerprint"):
        raise InputError(
            "The encoded counterfactuals are not those of their manifest.",
            where=_culprit(path, found, known),
            fix=again,
        )
    return found


def read_manifest(directory: Path, name: str) -> dict[str, Any]:
    """What manifest.json says of a set, encoded or not.

    Raises:
      InputError: if there is no such set, or it is not complete.
    """
    path = locate(directory, name)
    if not path.is_dir():
        sets = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [p.name for p in sets if p.is_dir()]
        raise InputError(
            f"There is no set of counterfactuals {name!r}.",
            where=path.parent,
            fix=(f"{nearest(name, names)}; or " if names else "")
            + "make it: python launch/generate.py "
            + f"--data={directory}{_MAKING.get(name, '')}",
        )
    if not (path / MANIFEST).exists():
        raise InputError(
            "The set of counterfactuals is not complete.",
            where=path,
            expected=f"a file {MANIFEST}, which is written last",
            fix="go on with the command that began it; of shards, "
            "add --merge when all have ended",
        )
    try:
        value = json.loads((path / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path / MANIFEST, error) from error
    if not isinstance(value, dict):
        raise _damaged(path / MANIFEST, f"{type(value).__name__}, no object")
    return value


def digest(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _array(path: Path, name: str) -> np.ndarray:
    try:
        array = np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, error) from error
    if (array.dtype, array.ndim) != ARRAYS[name]:
        raise _damaged(path, f"{array.dtype} of shape {array.shape}")
    return array


def _culprit(
    path: Path, found: Counterfactuals, known: Mapping[str, Any]
) -> Path:
    """The file that was changed, or the set if it is none of them."""
    told = known.get("sha256", {})
    for modality, name, array in found.arrays():
        file = f"{modality}.{name}.npy"
        raw = np.ascontiguousarray(array).data
        if hashlib.sha256(raw).hexdigest() != told.get(file):
            return path / file
    return path


def _damaged(path: Path, found: object) -> InputError:
    return InputError(
        "A file of the counterfactuals cannot be read.",
        where=path,
        found=found,
        fix="encode them again with launch/generate.py --merge",
    )
