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
from collections.abc import Iterable, Sequence
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

    @property
    def total(self) -> Totals:
        """Sums over all steps."""
        fields = [f.name for f in dataclasses.fields(Totals)]
        sums = {
            name: sum(getattr(step, name) for step in self.steps.values())
            for name in fields
        }
        return Totals(**sums | {"elapsed": self.elapsed})


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
    for path in paths:
        for line in path.read_bytes().splitlines():
            entry = _parsed(line)
            if "totals" in entry:
                elapsed += entry["totals"]["elapsed"]
            elif "label" in entry:
                found = _LABEL.fullmatch(entry["label"])
                items |= {found[1]} if found else set()
                step = found[2] if found else entry["label"] or "(no label)"
                _add(steps.setdefault(step, Totals()), entry)
    if not steps:
        raise InputError(
            "There is no log of requests.",
            where=", ".join(map(str, paths)) or None,
            expected="requests-*.jsonl of a set that a language model wrote",
            fix="generate some records first, e.g. with --limit=200",
        )
    return Cost(steps, len(items), elapsed)


def show(cost: Cost, items: int | None = None) -> None:
    """Prints it as a table.

    Args:
      cost: as `read` gives it.
      items: how many to tell the cost of; None for those there were.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("step", no_wrap=True)
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    for name, sums in sorted(cost.steps.items()):
        per = max(1, sums.answered)
        table.add_row(
            name,
            f"{sums.requests:,}",
            f"{sums.requests - sums.answered:,}",
            f"{sums.prompt_tokens / per:,.0f}",
            f"{sums.cached_tokens / max(1, sums.prompt_tokens):.0%}",
            f"{sums.reply_tokens / per:,.0f}",
            f"{sums.seconds / max(1, sums.requests):.2f}",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(
        "read, written: tokens of an answered request, of those read the "
        "share that the server had read before; seconds of any request"
    )
    for line in _lines(cost, items):
        console.print(line)


def _lines(cost: Cost, items: int | None) -> list[str]:
    """What the sums come to, per item and for many."""
    total, count = cost.total, max(1, cost.items)
    lines = [
        f"an item: {total.requests / count:.2f} requests, "
        f"{total.prompt_tokens / count:,.0f} tokens read, "
        f"{total.reply_tokens / count:,.0f} written"
    ]
    if cost.elapsed > 0:
        lines.append(
            f"a second: {total.requests / cost.elapsed:,.2f} requests, "
            f"{total.prompt_tokens / cost.elapsed:,.0f} tokens read, "
            f"{total.reply_tokens / cost.elapsed:,.0f} written, "
            f"{cost.items / cost.elapsed:,.2f} items"
        )
    many = items or count
    told = [
        f"{many:,} items: {many * total.requests / count:,.0f} requests, "
        f"{many * total.prompt_tokens / count / 1e6:,.1f} million tokens "
        f"read, {many * total.reply_tokens / count / 1e6:,.1f} written"
    ]
    if cost.elapsed > 0:
        hours = many / count * cost.elapsed / 3600
        told.append(f"{hours:,.1f} hours of one server at this pace")
    return [*lines, ", ".join(told)]


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of a log; nothing for what a kill left of one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _add(sums: Totals, entry: dict[str, Any]) -> None:
    sums.requests += 1
    # An answer has tokens; whatever else is in the line, it has no problem.
    sums.answered += "problem" not in entry
    for name in (*TOKENS, "seconds"):
        setattr(sums, name, getattr(sums, name) + entry.get(name, 0))


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
