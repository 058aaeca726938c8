"""How far generation is: one line on the terminal, several elsewhere."""

from __future__ import annotations

import datetime
import shutil
import sys
import time

# Seconds between two lines, and between two states of a line on a terminal.
_INTERVAL, _LIVE = 10.0, 0.2


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
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        going_on = f", of which {self._done:,} are there" if self._done else ""
        print(f"{self._title}: {self._total:,} records{going_on}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print(file=sys.stderr)
        if self._done > self._before:
            print(self._line(), flush=True)

    def advance(self, accepted: bool) -> None:
        """Counts one more record."""
        self._done += 1
        self._failed += not accepted
        now = time.monotonic()
        if now - self._said < (_LIVE if self._live else _INTERVAL):
            return
        self._said = now
        if self._live:
            # Over the one before; what is left of that is erased.
            line = self._line()[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(self._line(), flush=True)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-6)
        rate = (self._done - self._before) / seconds
        left = round((self._total - self._done) / rate) if rate else 0
        failed = f", {self._failed:,} failed" if self._failed else ""
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        return (
            f"{self._title}: {self._done:,}/{self._total:,}, {speed} a "
            f"second, {datetime.timedelta(seconds=left)} left{failed}"
        )
