"""The workdir is the run: what it was started with, and what it has said.

`claim` ties a directory to one config and one dataset; the same command
again resumes, any other is refused. `Log` writes metrics to `metrics.jsonl`
and TensorBoard, and takes back what a resumed run is about to say again.
`writing` says clearly that a disk is full.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from neggen_jax import hosts, storage
from neggen_jax.catalog import Catalog
from neggen_jax.checkpoint import read_json, write_json
from neggen_jax.config import RESUMABLE, flatten, written
from neggen_jax.data.batches import ORDER
from neggen_jax.errors import InputError

# What tells whose a workdir is.
RUN = "run.json"


@contextlib.contextmanager
def writing(directory: epath.Path) -> Iterator[None]:
    """Turns a disk that does not take what is written into an error.

    Raises:
      InputError: for any `OSError` inside.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            "The workdir cannot be written.",
            where=directory,
            found=error.strerror or error,
            fix=storage.room(directory),
        ) from error


def claim(
    workdir: str | os.PathLike[str], config: ConfigDict, catalog: Catalog
) -> epath.Path:
    """Makes the workdir of a run, or checks that it is this run's.

    Returns:
      The directory, which now holds `run.json`.

    Raises:
      InputError: if it was made with another config or other data, or holds
        something else.
    """
    directory = storage.path(workdir)
    identity = {
        "dataset": catalog.name,
        "fingerprint": catalog.identity,
        "config": config.to_dict(),
        "order": ORDER,
    }
    path = directory / RUN
    if directory.exists() and not directory.is_dir():
        raise InputError("The workdir is a file.", where=directory)
    if not path.exists():
        # A kill may have left the very first file half written.
        begun = {path.with_suffix(".partial").name}
        if (
            directory.exists()
            and {entry.name for entry in directory.iterdir()} - begun
        ):
            raise InputError(
                "The workdir holds something that is not a run.",
                where=directory,
                expected="a new or empty directory, or one with run.json",
                fix="choose another --workdir",
            )
        with writing(directory):
            write_json(path, identity)
        return directory
    before, now = read_identity(directory), json.loads(json.dumps(identity))
    _check_same(before, now, directory)
    if before != now:
        # The dataset may have moved, the mesh may be another: whoever opens
        # the workdir next should know.
        with writing(directory):
            write_json(path, identity)
    return directory


def read_identity(directory: epath.Path) -> dict[str, Any]:
    """What a workdir was made with: "dataset", "fingerprint" and "config".

    Raises:
      InputError: if it is not a workdir, or damaged.
    """
    path = directory / RUN
    if not path.exists():
        raise InputError(
            "There is no run here.",
            where=directory,
            expected="a --workdir that launch/train.py has written",
        )
    identity = read_json(path)
    keys = {"dataset", "fingerprint", "config"}
    if not isinstance(identity, dict) or not keys <= identity.keys():
        raise InputError(
            "This run.json does not tell of a run.",
            where=path,
            expected=f"an object with {', '.join(sorted(keys))}",
            fix="use a new --workdir, or restore the file",
        )
    return identity


def _check_same(then: dict, now: dict, directory: epath.Path) -> None:
    if then["fingerprint"] != now["fingerprint"]:
        raise InputError(
            "The workdir belongs to a run on other data.",
            where=directory,
            expected=f"{then['dataset']} ({then['fingerprint']})",
            found=f"{now['dataset']} ({now['fingerprint']})",
            fix="give that dataset, or choose another --workdir",
        )
    if then.get("order", 1) != now["order"]:
        raise InputError(
            "The workdir belongs to a version that draws other batches.",
            where=directory,
            expected=f"order {now['order']}, which this version has",
            found=f"order {then.get('order', 1)}",
            fix="go on with that version, or choose another --workdir",
        )
    new = flatten(now["config"])
    old = written(then["config"], new)
    free = set(RESUMABLE)
    ramps = [value for key, value in new.items() if key.endswith(".unit")]
    if new.get("optimizer.schedule") != "constant" or "run" in ramps:
        # The learning rate, or what is let in, depends on how long the run
        # will be.
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
            found="\n".join(changed),
            fix="give the same config to resume, or choose another --workdir",
        )


class Log:
    """Metrics of a run, by step.

    Only process 0 writes anything. In a bucket nothing can be appended to:
    there, files are written in a temporary directory, and `keep` copies them.

    Args:
      directory: the workdir.
      step: that the run goes on from; later lines are taken back.
      evaluated: whether the evaluation of that step counts; its line is
        taken back otherwise.
    """

    def __init__(
        self, directory: epath.Path, step: int, evaluated: bool = True
    ):
        self._quiet = not hosts.first()
        self._path = directory / "metrics.jsonl"
        self._copied: tempfile.TemporaryDirectory | None = None
        self._news = False
        hosts.lead("metrics", lambda: self._open(step, evaluated))

    def _open(self, step: int, evaluated: bool) -> None:
        directory = here = self._path.parent
        if storage.remote(directory):
            self._copied = tempfile.TemporaryDirectory()
            here = epath.Path(self._copied.name)
        path = here / self._path.name
        with writing(directory):
            kept = [
                text
                for line, text in _lines(self._path)
                if line["step"] < step
                or (line["step"] == step and (evaluated or not _valid(line)))
            ]
            storage.write(path, "".join(line + "\n" for line in kept).encode())
            self._file = path.open("a")
        self._board = _summary_writer()(
            str(here / "tensorboard"),
            purge_step=step + 1,
            # Without end: its thread may die of a full disk, and whoever then
            # waited for room in the queue would do so for ever.
            max_queue=0,
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one line; numbers also go to TensorBoard."""
        if self._quiet:
            return
        with writing(self._path.parent):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            if not self._recording():
                raise OSError("TensorBoard's events could not be written")
        self._news = True
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def _recording(self) -> bool:
        """Whether TensorBoard's thread still writes."""
        return self._board.file_writer.event_writer._worker.is_alive()

    def keep(self) -> None:
        """Has whatever was said where it outlives this machine.

        On a disk it is already.
        """
        if self._copied is not None and self._news:
            self._board.flush()
            self._copy()

    def close(self) -> None:
        """Puts everything on disk."""
        if self._quiet:
            return
        with writing(self._path.parent):
            try:
                self._file.close()
            finally:
                if self._recording():
                    self._board.close()
        if self._copied is not None:
            self._copy()
            self._copied.cleanup()

    def _copy(self) -> None:
        assert self._copied is not None
        here, there = pathlib.Path(self._copied.name), self._path.parent
        with writing(there):
            for path in sorted(here.rglob("*")):
                if path.is_file():
                    name = path.relative_to(here).as_posix()
                    storage.write(there / name, path.read_bytes())
        self._news = False


def _valid(line: dict[str, Any]) -> bool:
    return any(name.startswith("valid/") for name in line)


def _lines(path: epath.Path) -> list[tuple[dict[str, Any], str]]:
    """All whole lines, read and as they stand.

    Without the last one, if a kill has cut it short.
    """
    if not path.exists():
        return []
    try:
        texts = path.read_text().split("\n")[:-1]
        lines = [(json.loads(text), text) for text in texts]
        for line, _ in lines:
            int(line["step"])
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "The metrics of the workdir are damaged.",
            where=path,
            expected='JSON lines, each with a "step"',
            found=error,
            fix="take out the damaged lines, then run the same command again",
        ) from error


def _summary_writer() -> Any:
    """tensorboardX's, which would import torch wherever there is one.

    It has no use for it here: two seconds, and 180 MiB.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter
