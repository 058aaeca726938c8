"""OpenAI's chat completions as bytes: what is sent, what came of it.

Used by `openai.py`, which decides what follows. Nothing here raises
for what a server does: whatever comes back is an `Outcome`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from neggen_jax.generation.backends import Reply, Request
from neggen_jax.generation.backends.pacing import retry_after

# Statuses, below 500, of requests that may well be answered if sent again.
_PASSING = (408, 409, 425)
# What reading a body of the wrong shape raises; nested too deep, the last.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
# Characters of a server's own words that go into records and logs.
_LONGEST_REASON = 300

Kind = Literal["reply", "busy", "fault", "unreachable", "refused", "declined"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one HTTP request.

    Attributes:
      kind: "reply"; "busy", asked too fast; "fault", which may pass;
        "unreachable"; "refused", this request or all of them, by `status`;
        "declined", the model would not, or the request cannot be sent.
      status: of HTTP, or a word where none came.
      problem: what went wrong, in words.
      reply: if it was answered.
      wait: seconds the server asks to wait, 0 if it does not say.
      code: its word for the error.
    """

    kind: Kind
    status: int | str
    problem: str = ""
    reply: Reply | None = None
    wait: float = 0.0
    code: str = ""


def to_body(
    request: Request, picture: str, structured: bool, max_tokens_field: str
) -> dict[str, Any]:
    """The body of a request, but for its model and its sampling.

    Args:
      request: that is to be sent.
      picture: its picture as a URL, put before the first user's words; ""
        for none.
      structured: whether to ask for the request's JSON schema.
      max_tokens_field: what the server calls the length of a reply.
    """
    messages: list[dict[str, Any]] = []
    for role, text in request.messages:
        content: Any = text
        if picture and role == "user":
            content = [
                {"type": "image_url", "image_url": {"url": picture}},
                {"type": "text", "text": text},
            ]
            picture = ""
        messages.append({"role": role, "content": content})
    body = {"messages": messages, max_tokens_field: request.max_tokens}
    if request.schema is not None and structured:
        schema = {"name": "reply", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def of_body(text: str) -> Outcome:
    """Reads a body that came with status 200, whatever it holds."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        message = choice["message"]
        usage = body.get("usage") or {}
        counts = [
            int(usage.get(name) or 0)
            for name in ("prompt_tokens", "completion_tokens")
        ]
        details = usage.get("prompt_tokens_details") or {}
        counts.append(int(details.get("cached_tokens") or 0))
        content = _content(message.get("content"))
    except _MALFORMED as error:
        start = " ".join(text[:80].split())
        why = f"{type(error).__name__}, it begins {start!r}"
        return Outcome("fault", 200, f"the server's reply is not one: {why}")
    reason = choice.get("finish_reason")
    if reason == "content_filter" or (message.get("refusal") and not content):
        words = str(message.get("refusal") or "its filter stopped the reply")
        words = words[:_LONGEST_REASON]
        return Outcome("declined", 200, f"the model declined: {words}")
    finished = bool(content.strip()) and reason != "length"
    reply = Reply(content, finished, *counts)
    return Outcome("reply", 200, reply=reply)


def of_status(error: Any, key: str) -> Outcome:
    """Reads an `openai.APIStatusError`.

    Args:
      error: the SDK's error for any status but success.
      key: of the API, which servers are known to repeat in their errors.
    """
    status, wait = error.status_code, retry_after(error.response.headers)
    kind: Kind = "refused"
    if status == 429 or (status == 503 and wait is not None):
        kind = "busy"
    elif status in _PASSING or status >= 500:
        kind = "fault"
    return Outcome(
        kind,
        status,
        f"HTTP {status}: {_reason(error.body, key)}".removesuffix(": "),
        wait=wait or 0.0,
        code=str(error.code or error.type or ""),
    )


def of_connection(error: Exception, timeout: float) -> Outcome:
    """Reads a `TimeoutError` or an `openai.APIConnectionError`."""
    import httpx2

    cause = error.__cause__
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        why = str(cause) or type(cause).__name__
        return Outcome("unreachable", "unreachable", why)
    if isinstance(error, TimeoutError) or isinstance(
        cause, httpx2.TimeoutException
    ):
        return Outcome("fault", "timeout", f"no answer within {timeout:g} s")
    return Outcome(
        "fault", "dropped", f"the connection broke: {cause or error}"
    )


def _content(content: Any) -> str:
    """A message's text; a few servers send it in parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _reason(body: object, key: str) -> str:
    """The server's own words, short and without what is not for a log."""
    if isinstance(body, Mapping):
        words = body.get("message") or body.get("detail") or dict(body)
        body = words if isinstance(words, str) else json.dumps(words)
    # Servers that check their input like to repeat it, picture and all.
    text = re.sub(r"data:image/[\w+.;,=/-]+", "<picture>", str(body or ""))
    if key:
        text = text.replace(key, "<key>")
    text = " ".join(text.split())
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + " ..."
    return text
