"""The workdir is the run: what it was started with, and what it has said.

`claim` ties a directory to one config and one dataset; the same command
again resumes, any other is refused. `Log` writes metrics to `metrics.jsonl`
and TensorBoard, and takes back what a resumed run is about to say again.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from neggen_jax.catalog import Catalog
from neggen_jax.checkpoint import read_json, write_json
from neggen_jax.config import RESUMABLE, flatten
from neggen_jax.errors import InputError


def claim(
    workdir: str | os.PathLike[str], config: ConfigDict, catalog: Catalog
) -> pathlib.Path:
    """Makes the workdir of a run, or checks that it is this run's.

    Returns:
      The directory, which now holds `run.json`.

    Raises:
      InputError: if it was made with another config or other data, or holds
        something else.
    """
    directory = pathlib.Path(workdir)
    identity = {
        "dataset": catalog.name,
        "fingerprint": catalog.fingerprint,
        "config": config.to_dict(),
    }
    path = directory / "run.json"
    if directory.is_file():
        raise InputError("The workdir is a file.", where=directory)
    if not path.exists():
        if directory.exists() and any(directory.iterdir()):
            raise InputError(
                "The workdir holds something that is not a run.",
                where=directory,
                expected="a new or empty directory, or one with run.json",
                fix="choose another --workdir",
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(path, identity)
        except OSError as error:
            raise InputError(
                "The workdir cannot be written.",
                where=directory,
                found=error.strerror,
            ) from error
        return directory
    _check_same(read_json(path), json.loads(json.dumps(identity)), directory)
    return directory


def _check_same(then: dict, now: dict, directory: pathlib.Path) -> None:
    if then["fingerprint"] != now["fingerprint"]:
        raise InputError(
            "The workdir belongs to a run on other data.",
            where=directory,
            expected=f"{then['dataset']} ({then['fingerprint']})",
            found=f"{now['dataset']} ({now['fingerprint']})",
            fix="give that dataset, or choose another --workdir",
        )
    old, new = flatten(then["config"]), flatten(now["config"])
    free = set(RESUMABLE)
    if new.get("optimizer.schedule") != "constant":
        # The learning rate depends on how long the run will be.
        free.discard("train.epochs")
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in free and old.get(key) != new.get(key)
    ]
    if changed:
        raise InputError(
            "The workdir belongs to a run with another config.",
            where=directory,
            found="; ".join(changed),
            fix="give the same config to resume, or choose another --workdir",
        )


class Log:
    """Metrics of a run, by step.

    Args:
      directory: the workdir.
      step: that the run goes on from; later lines are taken back.
    """

    def __init__(self, directory: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        self._path = directory / "metrics.jsonl"
        kept = [
            line
            for line in _lines(self._path)
            if json.loads(line)["step"] <= step
        ]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        self._board = SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line; numbers also go to TensorBoard."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Puts everything on disk."""
        self._file.close()
        self._board.close()


def _lines(path: pathlib.Path) -> list[str]:
    """Whole lines; one that a kill cut short is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
