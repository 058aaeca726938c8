"""What a process holds of memory and does not use."""

from __future__ import annotations

import ctypes
import functools
from typing import Any


def give_back() -> None:
    """Has the allocator give what is free back to the system.

    What compiling has taken would stay: it lies between what is still used.
    Where the C library is not glibc, nothing happens.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
