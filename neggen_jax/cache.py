"""What is compiled once and kept: in the user's cache directory.

That is `$XDG_CACHE_HOME/neggen_jax`, or `~/.cache/neggen_jax`: kernels in C++
(`ops/library.py`), and the programs that JAX has compiled. The larger ones take
a CPU a quarter of a minute, and a TPU longer; a run that is resumed, or one
more with the same shapes, finds them there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
from pathlib import Path

# What JAX keeps, at most; the longest unused goes first.
_BYTES = 2**30
# Programs that compile faster are not worth a file.
_SECONDS = 0.2


def directory() -> Path:
    """The project's cache directory; it need not exist.

    Raises:
      RuntimeError: if there is no home directory.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # As its specification has it, a relative one counts for nothing.
    home = home if home.is_absolute() else Path.home() / ".cache"
    return home / "neggen_jax"


def make_private(path: Path) -> None:
    """Makes a directory, unless it is there, whose files are fit to be run.

    Raises:
      OSError: if it cannot be made, or others may write to it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.stat()
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise PermissionError(f"others may write to {path}")


def keep_programs() -> None:
    """Has JAX keep the programs that it compiles; before it is imported.

    `JAX_COMPILATION_CACHE_DIR` moves them, `JAX_ENABLE_COMPILATION_CACHE=0`
    keeps none. Where nothing can be kept, nothing is.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    most = "JAX_COMPILATION_CACHE_MAX_SIZE"
    # JAX locks the directory when it looks for what is to go.
    bounded = most not in os.environ and importlib.util.find_spec("filelock")
    try:
        path = directory() / f"programs-{_processor()}"
        make_private(path)
        if bounded:
            _remove_halves(path)
    except (OSError, RuntimeError):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
    least = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    os.environ.setdefault(least, str(_SECONDS))
    if bounded:
        os.environ[most] = str(_BYTES)


def _processor() -> str:
    """Names what a program for this CPU may make use of.

    Homes may be shared by machines of several kinds; JAX does not tell their
    programs apart.
    """
    said = platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        lines = about.read_text().splitlines()
        said += next((x for x in lines if x.startswith(("flags", "Feat"))), "")
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def _remove_halves(path: Path) -> None:
    """Removes programs whose process died while it wrote them.

    Where their size is bounded, JAX writes when one was used last after the
    program itself. One that lacks it would be read in vain each time, and never
    be written again.
    """
    import filelock

    # Of JAX, which may be writing just now; whoever waits long does not look.
    lock = filelock.FileLock(path / ".lockfile", timeout=1)
    with contextlib.suppress(filelock.Timeout), lock:
        for program in path.glob("*-cache"):
            name = program.name.removesuffix("cache") + "atime"
            if not program.with_name(name).exists():
                program.unlink(missing_ok=True)
