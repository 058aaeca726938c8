"""What kernels take, beside what they must take and what others take.

Each runs turn by turn with a NumPy or SciPy form of the same, in one process:
seconds say little from one machine to the next, ratios say more. Its floor is
the time for the bytes that it has to move, each once, at the bandwidth of
copying, or for its multiplications and additions at the speed of a large
product of matrices: whichever is longer, both as measured here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.errors import InputError
from neggen_jax.kernels import Kernel
from neggen_jax.ops import library
from neggen_jax.storage import first_line

# A ratio that has fallen below this share of the accepted one is a regression;
# from run to run they differ by a tenth, that of Adam by almost half: what is
# accepted is best the lowest of a few.
KEEPS = 0.7
# Seconds: of rest before a kernel is timed, and of calls that are not timed.
_PAUSE, _WARM = 0.2, 0.1


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians.

    Attributes:
      seconds: of ours.
      reference: seconds of the reference.
      ratio: how many times ours it takes, the median over the turns.
      floor: seconds that no implementation falls below.
      binds: "bytes" or "flops", what the floor comes from.
    """

    seconds: float
    reference: float
    ratio: float
    floor: float
    binds: str

    @property
    def share(self) -> float:
        """Of the floor that is reached."""
        return self.floor / self.seconds


def measure(some: Mapping[str, Kernel], turns: int) -> dict[str, Timing]:
    """Times each kernel and its reference, turn by turn.

    Args:
      some: by name.
      turns: of each; one more warms up.
    """
    bandwidth, speed = copy_bandwidth(), product_speed()
    out = {}
    for name, kernel in some.items():
        pairs = [
            (_rested(kernel.ours), _rested(kernel.reference))
            for _ in range(turns + 1)
        ][1:]
        floors = {
            "bytes": kernel.moved / bandwidth,
            "flops": kernel.flops / speed,
        }
        binds = max(floors, key=floors.__getitem__)
        ours, theirs = map(statistics.median, zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        out[name] = Timing(ours, theirs, ratio, floors[binds], binds)
    return out


def copy_bandwidth(megabytes: int = 128) -> float:
    """Bytes a second that all cores copy, those read and those written."""
    cores = len(os.sched_getaffinity(0))
    size = megabytes * 2**20 // cores
    pairs = [tuple(np.ones((2, size), np.int8)) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:

        def copy():
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        seconds = statistics.median(_seconds(copy) for _ in range(9))
    return 2 * size * cores / seconds


def product_speed(size: int = 2048) -> float:
    """Multiplications and additions a second in a product of matrices."""
    x = jnp.ones((size, size))
    run = jax.jit(lambda x: x @ x)
    jax.block_until_ready(run(x))
    each = [_seconds(lambda: jax.block_until_ready(run(x))) for _ in range(5)]
    return 2 * size**3 / statistics.median(each)


def _rested(call: Callable[[], Any]) -> float:
    # Threads of NumPy's BLAS spin on for a while when they are done, and
    # would take the cores from whoever is next.
    time.sleep(_PAUSE)
    # Nor is it to find what another has left of the caches, and cores asleep:
    # in training one step follows another.
    started = time.perf_counter()
    while time.perf_counter() - started < _WARM:
        call()
    return _seconds(call)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def read_accepted(path: str | os.PathLike[str], size: str) -> dict[str, float]:
    """The ratios that were accepted last for a size; empty if none were.

    Those of this kind of processor: on another one other forms of kernels
    stand beside another reference.

    Raises:
      InputError: if the file cannot be read.
    """
    try:
        said = json.loads(Path(path).read_text()).get(library.kind(), {})
        return {k: float(v) for k, v in said.get(size, {}).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            "There are no accepted ratios.",
            where=path,
            expected="{KIND: {SIZE: {KERNEL: ratio}}}",
            found=first_line(error),
            fix="write them with --accept",
        ) from error


def accept(
    path: str | os.PathLike[str], size: str, timings: Mapping[str, Timing]
) -> None:
    """Writes the ratios of a size, on this kind of processor; others stay."""
    path = Path(path)
    said = json.loads(path.read_text()) if path.exists() else {}
    said.setdefault(library.kind(), {})[size] = {
        k: round(t.ratio, 2) for k, t in timings.items()
    }
    path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def fallen(
    timings: Mapping[str, Timing], accepted: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Kernels whose ratio has fallen: name -> (ratio, the accepted one)."""
    return {
        name: (timing.ratio, accepted[name])
        for name, timing in timings.items()
        if name in accepted and timing.ratio < KEEPS * accepted[name]
    }


def table(
    timings: Mapping[str, Timing], accepted: Mapping[str, float], title: str
) -> Any:
    """As a `rich.table.Table`."""
    from rich.table import Table

    out = Table(title=title)
    out.add_column("kernel", min_width=max(map(len, timings), default=0))
    for label in (
        "ms",
        "reference ms",
        "reference : ours",
        "accepted",
        "floor ms",
        "binds",
        "share of floor",
    ):
        out.add_column(label, justify="right")
    for name, timing in timings.items():
        known = accepted.get(name)
        out.add_row(
            name,
            f"{timing.seconds * 1e3:.2f}",
            f"{timing.reference * 1e3:.2f}",
            f"{timing.ratio:.1f}",
            "-" if known is None else f"{known:.1f}",
            f"{timing.floor * 1e3:.2f}",
            timing.binds,
            f"{timing.share:.0%}",
        )
    return out
