"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp.

One of the backends, and the way to millions of items: the
model runs where it runs best, and this asks it, many requests at a time.
What goes wrong on the way has one of three ends: the request is sent again;
a `RequestError`, which costs one record; an `InputError`, which ends the run
and loses nothing. Whether a reply is any good is not for here to judge.
"""

from __future__ import annotations

import asyncio
import collections
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from neggen_jax.errors import InputError, nearest
from neggen_jax.generation.backends import (
    Reply,
    Request,
    RequestError,
    check_arguments,
)
from neggen_jax.generation.backends.chat_protocol import (
    Outcome,
    of_body,
    of_connection,
    of_status,
    to_body,
)
from neggen_jax.generation.backends.pacing import Gate, Retry, backoff
from neggen_jax.generation.backends.pictures import data_url
from neggen_jax.generation.backends.request_log import RequestLog

_INSTALL = "pip install -r requirements-openai.txt"
_AGAIN = "run the same command again, which goes on where this ended"
# Tries of a server that has never answered: a wrong address is told soon.
_FIRST_TRIES = 3
_QUALITY = 90  # of JPEG files, 1 to 95
# How often one request may be told to come later while others are answered.
_MOST_BUSY = 60
# What any model can answer, to know whose fault a row of failures is.
_PROBE = Request((("user", "Say yes."),), max_tokens=8, label="probe")


class OpenAI:
    """Asks a server over HTTP. See `Backend`.

    Args:
      model: as the server calls it.
      base_url: of the server's API, mostly ending in `/v1`.
      api_key_env: the environment variable that holds the key; local servers
        want none.
      concurrency: requests in flight at most.
      timeout: seconds until a request counts as lost.
      retry: how often and how long it is tried again.
      seed: of the server's sampling.
      sampling: more fields of the request's body, e.g. `{"top_p": 0.9}`, or
        what the server has beyond the protocol; None takes one out that is
        there by default.
      max_tokens_field: what the server calls the length of a reply; some
        models take `max_completion_tokens` only.
      image_side: longer side of a picture in pixels, at most.
      log: file for a line of JSON a request; None for none.

    Raises:
      InputError: if the SDK is missing or an argument makes no sense.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "http://localhost:8000/v1",
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout: float = 120.0,
        retry: Retry | None = None,
        seed: int = 0,
        sampling: Mapping[str, Any] | None = None,
        max_tokens_field: str = "max_tokens",
        image_side: int = 768,
        log: str | os.PathLike[str] | None = None,
    ):
        self.model, self.concurrency = model, concurrency
        self._url, self._timeout = base_url, timeout
        self._key_env = api_key_env
        self._key = os.environ.get(api_key_env, "").strip()
        self._retry = retry or Retry()
        self._structured = True  # until the server refuses a schema
        self._sampling = {"temperature": 0.0, "seed": seed, **(sampling or {})}
        self._max_tokens_field = max_tokens_field
        self._image_side = image_side
        self._check()
        self._client = self._connect()
        self._gate = Gate(concurrency)
        self._log = RequestLog(log)
        self._answered_at: float | None = None
        self._failed_in_a_row = 0

    async def ask(self, request: Request) -> Reply:
        """See `Backend`."""
        body = await self._body(request)
        begun, attempt, plain = time.monotonic(), 0, False
        ends: collections.Counter[str] = collections.Counter()
        while True:
            attempt += 1
            async with self._gate.enter() as entered:
                outcome = await self._send(body, request.label, attempt)
                if outcome.kind == "reply":
                    self._gate.answered()
                if outcome.kind == "busy":
                    # All wait as long as the server asked one to.
                    pause = min(outcome.wait, self._retry.patience)
                    self._gate.refused(entered, pause)
            if outcome.reply is not None:
                self._note_answer(plain)
                return outcome.reply
            if "response_format" in body and outcome.status in (400, 422, 501):
                del body["response_format"]  # it may be this that is refused
                plain = True
                continue
            ends[outcome.kind] += 1
            await asyncio.sleep(await self._wait(outcome, ends, begun))

    async def close(self) -> None:
        """Closes connections, and ends the log with its sums."""
        await self._client.close()
        self._log.close()

    async def _body(self, request: Request) -> dict[str, Any]:
        picture = ""
        if request.image:
            picture = await asyncio.to_thread(
                data_url, request.image, self._image_side, _QUALITY
            )
        body = self._sampling | to_body(
            request, picture, self._structured, self._max_tokens_field
        )
        return {k: v for k, v in body.items() if v is not None}

    async def _send(
        self, body: Mapping[str, Any], label: str, attempt: int
    ) -> Outcome:
        """Sends one request, and notes what became of it."""
        begun = time.monotonic()
        outcome = Outcome("declined", "cancelled")
        try:
            outcome = await self._outcome(body)
        finally:
            self._log.add(
                label,
                attempt,
                outcome.status,
                time.monotonic() - begun,
                outcome.reply,
                outcome.problem,
            )
        return outcome

    async def _outcome(self, body: Mapping[str, Any]) -> Outcome:
        import openai

        rest = {k: v for k, v in body.items() if k != "messages"}
        create = self._client.chat.completions.with_raw_response.create
        try:
            # The SDK's own limit is for each read: a server that sends a byte
            # now and then would hold a place for good.
            async with asyncio.timeout(self._timeout):
                raw = await create(
                    model=self.model,
                    messages=body["messages"],
                    extra_body=rest,
                )
            return of_body(raw.text)
        except openai.APIStatusError as error:
            return of_status(error, self._key)
        except (TimeoutError, openai.APIConnectionError) as error:
            return of_connection(error, self._timeout)
        except UnicodeError as error:
            return Outcome("declined", "unsent", f"cannot be sent: {error}")

    def _note_answer(self, plain: bool) -> None:
        self._answered_at = time.monotonic()
        self._failed_in_a_row = 0
        if plain and self._structured:
            self._structured = False
            print(
                f"note: {self._url} takes no response_format; asking without",
                file=sys.stderr,
                flush=True,
            )

    async def _wait(
        self, outcome: Outcome, ends: Mapping[str, int], begun: float
    ) -> float:
        """Seconds to wait until a request may be sent again, if it may.

        Args:
          outcome: of its last try.
          ends: how often its tries ended how.
          begun: when it was first to be sent.
        """
        retry, kind = self._retry, outcome.kind
        if kind == "declined":
            raise RequestError(outcome.problem)
        if kind == "refused":
            raise await self._refusal(outcome)
        if kind == "busy":
            idle = time.monotonic() - max(begun, self._answered_at or begun)
            spent = outcome.code == "insufficient_quota"
            if spent or idle + outcome.wait > retry.patience:
                raise self._pointless("The server takes no more.", outcome)
            if ends["busy"] >= _MOST_BUSY:
                raise await self._given_up(outcome, ends["busy"])
            # What the server asked for is waited at the gate.
            if outcome.wait:
                return 0.0
            return backoff(ends["busy"], retry.first, retry.longest)
        faults = ends["fault"] + ends["unreachable"]
        tries = retry.tries
        if self._answered_at is None and kind == "unreachable":
            tries = min(tries, _FIRST_TRIES)
        if faults >= tries and kind == "unreachable":
            raise self._pointless("The server cannot be reached.", outcome)
        if faults >= tries:
            raise await self._given_up(outcome, faults)
        return backoff(faults, retry.first, retry.longest)

    async def _given_up(self, outcome: Outcome, times: int) -> Exception:
        """The end of one request, or of all if the server answers none.

        After some such ends in a row it is asked what any model can answer:
        items that are all too long, or that all crash it, cost themselves
        alone.
        """
        problem = outcome.problem + (f", {times} times" if times > 1 else "")
        self._failed_in_a_row += 1
        if not 0 < self._retry.give_up <= self._failed_in_a_row:
            return RequestError(problem)
        async with self._gate.enter():
            probed = await self._send(await self._body(_PROBE), "probe", 1)
        if probed.kind in ("reply", "busy", "declined"):
            self._failed_in_a_row = 0
            return RequestError(problem)
        return InputError(
            f"{self._failed_in_a_row} requests in a row had no answer, nor "
            "had a simple one.",
            where=self._url,
            expected="a server that answers some",
            found=f"the last: {problem}",
            fix=f"see the server's own log; {_AGAIN}",
        )

    def _pointless(self, problem: str, outcome: Outcome) -> InputError:
        asked = f"; it asks to wait {outcome.wait:.0f} s" * bool(outcome.wait)
        return InputError(
            problem,
            where=self._url,
            expected="a server of OpenAI's chat completions that answers",
            found=outcome.problem + asked,
            fix=f"see to it; {_AGAIN}",
        )

    async def _refusal(self, outcome: Outcome) -> Exception:
        """What a status of 400 to 499 means for this request or for all."""
        if outcome.status in (401, 402, 403):
            state = "holds one" if self._key else "is empty"
            return InputError(
                "The server refuses the key.",
                where=self._url,
                expected="a key that may use the model; the environment "
                f"variable {self._key_env} {state}",
                found=outcome.problem,
            )
        if outcome.status == 404:
            known = await self._known_models()
            return InputError(
                f"The server has no model {self.model!r}, or not at this URL.",
                where=self._url,
                found=outcome.problem,
                fix=nearest(self.model, known)
                if known
                else "with most servers the URL ends in /v1",
            )
        return await self._given_up(outcome, 1)

    async def _known_models(self) -> list[str]:
        """What the server says it has, for an error that helps; or none."""
        try:
            async with asyncio.timeout(10):
                page = await self._client.models.list()
            return [str(model.id) for model in page.data or []]
        except Exception:  # another error is being told already
            return []

    def _check(self) -> None:
        side, key = self._image_side, f"environment variable {self._key_env}"
        url = re.match(r"https?://[^/\s]+\S*$", self._url)
        set_here = {"model", "messages", "stream", "response_format", "n"}
        taken = {*self._sampling} & (set_here | {self._max_tokens_field})
        check_arguments(
            self.name,
            (self.model, "model", "its name, as the server has it", "none"),
            (url, "base_url", "http://host:port/v1, or https://", self._url),
            (
                self.concurrency > 0,
                "concurrency",
                "1 or more",
                self.concurrency,
            ),
            (self._timeout > 0, "timeout", "seconds", self._timeout),
            (side > 15, "image_side", "at least 16 pixels", side),
            (self._key.isascii(), key, "ASCII alone", "other characters"),
            (
                not taken,
                "sampling",
                "fields that requests do not set themselves",
                ", ".join(sorted(taken)),
            ),
        )

    def _connect(self) -> Any:
        try:
            import httpx2
            import openai
        except ImportError as error:
            raise InputError(
                "The backend 'openai' needs the SDK of that name.",
                found=error,
                fix=_INSTALL,
            ) from error
        connect = min(self._timeout, 10.0)
        http = openai.DefaultAsyncHttpxClient(
            timeout=httpx2.Timeout(self._timeout, connect=connect),
            limits=httpx2.Limits(
                max_connections=self.concurrency,
                max_keepalive_connections=self.concurrency,
                # Sooner than servers hang up, which mostly is after 5 s.
                keepalive_expiry=2.0,
            ),
        )
        return openai.AsyncOpenAI(
            # Servers that want no key still want the header to be there.
            api_key=self._key or "none",
            base_url=self._url,
            max_retries=0,  # retries are counted, paced and logged here
            http_client=http,
        )
