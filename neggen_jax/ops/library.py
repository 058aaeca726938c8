"""The library of kernels in C++, compiled where it is first used.

A kernel is a header in `cc/`, bound in `library.cc`, and named in `KERNELS`;
`ops/native.py` calls it. `neggen_permute` is none, but called on the host, by
`data/order.py`.

It is compiled for the processor that it runs on, and kept in the user's cache
directory (`cache.py`), under a name that follows from its source, from that
processor's kind and from the version of jaxlib. `NEGGEN_NATIVE=0` leaves it
alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jaxlib

from neggen_jax import cache

_SOURCES = Path(__file__).with_name("cc")
# Sums are not contracted: on any processor they round alike. Kernels ask for
# multiplications with additions where they are to be one.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
)

# Kinds of processors: words for what they have, as Linux tells it, and what the
# compiler may then use. `-march=native` would allow more than kernels know to
# use, and tell two processors of one kind apart.
KINDS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "AVX-512 VNNI": (
        {"avx512f", "avx512_vnni"},
        ("-mavx512f", "-mavx512vnni"),
    ),
    "AVX-512": ({"avx512f"}, ("-mavx512f",)),
    "AVX2": ({"avx2", "fma"}, ("-mavx2", "-mfma")),
    "other": (set(), ()),
}

KERNELS = (
    "adam",
    "attend",
    "attend_backward",
    "draw",
    "exps",
    "multiply",
    "multiply_some",
    "multiply_some_backward",
    "project",
    "project_backward",
    "rank",
    "top_k",
)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, whose kernels programs may call from then on.

    It is compiled if it is not there.

    Returns:
      None if it cannot be, or is not to be.
    """
    if os.environ.get("NEGGEN_NATIVE", "1") == "0":
        return None
    try:
        library = ctypes.cdll.LoadLibrary(str(build(cache.directory())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        line = said.partition("\n")[0]
        print(
            f"No kernels in C++, which would be faster: {line}", file=sys.stderr
        )
        return None
    library.neggen_has_simd.restype = ctypes.c_bool
    library.neggen_has_vnni.restype = ctypes.c_bool
    library.neggen_permute.restype = None
    for name in KERNELS:
        made = jax.ffi.pycapsule(getattr(library, f"neggen_{name}"))
        jax.ffi.register_ffi_target(f"neggen_{name}", made, platform="cpu")
    return library


def sources() -> list[Path]:
    """The files of the library."""
    return sorted([*_SOURCES.glob("*.cc"), *_SOURCES.glob("*.h")])


def kind() -> str:
    """Which of `KINDS` this processor is."""
    try:
        said = Path("/proc/cpuinfo").read_text().partition("\nflags")[2]
    except OSError:
        said = ""
    has = set(said.partition("\n")[0].split())
    return next(name for name, (wants, _) in KINDS.items() if wants <= has)


def build(directory: Path) -> Path:
    """Compiles the library, unless it is there.

    Args:
      directory: to keep it in.

    Raises:
      OSError: if there is no compiler, nowhere to write, or a directory that
        others may write to.
      subprocess.CalledProcessError: if it does not compile.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    flags = (*FLAGS, *KINDS[kind()][1])
    # Homes may be shared by machines of several kinds.
    said = " ".join(
        (compiler, *flags, jaxlib.__version__, *platform.uname()[::4])
    )
    source = b"".join(file.read_bytes() for file in sources())
    name = hashlib.sha256(source + said.encode()).hexdigest()[:16]
    target = directory / f"neggen_jax-{name}.so"
    cache.make_private(directory)
    if target.exists():
        return target
    # Several processes may come at once; each replaces what is the same.
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / target.name
        subprocess.run(
            [
                compiler,
                *flags,
                f"-I{jax.ffi.include_dir()}",
                str(_SOURCES / "library.cc"),
                "-o",
                str(made),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        made.replace(target)
    return target
