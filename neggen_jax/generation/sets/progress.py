"""How far generation is: a bar on the terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

# Seconds between two plain lines.
_INTERVAL = 10.0


class Progress:
    """Shows records done, their rate, the time left, and failures.

    Args:
      title: what is made.
      total: records to be made.
      done: of them, those that are there already.
    """

    def __init__(self, title: str, total: int, done: int):
        self._title, self._total = title, total
        self._before = self._done = done
        self._failed = 0
        self._begun = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        going_on = f", of which {self._done:,} are there" if self._done else ""
        print(f"{self._title}: {self._total:,} records{going_on}", flush=True)
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, said=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._done > self._before:
            print(f"{self._title}: {self._text()}", flush=True)

    def advance(self, accepted: bool) -> None:
        """Counts one more record."""
        self._done += 1
        self._failed += not accepted
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._done, said=self._text()
            )
        elif time.monotonic() - self._said > _INTERVAL:
            self._said = time.monotonic()
            print(f"{self._title}: {self._text()}", flush=True)

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-6)
        rate = (self._done - self._before) / seconds
        left = round((self._total - self._done) / rate) if rate else 0
        failed = f", {self._failed:,} failed" if self._failed else ""
        return (
            f"{self._done:,}/{self._total:,}, {rate:,.3g} a second, "
            f"{datetime.timedelta(seconds=left)} left{failed}"
        )


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[said]}"),
        console=Console(stderr=True),
    )
