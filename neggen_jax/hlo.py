"""Reads a compiled program: what it moves, computes and sends.

XLA's own cost analysis counts the body of a loop once, however often it
runs, and says nothing of a program that was refused for want of memory. This
room counts in the text of the optimised program instead, which there is in
both cases: loops by their trip count, arrays with the padding of their
layout, and only what passes through the chip's main memory.

Only `neggen_jax/plan.py` reads programs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from neggen_jax.hlo_text import Instruction, instruction

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)

# Instructions that move nothing: names for what is there already.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}
# What changes a part of its first operand -> the operand that holds the part.
_IN_PLACE = {"scatter": 2, "dynamic-update-slice": 1}
# One operation for each entry of the result.
_ELEMENTWISE = re.compile(
    "add|subtract|multiply|divide|remainder|power|maximum|minimum|negate|abs|"
    "exponential|exponential-minus-one|log|log-plus-one|sqrt|rsqrt|tanh|sine|"
    "cosine|logistic|compare|select|clamp|sign|and|or|xor|not|floor|ceil|"
    "round-nearest-even|convert"
)


@dataclasses.dataclass
class Counts:
    """What one run of a program does on one chip, going the longest way.

    Attributes:
      flops: multiplications, additions and other arithmetic.
      bytes: read from and written to HBM.
      collectives: kind -> bytes that the chip receives from others.
      open_loops: loops whose length only the run knows; each counted once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    open_loops: int = 0

    def add(self, other: Counts, times: int = 1) -> None:
        """Adds what happens `times` times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.open_loops += other.open_loops
        for kind, sent in other.collectives.items():
            known = self.collectives.get(kind, 0.0)
            self.collectives[kind] = known + times * sent


class Program:
    """A program, from its text."""

    def __init__(self, text: str):
        self.entry = ""
        self.computations: dict[str, dict[str, Instruction]] = {}
        here: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*->.*\{$", line)
            if head:
                here = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif " = " in line and line.startswith(" "):
                found = instruction(line)
                if found:
                    here[found.name] = found
        self._join()
        self.parameters = tuple(
            array
            for each in self.computations.get(self.entry, {}).values()
            if each.opcode == "parameter"
            for array in each.arrays
        )

    def _join(self) -> None:
        """Leaves one of each collective that goes on while others compute.

        TPUs thread it through fusions, each of which names it again. Outside
        of them the same channel may well stand several times: a loop that was
        unrolled has all its rounds.
        """
        fused = {
            called
            for here in self.computations.values()
            for each in here.values()
            if each.opcode == "fusion"
            for called in each.calls
        }
        known: set[str] = set()
        for computation, here in self.computations.items():
            if computation not in fused:
                continue
            for name, each in here.items():
                channel = each.attribute(r"channel_id=(\d+)")
                again = each.opcode in COLLECTIVES and channel in known
                if again or "AsyncCollectiveDone" in each.rest:
                    here[name] = dataclasses.replace(each, opcode="bitcast")
                if channel and each.opcode in COLLECTIVES:
                    known.add(channel)

    def count(self) -> Counts:
        """What one run does; of a loop of open length, one round."""
        return self._count(self.entry)

    @functools.cache  # noqa: B019 - a program lives as long as its counts
    def _count(self, name: str) -> Counts:
        total = Counts()
        for each in self.computations.get(name, {}).values():
            if each.opcode == "while":
                trips = self._trips(name, each)
                body = each.attribute(r"body=%?([\w.\-]+)")
                total.add(self._count(body), trips or 1)
                total.open_loops += not trips
            elif each.opcode == "conditional":
                branches = re.findall(r"%([\w.\-]+)", each.rest)
                known = [b for b in branches if b in self.computations]
                ways = [self._count(branch) for branch in known]
                total.add(max(ways, key=lambda way: (way.bytes, way.flops)))
            elif each.opcode in ("call", "call-start", "async-start"):
                for called in each.calls:
                    total.add(self._count(called))
            elif not each.opcode.endswith(("-done", "-update")):
                self._one(name, each, total)
        return total

    def _trips(self, home: str, loop: Instruction) -> int:
        """Rounds of a loop; 0 where only the run knows.

        Compilers either say it or compare a counter with a constant, which
        the loops of JAX let run from 0 in steps of 1.
        """
        told = loop.attribute(r'known_trip_count":\{"n":"?(\d+)')
        if told:
            return int(told)
        test = self.computations.get(
            loop.attribute(r"condition=%?([\w.\-]+)"), {}
        )
        end = next((e for e in test.values() if e.root), None)
        if end is None or "direction=LT" not in end.rest:
            return 0
        here, limit = test, test.get(end.operands[1])
        if limit is not None and limit.opcode == "get-tuple-element":
            # What does not change was moved out of the loop.
            here = self.computations[home]
            start = here.get(loop.operands[0])
            at = int(limit.attribute(r"index=(\d+)") or 0)
            known = start is not None and start.opcode == "tuple"
            limit = here.get(start.operands[at]) if start and known else None
            while limit is not None and limit.opcode == "copy":
                limit = here.get(limit.operands[0])
        if limit is None or limit.opcode != "constant":
            return 0
        return int(limit.attribute(r"^(\d+)\)") or 0)

    def _one(self, home: str, each: Instruction, total: Counts) -> None:
        kind = each.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            known = total.collectives.get(kind, 0.0)
            total.collectives[kind] = known + received(each, kind)
        total.flops += self._flops(home, each)
        if each.opcode == "fusion":
            for called in each.calls:
                for inner in self.computations.get(called, {}).values():
                    if inner.opcode in COLLECTIVES:
                        sent = received(inner, inner.opcode)
                        # An all-reduce of which each keeps a piece.
                        scatter = "all-reduce-scatter" in called
                        known = total.collectives.get(inner.opcode, 0.0)
                        total.collectives[inner.opcode] = known + sent / (
                            2 if scatter else 1
                        )
        total.bytes += self._traffic(home, each)

    def _flops(self, home: str, each: Instruction) -> float:
        here = self.computations[home]
        size = sum(array.size for array in each.arrays)
        if each.opcode == "fusion":
            return sum(
                self._flops(called, inner)
                for called in each.calls
                for inner in self.computations.get(called, {}).values()
            )
        if _ELEMENTWISE.fullmatch(each.opcode):
            return size
        operands = [here[o].arrays for o in each.operands if o in here]
        if each.opcode in ("reduce", "scatter") and operands:
            changed = operands[0 if each.opcode == "reduce" else -1]
            return sum(array.size for array in changed)
        if each.opcode == "dot" and operands:
            at = each.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
            left = operands[0][0].dims
            return (
                2 * size * math.prod(left[int(d)] for d in at.split(",") if d)
            )
        if each.opcode == "convolution" and len(operands) > 1:
            # How TPUs spell a matrix product; the kernel's spatial sizes are
            # batches then, of which each entry of the result meets one.
            labels = each.attribute(r"dim_labels=\w+_(\w+)->")
            kernel = operands[1][0].dims
            if "i" in labels:
                return 2 * size * kernel[labels.index("i")]
        return 0.0

    def _traffic(self, home: str, each: Instruction) -> float:
        """Bytes of HBM that an instruction reads and writes."""
        here = self.computations[home]
        if each.opcode in _FREE:
            return 0.0
        if each.opcode == "fusion" and each.calls:
            inside = self.computations.get(each.calls[0], {})
            return self._read(inside, each, here) + self._written(inside)
        sizes = [
            sum(a.bytes for a in here[o].arrays if not a.fast)
            for o in each.operands
            if o in here
        ]
        result = sum(a.bytes for a in each.arrays if not a.fast)
        if each.opcode.endswith("-start"):
            # Its result also names what went in.
            result = max(
                (a.bytes for a in each.arrays if not a.fast), default=0
            )
            return result if any(a.fast for a in each.arrays) else 2 * result
        if each.opcode in ("gather", "dynamic-slice"):
            picked = sum(a.bare for a in each.arrays)
            return picked + result + sum(sizes[1:])
        if each.opcode in _IN_PLACE:
            changed = sizes[_IN_PLACE[each.opcode]]
            return changed + 2 * min(changed, result)
        return result + sum(sizes)

    def _read(
        self,
        inside: dict[str, Instruction],
        fusion: Instruction,
        here: dict[str, Instruction],
    ) -> float:
        total = 0.0
        for each in inside.values():
            if each.opcode != "parameter":
                continue
            number = int(each.rest.partition(")")[0] or 0)
            given = here.get(fusion.operands[number])
            if given is None or all(a.fast for a in given.arrays):
                continue
            whole = sum(a.bytes for a in given.arrays if not a.fast)
            total += self._used(inside, each.name, whole)
        return total

    def _used(
        self, inside: dict[str, Instruction], name: str, whole: float
    ) -> float:
        """Bytes of an operand that the inside of a fusion looks at."""
        used = 0.0
        for each in inside.values():
            if name not in each.operands:
                continue
            first = each.operands[0] == name
            if each.opcode in ("gather", "dynamic-slice") and first:
                # Row by row, again and again if need be.
                used += sum(a.bare for a in each.arrays)
            elif each.opcode == "tuple" or (each.opcode in _IN_PLACE and first):
                continue
            elif each.opcode in ("bitcast", "reshape"):
                used += self._used(inside, each.name, whole)
            elif each.opcode == "fusion" and each.calls:
                deeper = self.computations.get(each.calls[0], {})
                for inner in deeper.values():
                    if inner.opcode == "parameter":
                        number = int(inner.rest.partition(")")[0] or 0)
                        if each.operands[number] == name:
                            used += self._used(deeper, inner.name, whole)
            else:
                return whole
        return used

    def _written(self, inside: dict[str, Instruction]) -> float:
        root = next((e for e in inside.values() if e.root), None)
        if root is None:
            return 0.0
        parts = [root]
        if root.opcode == "tuple":
            parts = [inside[o] for o in root.operands if o in inside]
        total = 0.0
        for part in parts:
            while part.opcode == "bitcast" and part.operands[0] in inside:
                part = inside[part.operands[0]]
            if part.opcode == "fusion" and part.calls:
                total += self._written(self.computations.get(part.calls[0], {}))
            elif part.opcode != "parameter":
                size = sum(a.bytes for a in part.arrays if not a.fast)
                if part.opcode in _IN_PLACE:
                    at = part.operands[_IN_PLACE[part.opcode]]
                    changed = inside[at].arrays if at in inside else part.arrays
                    size = 2 * min(size, sum(a.bytes for a in changed))
                total += size
        return total

    def largest(self, least: float) -> list[tuple[int, int, str, str]]:
        """The largest arrays that it makes in HBM.

        Args:
          least: bytes that are worth telling.

        Returns:
          Bytes of one, how many there are (not all at the same time), what
          they are, and which part of the model makes them.
        """
        found: dict[tuple[int, str, str], int] = {}
        for each in self._running(self.entry):
            again = each.opcode == "while" or each.opcode.endswith("-done")
            if again or each.opcode in _FREE:
                continue
            for array in each.arrays:
                if array.bytes >= least and not array.fast:
                    what = each.opcode.removesuffix("-start"), str(array)
                    key = array.bytes, " ".join(what), each.origin
                    found[key] = found.get(key, 0) + 1
        return [
            (size, count, what, origin)
            for (size, what, origin), count in sorted(
                found.items(), key=lambda entry: -entry[0][0]
            )
        ]

    def _running(self, name: str) -> Iterator[Instruction]:
        for each in self.computations.get(name, {}).values():
            yield each
            if each.opcode == "while":
                yield from self._running(each.attribute(r"body=%?([\w.\-]+)"))
            elif each.opcode in ("call", "call-start", "conditional"):
                for called in re.findall(r"%([\w.\-]+)", each.rest):
                    if called in self.computations:
                        yield from self._running(called)


def received(each: Instruction, kind: str) -> float:
    """Bytes that a chip receives in a collective, by ring algorithms.

    With `g` chips in a group and an array of `n` bytes on each of them
    afterwards (before, for reduce-scatter), all-gather, reduce-scatter and
    all-to-all hand on `n (g - 1) / g`, all-reduce twice that, and
    collective-permute `n`.
    """
    sizes = [array.bytes for array in each.arrays]
    size = max(sizes) if each.opcode.endswith("-start") else sum(sizes)
    group = _group(each.rest)
    if kind == "collective-permute":
        return float(size)
    if kind == "reduce-scatter":
        size *= group
    share = (group - 1) / group
    return size * share * (2 if kind == "all-reduce" else 1)


def _group(rest: str) -> int:
    """Chips in one group of a collective, in any of XLA's three spellings."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(
            int(sizes[a]) for a in re.findall(r"'([^']+)'", mesh[2])
        )
    grid = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if grid:
        return int(grid[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return max(1, len(listed[1].split(","))) if listed else 1
