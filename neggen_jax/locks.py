"""One process at a time: files that the system locks.

A lock is given back when the process that holds it ends, however it ends; a
child that has the file open, as its output for instance, holds it on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from neggen_jax.errors import InputError


def take(file: IO) -> bool:
    """Locks an open file; False if another process has it.

    Some network file systems know no locks: there, nobody is kept out.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def alone(path: Path, problem: str, where: Path, fix: str) -> Iterator[None]:
    """Keeps what is in the body from being done by two processes at once.

    Args:
      path: the file that is locked; it stays.
      problem, where, fix: of the error.

    Raises:
      InputError: if another process is at it, naming that process.
    """
    with path.open("a+b", buffering=0) as file:
        if not take(file):
            file.seek(0)
            owner = file.read(64).decode("ascii", "replace").strip()
            found = f"process {owner}" if owner else None
            raise InputError(problem, where=where, found=found, fix=fix)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield
