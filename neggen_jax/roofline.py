"""What a chip can do, by its maker's data sheet, and the time that it takes.

Nothing here is measured: a roofline is the least time in which a chip could
do its share if it computed, moved and received at its peak, all three at
once.
"""

from __future__ import annotations

import dataclasses
import math

from neggen_jax.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a pod.

    Attributes:
      hbm: GiB of memory.
      usable: GiB that the compiler of libtpu 0.0.42 gives a program for each
        of the chip's devices; it refuses whatever needs more.
      flops: peak of products in bfloat16, by second.
      bandwidth: bytes of memory by second.
      links: bytes that it receives by second over all its links to other
        chips together, at most.
      axes: dimensions of the torus that they form.
      source: of `hbm`, `flops`, `bandwidth` and `links`.
    """

    hbm: float
    usable: float
    flops: float
    bandwidth: float
    links: float
    axes: int
    source: str


# The sheets give links in bits, or both directions together; here it is
# bytes in one. v4 and v5p: 2400 and 4800 Gbps; v5e: 1600 Gbps; v6e: 800 GB/s
# in both directions.
CHIPS = {
    "v4": Chip(
        32, 15.25, 275e12, 1200e9, 300e9, 3, "cloud.google.com/tpu/docs/v4"
    ),
    "v5e": Chip(
        16, 15.75, 197e12, 819e9, 200e9, 2, "cloud.google.com/tpu/docs/v5e"
    ),
    "v5p": Chip(
        95, 95.74, 459e12, 2765e9, 600e9, 3, "cloud.google.com/tpu/docs/v5p"
    ),
    "v6e": Chip(
        32, 31.25, 918e12, 1600e9, 400e9, 2, "cloud.google.com/tpu/docs/v6e"
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind in a grid: "v5e:16x16".

    Attributes:
      kind: key of `CHIPS`.
      shape: of the grid.
    """

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Reads "KIND:AxB" or "KIND:AxBxC".

        Raises:
          InputError: for an unknown chip or another grid than it forms.
        """
        kind, _, grid = text.partition(":")
        if kind not in CHIPS:
            raise InputError(
                f"Unknown chip {kind!r}.",
                where=f"--topology={text}",
                fix=nearest(kind, CHIPS),
            )
        sides = grid.split("x")
        axes = CHIPS[kind].axes
        if len(sides) != axes or not all(s.isdigit() and int(s) for s in sides):
            raise InputError(
                f"Chips of kind {kind} do not form such a grid.",
                where=f"--topology={text}",
                expected=f"{kind}:{'x'.join(['4'] * axes)}, say",
            )
        return cls(kind, tuple(int(side) for side in sides))

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """What each of them can do."""
        return CHIPS[self.kind]

    @property
    def distance(self) -> float:
        """Links on the way from one chip to another, on average, at least 1.

        That is in a torus; small slices of some kinds lack the links that
        close it, and ways are longer there.
        """
        ways = sum((side**2 // 4) / side for side in self.shape)
        return max(1.0, ways * self.chips / max(1, self.chips - 1))

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that each resource would take alone.

    Attributes:
      compute: arithmetic at the peak of the matrix units.
      hbm: traffic with the chip's memory.
      interconnect: what is received from other chips, over all links.
    """

    compute: float
    hbm: float
    interconnect: float

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(dataclasses.asdict(self).items(), key=lambda kv: kv[1])[0]

    @property
    def least(self) -> float:
        """Seconds if all three work at once."""
        return max(dataclasses.asdict(self).values())


def times(
    chip: Chip, flops: float, moved: float, sent: float, devices: int = 1
) -> Times:
    """Times of one device.

    Args:
      chip: whose device it is.
      flops: arithmetic.
      moved: bytes read and written.
      sent: bytes received from others.
      devices: that share the chip (v4 has two).
    """
    return Times(
        flops * devices / chip.flops,
        moved * devices / chip.bandwidth,
        sent * devices / chip.links,
    )
