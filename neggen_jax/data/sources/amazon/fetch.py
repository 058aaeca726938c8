"""Brings the public files, and knows later whether they are still the same.

A file is downloaded under another name (`<name>.partial`) and renamed when it
is whole. A connection that breaks is taken up where it broke, now or by the
same command later, as long as the server still has the same version. What
came is written down with its size and SHA-256 in `downloads.json` beside it:
a file that is changed or cut off afterwards is noticed when it is read.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neggen_jax.errors import InputError

MANIFEST = "downloads.json"
_CHUNK = 2**20
_TIMEOUT = 60.0  # seconds without a byte
_BROKEN = (http.client.HTTPException, OSError)


class _Unwritable(Exception):
    """The disk, and not the network, is at fault."""


class Remote(NamedTuple):
    """A file as its server describes it.

    Attributes:
      size: bytes; None if the server does not tell.
      version: ETag or date; "" if it does not tell.
    """

    size: int | None
    version: str


def fetch(
    addresses: Sequence[str],
    directory: str | os.PathLike[str],
    *,
    retries: int = 5,
    wait: float = 2.0,
    dry_run: bool = False,
) -> list[Path]:
    """Downloads files into a directory.

    Args:
      addresses: their URLs.
      directory: where to; made if need be.
      retries: how often a connection may break, of each file, without a byte
        having come.
      wait: seconds before it is tried again; twice as long each time.
      dry_run: say what would be done, and do nothing.

    Returns:
      Their paths, in order.

    Raises:
      InputError: if a file cannot be had, or one that is there is not what
        was downloaded.
    """
    root = Path(directory)
    paths = [root / address.rsplit("/", 1)[1] for address in addresses]
    for address, path in zip(addresses, paths, strict=True):
        if dry_run:
            print(f"{address} -> {path} ({_state(path)})")
            continue
        known = _read(root).get(path.name)
        if path.exists() and known is not None:
            _check(path, known)
            print(f"{path}: there already, and as it was downloaded")
            continue
        if path.exists():
            raise InputError(
                "A file is there that was not downloaded by this command.",
                where=path,
                fix="move it away, or prepare the dataset from it as it is",
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            _download(address, path, retries, wait)
        except _Unwritable as error:
            raise InputError(
                "A download cannot be written.",
                where=path,
                found=error,
                fix="make room, then run the same command again",
            ) from None
        except OSError as error:
            raise InputError(
                "A download cannot be kept.", where=path, found=error
            ) from None
    return paths


def check_downloads(paths: Iterable[Path]) -> None:
    """Sees whether files are what was downloaded, where that was written down.

    Raises:
      InputError: naming the file that has changed.
    """
    for path in paths:
        known = _read(path.parent).get(path.name)
        if known is not None:
            _check(path, known)


def _state(path: Path) -> str:
    part = _partial(path)
    if path.exists():
        return "there already"
    if part.exists():
        return f"{part.stat().st_size:,} bytes are there already"
    return "to be downloaded"


def _download(address: str, path: Path, retries: int, wait: float) -> None:
    """Downloads one file, as often as it takes, and writes it down."""
    part = _partial(path)
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            remote = _transfer(address, path)
            break
        except urllib.error.HTTPError as error:
            # Those that are the server's own trouble may pass.
            if error.code not in (408, 416, 429) and error.code < 500:
                raise _refused(address, f"HTTP {error.code}") from None
            problem = f"HTTP {error.code} {error.reason}"
        except _BROKEN as error:
            problem = str(error) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        failed = 1 if now > before else failed + 1
        if failed > retries:
            raise _refused(address, problem)
        pause = wait * 2 ** (failed - 1)
        print(f"{path.name}: {problem}; trying again in {pause:.0f} s")
        time.sleep(pause)
    known = {
        "url": address,
        "size": part.stat().st_size,
        "sha256": _sha256(part),
        "version": remote.version,
    }
    manifest = _read(path.parent) | {path.name: known}
    _write(path.parent / MANIFEST, manifest)
    part.rename(path)
    _version(path).unlink(missing_ok=True)
    print(f"{path}: {known['size']:,} bytes, sha256 {known['sha256']}")


def _transfer(address: str, path: Path) -> Remote:
    """One connection: goes on where the partial file ends.

    Raises:
      OSError, HTTPException: if it breaks before the end.
    """
    part, version = _partial(path), _version(path)
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address)
    request.add_header("User-Agent", "neggen_jax")
    # What is stored as compressed is wanted so, and whole otherwise.
    request.add_header("Accept-Encoding", "identity")
    if done and version.exists():
        request.add_header("Range", f"bytes={done}-")
        # The whole file comes instead if it has changed meanwhile.
        request.add_header("If-Range", version.read_text())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            begun = _begin(answer)
            if begun not in (0, done):
                raise http.client.HTTPException(
                    f"the server began at byte {begun}, not {done}"
                )
            remote = _describe(answer, begun)
            version.unlink(missing_ok=True)
            if remote.version:
                with _opened(version, "wb") as file:
                    _write_to(file, remote.version.encode())
            _copy(answer, part, begun, remote, path.name)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            # It was whole, and nobody had come to say so.
            return Remote(done, version.read_text())
        part.unlink(missing_ok=True)  # another file now: begin anew
        raise
    return remote


def _copy(
    answer: Any, part: Path, begun: int, remote: Remote, name: str
) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )
    with _opened(part, "ab" if begun else "wb") as file, bar:
        task = bar.add_task(name, total=remote.size, completed=begun)
        while data := answer.read(_CHUNK):
            _write_to(file, data)
            bar.update(task, completed=file.tell())
        size = file.tell()
    if remote.size is not None and size != remote.size:
        if size > remote.size:
            part.unlink()
        raise http.client.HTTPException(
            f"the connection ended after {size:,} of {remote.size:,} bytes"
        )


def _opened(path: Path, mode: str) -> Any:
    try:
        return path.open(mode, buffering=0)
    except OSError as error:
        raise _Unwritable(error.strerror) from None


def _write_to(file: Any, data: bytes) -> None:
    """Writes to a file without a buffer, which may take less than all."""
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise _Unwritable(error.strerror) from None


def _begin(answer: Any) -> int:
    """The byte that an answer begins with."""
    if answer.status != 206:
        return 0
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not found:
        raise http.client.HTTPException("the server does not tell its range")
    return int(found[1])


def _describe(answer: Any, begun: int) -> Remote:
    headers = answer.headers
    length = headers.get("Content-Length")
    size = int(length) + begun if length and length.isdigit() else None
    tag = headers.get("ETag", "")
    # A weak one does not promise the same bytes.
    if not tag or tag.startswith("W/"):
        tag = headers.get("Last-Modified", "")
    return Remote(size, tag)


def _check(path: Path, known: dict[str, Any]) -> None:
    size = path.stat().st_size
    if size != known.get("size") or _sha256(path) != known.get("sha256"):
        raise InputError(
            "A file is not what was downloaded.",
            where=path,
            expected=f"{known.get('size')} bytes, sha256 "
            f"{known.get('sha256')}, as in {MANIFEST}",
            found=f"{size} bytes",
            fix="delete it and download it again; or, if you have changed it "
            f"on purpose, take it out of {MANIFEST}",
        )


def _read(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        manifest = error
    if not isinstance(manifest, dict) or not all(
        isinstance(known, dict) for known in manifest.values()
    ):
        raise InputError(
            "The list of downloads cannot be read.",
            where=path,
            found=manifest if isinstance(manifest, Exception) else "no object",
            fix="delete it: files are then no longer compared with it",
        )
    return manifest


def _write(path: Path, manifest: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _version(path: Path) -> Path:
    """Where the version of a partial file is kept."""
    return path.with_name(f"{path.name}.partial.version")


def _refused(address: str, problem: object) -> InputError:
    return InputError(
        "A file could not be downloaded.",
        where=address,
        found=problem,
        fix="run the same command again: it goes on where it stopped",
    )
