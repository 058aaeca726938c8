"""How fast a server is asked: never more at once than it bears.

Used by `openai.py`. `Gate` limits what is in flight and slows all
requests down when one was refused for coming too fast; `Retry`, `backoff`
and `retry_after` say how often and how long to wait for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import math
import random
import time
from collections.abc import AsyncIterator, Mapping


@dataclasses.dataclass(frozen=True)
class Retry:
    """How much is borne from a server.

    Attributes:
      tries: of one request, where it fails in a way that may pass.
      first: seconds before the second try; doubled before each further one.
      longest: seconds between two tries, at most.
      patience: seconds in which one request may be told to come later, or
        that a server may ask to wait.
      give_up: requests in a row that may end without an answer before the
        server is asked something simple, and the run ended if it does not
        answer that either; 0 for never.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 60.0
    patience: float = 900.0
    give_up: int = 5


class Gate:
    """Lets in as many requests at once as the server was found to bear.

    The limit rises and falls like TCP's window: halved by a refusal, raised
    by one over a round of answers, so that a server's rate limit is found
    without being told.

    Args:
      most: requests in flight at the very most.
    """

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self._inside = 0
        self._changed = asyncio.Condition()
        self._slowed = -math.inf
        self._reopens = -math.inf

    @contextlib.asynccontextmanager
    async def enter(self) -> AsyncIterator[float]:
        """Waits for a place; gives `time.monotonic()` of the entry."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside < self._places)
            self._inside += 1
        try:
            while (left := self._reopens - time.monotonic()) > 0:
                await asyncio.sleep(left)
            yield time.monotonic()
        finally:
            self._inside -= 1
            async with self._changed:
                self._changed.notify_all()

    def refused(self, entered: float, pause: float) -> None:
        """A request was refused for coming too fast.

        A burst of requests is refused as one: those that had entered before
        the limit was last lowered do not lower it again.

        Args:
          entered: when that request had entered.
          pause: seconds in which nothing should be sent.
        """
        now = time.monotonic()
        if entered > self._slowed:
            self.limit = max(1.0, self.limit / 2)
            self._slowed = now
        self._reopens = max(self._reopens, now + pause)

    def answered(self) -> None:
        """A request was answered."""
        self.limit = min(self.most, self.limit + 1 / self.limit)

    @property
    def _places(self) -> int:
        return int(self.limit)


def backoff(tried: int, first: float, longest: float) -> float:
    """Seconds to wait before the next try.

    Doubling, with jitter between a half and the whole, so that requests that
    failed together do not come back together.

    Args:
      tried: how often it has failed, from 1.
      first: seconds after the first failure.
      longest: seconds at most.
    """
    # No server is waited for so long that the exponent matters beyond 32.
    return random.uniform(0.5, 1) * min(
        longest, first * 2 ** min(tried - 1, 32)
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, or None if it does not say.

    Reads `Retry-After` as RFC 9110 has it, seconds or a date, and the
    milliseconds that some servers send beside it.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * scale
            return max(0.0, seconds) if math.isfinite(seconds) else None
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        when = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(0.0, when.timestamp() - time.time())
    return None
