"""Directories that appear whole or not at all.

`data/store.py` and `data/prepare.py` write a dataset into a temporary sibling
of its place and rename it at the end. A full disk, an error or a killed
process leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from neggen_jax.errors import InputError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def replacing(
    directory: str | os.PathLike[str],
    *,
    overwrite: bool,
    ours: re.Pattern[str],
) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `directory` at the end.

    If the body raises, the sibling is removed and `directory` is as it was.

    Args:
      directory: to be made.
      overwrite: whether it may replace one that is there and not empty.
      ours: names of the files that an overwritten directory may have. One
        with others in it is not replaced: they would be lost.

    Raises:
      InputError: if `directory` may not be replaced, or the disk is full.
    """
    target = Path(directory).resolve()
    _check_replaceable(target, overwrite, ours)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield partial
        _swap(partial, target)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(
    target: Path, overwrite: bool, ours: re.Pattern[str]
) -> None:
    if not target.exists():
        return
    if not target.is_dir() or os.path.ismount(target):
        raise InputError(
            "The output must be a directory that can be renamed into place.",
            where=target,
            found="a mount point" if target.is_dir() else "a file",
            fix="name a new directory",
        )
    names = sorted(path.name for path in target.iterdir())
    if names and not overwrite:
        raise InputError(
            "The output directory exists already and is not empty.",
            where=target,
            found=", ".join(names[:8]),
            fix="name another one, or pass --overwrite to replace it",
        )
    foreign = [name for name in names if not ours.fullmatch(name)]
    if foreign:
        raise InputError(
            "The output directory holds files that would be lost.",
            where=target,
            found=", ".join(foreign[:8]),
            fix="move them away first: --overwrite replaces the directory",
        )


def _swap(partial: Path, target: Path) -> None:
    """Renames `partial` to `target`; what was there is deleted after."""
    old = partial.with_suffix(".old")
    existed = target.exists()
    if existed:
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if existed:
            old.rename(target)
        raise
    if existed:
        shutil.rmtree(old, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        "The directory could not be written; nothing was changed.",
        where=target,
        found=error.strerror,
        fix="free some space, or name another directory",
    )
