"""What really moves the users of a bazaar.

Stored beside the data (`truth.npz`) for tests and measurements that ask
whether a method has found the causes. Nothing that loads a `Catalog`, and
nothing that trains, reads it.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile

import numpy as np

from neggen_jax.errors import InputError

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What really moves the users of a bazaar; A attributes, V values in all.

    Attributes:
      attributes: names, `[A]`.
      values: names of the values of each attribute.
      visibility: "text", "image" or "both" for each attribute.
      causal: bool `[A]`, whether the attribute moves anybody.
      item_values: int8 `[I, A]`, index of each item's value.
      appeal: float32 `[I]`, log of the items' popularity.
      causes: bool `[U, A]`, whether the attribute moves the user.
      preferences: float16 `[U, V]`, what a value adds to the log-odds of an
        item, attribute after attribute; 0 for values that do not matter.
    """

    attributes: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    visibility: tuple[str, ...]
    causal: np.ndarray
    item_values: np.ndarray
    appeal: np.ndarray
    causes: np.ndarray
    preferences: np.ndarray

    def utilities(self, users: np.ndarray) -> np.ndarray:
        """Log-odds with which `users` take each item, float32 `[b, I]`."""
        offsets = np.cumsum([0] + [len(names) for names in self.values])
        has = np.zeros((len(self.appeal), offsets[-1]), np.float32)
        np.put_along_axis(has, offsets[:-1] + self.item_values, 1, axis=1)
        return self.preferences[users].astype(np.float32) @ has.T + self.appeal

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file, readable without this package."""
        columns = vars(self) | {"values": [" ".join(v) for v in self.values]}
        with open(path, "wb") as file:
            np.savez(file, **columns)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Truth:
        """Reads what `save` wrote.

        Raises:
          InputError: there is no such file, or it is not a bazaar's truth.
        """
        try:
            with np.load(path) as file:
                columns = {
                    f.name: file[f.name] for f in dataclasses.fields(cls)
                }
        except _UNREADABLE as error:
            raise InputError(
                "The truth of the bazaar cannot be read.",
                where=path,
                found=f"{type(error).__name__}: {error}",
                fix="prepare the bazaar again",
            ) from error
        for name in ("attributes", "values", "visibility"):
            columns[name] = tuple(columns[name].tolist())
        columns["values"] = tuple(tuple(v.split()) for v in columns["values"])
        return cls(**columns)
