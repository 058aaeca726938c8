"""The text of a compiled program, as XLA writes it: arrays and instructions.

`neggen_jax/hlo.py` counts in what is read here.
"""

from __future__ import annotations

import dataclasses
import math
import re

_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a program.

    Attributes:
      dtype: as XLA spells it.
      dims: its shape on one device.
      bytes: with the padding of its layout.
      bare: bytes without it.
      fast: whether it lives in memory on the chip's core, not in HBM.
    """

    dtype: str
    dims: tuple[int, ...]
    bytes: int
    bare: int
    fast: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.dims)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `arrays` are the parts of its result."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in what follows the operands."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    @property
    def calls(self) -> tuple[str, ...]:
        """Computations that it runs once."""
        found = re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", self.rest)
        return tuple(found)

    @property
    def origin(self) -> str:
        """Where in the Python program it comes from."""
        return self.attribute(r'op_name="([^"]*)"')


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape, which may be a tuple, as XLA writes it."""
    out = []
    for dtype, dims, layout in re.findall(
        r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape
    ):
        size = tuple(int(d) for d in dims.split(",") if d)
        width = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(width[0]) if width else 8)
        # The dimensions from the fastest on, cut into tiles of equal size.
        order = re.match(r"\{([\d,]*)", layout)
        fastest = [int(d) for d in order[1].split(",") if d] if order else []
        tile = re.search(r"T\(([\d,]+)\)", layout)
        held = list(size)
        if tile and fastest:
            steps = [int(t) for t in tile[1].split(",")][::-1]
            for at, step in zip(fastest, steps, strict=False):
                held[at] = -(-held[at] // step) * step
        padded, bare = (math.prod(d) * bits // 8 for d in (held, size))
        out.append(Array(dtype, size, padded, bare, "S(" in layout))
    return tuple(out)


def instruction(line: str) -> Instruction | None:
    """Reads a line; None if there is no instruction on it."""
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    text = line[found.end() :]
    end = _closing(text) if text.startswith("(") else text.find(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode, _, text = text.partition("(")
    end = _closing("(" + text) - 2
    operands = re.findall(r"%([\w.\-]+)", text[:end])
    # A parameter's number and a constant stand where others have operands.
    rest = text if opcode in ("parameter", "constant") else text[end:]
    return Instruction(
        found[2],
        opcode,
        arrays(shape),
        tuple(operands),
        rest,
        bool(found[1]),
    )


def _closing(text: str) -> int:
    """The position after the bracket that closes the first one."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return at + 1
    return len(text)
