"""What requests cost: one line of JSON for every one that was sent.

Written by backends that count tokens, beside the records. It holds what the
arithmetic of cost needs, and neither a key nor a picture nor a reply (but a
server's or a model's words on why there is none, cut short).
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Reply

# In a line of the log, in this order.
TOKENS = ("prompt_tokens", "cached_tokens", "reply_tokens")


@dataclasses.dataclass
class Totals:
    """Sums over the requests of one run.

    Attributes:
      requests: that were sent, retries included.
      answered: that came back with a reply.
      prompt_tokens: read, as the server counted.
      cached_tokens: of these, what the server had read before, if it says.
      reply_tokens: written.
      seconds: spent waiting for servers, summed over requests in flight.
      elapsed: seconds from the first request to the last answer.
    """

    requests: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reply_tokens: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0


class RequestLog:
    """Appends lines to a file, and sums them up.

    Args:
      path: the file, made with its first line; None to sum up only.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.totals = Totals()
        self._path = None if path is None else Path(path)
        self._file: IO[bytes] | None = None
        self._begun = 0.0

    def add(
        self,
        label: str,
        attempt: int,
        status: int | str,
        seconds: float,
        reply: Reply | None = None,
        problem: str = "",
    ) -> None:
        """Notes one request that has ended.

        Args:
          label: what it was about.
          attempt: which try of it this was, from 1.
          status: of HTTP, or a word where none came.
          seconds: it took.
          reply: what came of it; None for none.
          problem: what was wrong with it, "" if nothing.

        Raises:
          InputError: if the disk is full.
        """
        now, sums = time.monotonic(), self.totals
        if not sums.requests:
            self._begun = now - seconds
        counts = reply or Reply("")
        tokens = {n: getattr(counts, n) for n in TOKENS}
        sums.requests += 1
        sums.answered += reply is not None
        for name, count in tokens.items():
            setattr(sums, name, getattr(sums, name) + count)
        sums.seconds += seconds
        sums.elapsed = now - self._begun
        line = {
            "label": label,
            "attempt": attempt,
            "status": status,
            "seconds": round(seconds, 3),
            **tokens,
        }
        self._write(line | ({"problem": problem} if problem else {}))

    def close(self) -> None:
        """Writes the totals of this run, if there is anything to sum up."""
        if self.totals.requests and self._path is not None:
            self._write({"totals": dataclasses.asdict(self.totals)})
        if self._file is not None:
            self._file.close()
        self._path = self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._path is None:
            return
        text = json.dumps(line, ensure_ascii=False) + "\n"
        try:
            if self._file is None:
                self._file = _opened(self._path)
            # Unbuffered and whole: a kill tears one line at the most.
            self._file.write(text.encode("utf-8", "replace"))
        except OSError as error:
            raise InputError(
                "The log of requests could not be written.",
                where=self._path,
                found=error.strerror,
                fix="free some space, and run the same command again",
            ) from error


def _opened(path: Path) -> IO[bytes]:
    """The file to append to, what a kill left of its last line ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+", buffering=0)
    if size := file.seek(0, os.SEEK_END):
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file
