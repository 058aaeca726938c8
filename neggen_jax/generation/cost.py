"""What generation costs, from the log of the requests that were made.

    python -m neggen_jax.generation.cost DIR/counterfactuals/openai \
        --items=1000000

Says how often each step was asked and how many tokens it took, and what so
many items would take at that pace. `docs/generation.md` does the arithmetic
before there is a log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.errors import InputError, reported
from neggen_jax.generation.backends.request_log import TOKENS, Totals

_COLUMNS = ("requests", "failed", "read", "cached", "written", "seconds")
_LABEL = re.compile(r"item (\d+) (.+)")


@dataclasses.dataclass
class Cost:
    """What was spent.

    Attributes:
      steps: label without its item -> sums over its requests.
      items: how many items were asked about.
      elapsed: seconds in which that was done, summed over runs; those of a
        run that was killed are not known.
    """

    steps: dict[str, Totals]
    items: int
    elapsed: float

    def sum(self, name: str) -> float:
        """Sum over all steps of a field of `Totals`."""
        return sum(getattr(step, name) for step in self.steps.values())


def read(paths: Iterable[Path]) -> Cost:
    """Sums up request logs.

    Args:
      paths: files that `RequestLog` wrote.

    Raises:
      InputError: if there is nothing in them.
    """
    steps: dict[str, Totals] = {}
    items: set[str] = set()
    elapsed = 0.0
    for entry in (_parsed(line) for path in paths for line in _lines(path)):
        if "totals" in entry:
            elapsed += entry["totals"]["elapsed"]
        elif "label" in entry:
            found = _LABEL.fullmatch(entry["label"])
            items |= {found[1]} if found else set()
            step = found[2] if found else entry["label"] or "(no label)"
            sums = steps.setdefault(step, Totals())
            sums.requests += 1
            sums.answered += "problem" not in entry
            for name in (*TOKENS, "seconds"):
                total = getattr(sums, name) + entry.get(name, 0)
                setattr(sums, name, total)
    if not steps:
        raise InputError(
            "There is no log of requests.",
            expected="requests-*.jsonl of a set that a language model wrote",
            fix="generate some records first, e.g. with --limit=200",
        )
    return Cost(steps, len(items), elapsed)


def _lines(path: Path) -> Iterator[bytes]:
    """One by one: a million items have gigabytes of them."""
    with path.open("rb") as file:
        yield from file


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of a log; nothing for what a kill left of one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def show(cost: Cost, items: int | None = None) -> None:
    """Prints it as a table.

    Args:
      cost: as `read` gives it.
      items: how many to tell the cost of; None for those there were.
    """
    print(("{:<20}" + "{:>10}" * 6).format("step", *_COLUMNS))
    for name, sums in sorted(cost.steps.items()):
        per = max(1, sums.answered)
        print(
            f"{name:<20}{sums.requests:>10,}"
            f"{sums.requests - sums.answered:>10,}"
            f"{sums.prompt_tokens / per:>10,.0f}"
            f"{sums.cached_tokens / max(1, sums.prompt_tokens):>10.0%}"
            f"{sums.reply_tokens / per:>10,.0f}"
            f"{sums.seconds / sums.requests:>10.2f}"
        )
    print(
        "read, written: tokens of an answered request, of those read the "
        "share that the server had read before; seconds of any request"
    )
    names = ("requests", "prompt_tokens", "reply_tokens")
    sent, read, written = (cost.sum(n) / max(1, cost.items) for n in names)
    print(
        f"an item: {sent:.2f} requests, {read:,.0f} tokens read, "
        f"{written:,.0f} written"
    )
    many, pace = items or max(1, cost.items), ""
    if cost.elapsed > 0:
        rate = cost.items / cost.elapsed
        print(
            f"a second: {sent * rate:,.2f} requests, {read * rate:,.0f} tokens "
            f"read, {written * rate:,.0f} written, {rate:,.2f} items"
        )
        if rate:
            hours = many / rate / 3600
            pace = f", {hours:,.1f} hours of one server at this pace"
    print(
        f"{many:,} items: {many * sent:,.0f} requests, "
        f"{many * read / 1e6:,.1f} million tokens read, "
        f"{many * written / 1e6:,.1f} written{pace}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and prints what the logs hold."""
    parser = argparse.ArgumentParser(
        prog="python -m neggen_jax.generation.cost",
        description="What the requests of a counterfactual set have cost.",
    )
    parser.add_argument("set", type=Path, help="directory of the set")
    parser.add_argument("--items", type=int, help="tell of so many items")
    given = parser.parse_args(arguments)
    with reported():
        paths = sorted(given.set.glob("requests-*.jsonl"))
        show(read(paths), given.items)


if __name__ == "__main__":
    main()
