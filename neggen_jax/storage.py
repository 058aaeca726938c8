"""Where a workdir lives: a directory of this machine, or one of a bucket.

Both are an `epath.Path`. `gs://BUCKET/...` goes through gcsfs, which
requirements-gcs.txt brings. There an object appears whole or not at all;
but nothing is appended to, a directory exists as long as there is something
in it, and is renamed by copying.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from neggen_jax.errors import InputError

# Read once, at the first use of any path: otherwise epath goes through
# TensorFlow wherever that is installed.
os.environ["EPATH_USE_TF"] = "false"

Workdir = str | os.PathLike[str]


def path(workdir: Workdir) -> epath.Path:
    """The path of a workdir, or of a file in one.

    Raises:
      InputError: if it is on a storage that is not known, or in a bucket that
        cannot be reached.
    """
    scheme, _, rest = os.fspath(workdir).rpartition("://")
    if scheme not in ("", "gs"):
        raise InputError(
            "This storage is not known.",
            where=workdir,
            expected="a local path or gs://BUCKET/PATH",
        )
    if scheme:
        bucket, _, name = rest.partition("/")
        if not bucket or not name.strip("/"):
            raise InputError(
                "The path names no directory in a bucket.",
                where=workdir,
                expected="gs://BUCKET/PATH",
            )
        _reach(bucket)
    return epath.Path(workdir)


def directories(pattern: str) -> list[str]:
    """The directories that a pattern with * fits, in order."""
    if not remote(pattern):
        return sorted(x for x in glob.glob(pattern) if os.path.isdir(x))
    found = path(pattern)
    bucket = epath.Path("gs://", *found.parts[2:3])
    inside = "/".join(found.parts[3:])
    return sorted(str(x) for x in bucket.glob(inside) if x.is_dir())


@functools.cache
def _reach(bucket: str) -> None:
    """Sees once whether a bucket can be asked."""
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            "A workdir in a bucket needs gcsfs.",
            where=f"gs://{bucket}",
            fix="pip install -r requirements-gcs.txt",
        )
    from fsspec.config import conf

    # TensorStore and other processes write there too.
    conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        # Not whether it exists: telling that is a right of its own.
        list(epath.Path(f"gs://{bucket}").iterdir())
    except Exception as error:
        raise InputError(
            "The bucket cannot be reached.",
            where=f"gs://{bucket}",
            found=first_line(error),
            fix="check its name, and log in (gcloud auth application-default "
            "login) as somebody who may read and write there",
        ) from error


def remote(path: Workdir) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith("gs://")


def local(path: str, key: str) -> None:
    """Refuses a path in a bucket where files are mapped into memory.

    Raises:
      InputError: naming the config key.
    """
    if re.match(r"\w+://", path):
        raise InputError(
            "A dataset is mapped into memory: it cannot be in a bucket.",
            where=f"{key}={path}",
            expected="a path on this machine",
            fix="mount the bucket with gcsfuse, or copy the dataset (gcloud "
            "storage cp -r), and give that path",
        )


def write(path: epath.Path, data: bytes) -> None:
    """Writes a file whole or not at all, and the directories above it.

    Raises:
      OSError: if it cannot be written.
    """
    if not remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(path)
        return
    try:
        path.write_bytes(data)
    except OSError:
        raise
    except Exception as error:
        # gcsfs, aiohttp and the login have errors of their own.
        raise OSError(first_line(error)) from error


@contextlib.contextmanager
def appearing(
    path: epath.Path, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a file of this machine that becomes another at the end.

    If the body raises, nothing has changed.

    Args:
      path: to be made.
      overwrite: whether it may replace a file that is there.

    Raises:
      InputError: if it is there and may not be replaced, or cannot be
        written.
    """
    if path.exists() and (path.is_dir() or not overwrite):
        raise InputError(
            "The output exists already.",
            where=path,
            fix="name another one, or pass --overwrite to replace it",
        )
    with contextlib.ExitStack() as stack:
        try:
            if remote(path):
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                partial = pathlib.Path(folder) / path.name
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                name = f".{path.name}.{os.getpid()}.partial"
                partial = pathlib.Path(path.parent / name)
                stack.callback(partial.unlink, missing_ok=True)
            yield partial
            if remote(path):
                upload(partial, path)
            else:
                partial.replace(path)
        except OSError as error:
            raise InputError(
                "The output could not be written; nothing was changed.",
                where=path,
                found=error.strerror or error,
                fix="make room, or name another place",
            ) from error


def upload(source: pathlib.Path, target: epath.Path) -> None:
    """Copies a file into a bucket, in pieces.

    Raises:
      OSError: if it cannot be written.
    """
    try:
        with source.open("rb") as file, target.open("wb") as out:
            shutil.copyfileobj(file, out, 2**24)
    except OSError:
        raise
    except Exception as error:
        # gcsfs, aiohttp and the login have errors of their own.
        raise OSError(first_line(error)) from error


def move(source: epath.Path, target: epath.Path) -> None:
    """Moves a directory to a new place beside it.

    Copied file by file in a bucket: killed meanwhile, it is in both places.
    """
    if not remote(source):
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
        return
    _copy(source, target)
    source.rmtree()


def _copy(source: epath.Path, target: epath.Path) -> None:
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name)


def free(path: epath.Path) -> int | None:
    """Bytes that are left; None where there is no end of them."""
    return None if remote(path) else shutil.disk_usage(path).free


def room(path: epath.Path) -> str:
    """What to do about a file that could not be written."""
    first = "see to the bucket" if remote(path) else "make room"
    return f"{first}, then run the same command again to resume"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
