"""Who answers: what the pipeline wants of a language model.

A backend turns one request into one reply. It batches, limits its
concurrency, waits and tries again as its kind wants it; whether the words of
a reply are any good is the business of the writers.

    openai.py        any server of OpenAI's chat completions: chat_protocol.py
                     says what comes back, pacing.py how fast to ask
    transformers.py  a model in this process: image_text_model.py
    pictures.py      what models are shown
    request_log.py   what the requests took
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Protocol

from neggen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Request:
    """One turn to be answered.

    Attributes:
      messages: (role, text) in order; roles are "system", "user" and
        "assistant".
      image: path of the picture that goes with the first user message; ""
        for none.
      max_tokens: longest reply.
      schema: JSON schema of the reply, for backends that can enforce one;
        None for free text.
      label: what it is about ("item 12 text: mask"), for logs.
    """

    messages: tuple[tuple[str, str], ...]
    image: str = ""
    max_tokens: int = 256
    schema: Mapping[str, Any] | None = None
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
      text: of the reply, as it came.
      finished: False if it was cut at `max_tokens`.
      prompt_tokens: tokens read, 0 where nobody counts them.
      reply_tokens: tokens written.
      cached_tokens: of those read, what had been read before, if known.
    """

    text: str
    finished: bool = True
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cached_tokens: int = 0


class RequestError(Exception):
    """One request could not be answered; others may. Its text says why."""


class Backend(Protocol):
    """A language model.

    What makes going on pointless - a server that is gone for good, a refused
    key, an unknown model - is an `InputError`; it ends the run, of which
    nothing is lost.

    Attributes:
      name: of the kind of backend.
      model: as its server or hub calls it.
      concurrency: requests worth having in flight.
    """

    name: str
    model: str
    concurrency: int

    async def ask(self, request: Request) -> Reply:
        """Answers one request.

        Raises:
          RequestError: if this request cannot be answered.
          InputError: if none can.
        """

    async def close(self) -> None:
        """Gives back what it holds."""


def check_arguments(
    backend: str, *rules: tuple[object, str, str, object]
) -> None:
    """Refuses arguments of a backend that make no sense.

    Args:
      backend: its name.
      *rules: (whether it is right, what, what is expected, what was found).

    Raises:
      InputError: for the first that is not right.
    """
    for right, what, expected, found in rules:
        if not right:
            raise InputError(
                f"The backend {backend!r} cannot work with this.",
                where=what,
                expected=expected,
                found=found,
            )


def model_name(model: str | os.PathLike[str]) -> str:
    """What records call a model: of a directory, its own name.

    Where a directory lies is the machine's affair, and other machines that
    write shards of the same set have it elsewhere.
    """
    path = os.fspath(model)
    if not os.path.isdir(path):
        return path
    return os.path.basename(os.path.abspath(path))
