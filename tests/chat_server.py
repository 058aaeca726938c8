"""A small real HTTP server of OpenAI's chat completions, that can misbehave.

    with ChatServer(lambda body: "a reply") as server:
        ...  # server.url is the base URL

What it answers is a function of the request's body; what goes wrong is
another, so that tests say which request meets which fault.
"""

import collections
import contextlib
import dataclasses
import http.server
import json
import random
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Body = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
      kind: "status"; "slow", answered after `seconds`; "drip", a byte every
        `seconds`; "drop", the connection closed without an answer;
        "truncate", closed amid the body; "garbage", a body cut short that
        claims to be whole; "html", a page of another server; "empty",
        without content; "length", cut by the limit of tokens; "refusal".
      status: for "status".
      headers: that go with it.
      seconds: for "slow" and "drip".
      body: for "status"; an error as servers write them by default.
    """

    kind: str
    status: int = 0
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    body: Any = None


Chooser = Callable[[int, Body], Fault | None]


def status(code: int, body: Any = None, **headers: str) -> Fault:
    """An answer with this status; `retry_after="1"` is a header."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return Fault("status", code, named, body=body)


def scripted(*faults: Fault | None) -> Chooser:
    """The n-th request meets the n-th fault, later ones none."""

    def choose(number: int, body: Body) -> Fault | None:
        del body
        return faults[number] if number < len(faults) else None

    return choose


def seeded(
    seed: int, rate: float, faults: Sequence[Fault], most: int = 3
) -> Chooser:
    """Faults at a rate, the same whatever the order of arrival.

    Whether the n-th request of the same messages meets a fault is drawn
    from the seed, the messages and n; after `most` faults they have peace.
    """
    seen: collections.Counter[str] = collections.Counter()
    met: collections.Counter[str] = collections.Counter()

    def choose(number: int, body: Body) -> Fault | None:
        del number
        key = json.dumps(body["messages"])
        draw = random.Random(f"{seed}:{seen[key]}:{key}")
        seen[key] += 1
        if met[key] >= most or draw.random() >= rate:
            return None
        met[key] += 1
        return draw.choice(faults)

    return choose


class ChatServer:
    """Serves in threads of its own while it is entered.

    Args:
      answer: body of a request -> the assistant's words.
      fault: (number of the request from 0, body) -> what goes wrong.
      models: that it has.
      key: that it wants; None for none.
      structured: whether it takes `response_format`.
      context: longest prompt in characters.
      seconds: each answer takes.

    Attributes:
      url: base URL, once entered.
      requests: bodies of chat requests, in the order of their arrival.
      headers: of each.
      statuses: how often it answered what; a fault's kind where it is no
        status.
      most: requests that were in flight at once, at most.
    """

    def __init__(
        self,
        answer: Callable[[Body], str],
        *,
        fault: Chooser | None = None,
        models: Sequence[str] = ("shop-vl",),
        key: str | None = None,
        structured: bool = True,
        context: int = 100_000,
        seconds: float = 0.0,
    ):
        self.answer, self.fault = answer, fault or scripted()
        self.models, self.key, self.structured = list(models), key, structured
        self.context, self.seconds = context, seconds
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: collections.Counter[int | str] = collections.Counter()
        self.most = self.inside = 0
        self.connections: list[socket.socket] = []
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self) -> "ChatServer":
        handler = type("Handler", (_Handler,), {"chat": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            daemon=True,
        )
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:  # also those kept for more
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def refusal(self, body: Body, key: str | None) -> tuple[int, str] | None:
        """What a well-kept server has against a request."""
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, f"Incorrect API key provided: {key}"
        if body["model"] not in self.models:
            return 404, f"The model `{body['model']}` does not exist."
        if not self.structured and "response_format" in body:
            return 400, "response_format is not supported"
        if len(words_of(body)) > self.context:
            return 400, "This model's maximum context length is exceeded"
        return None


def words_of(body: Body) -> str:
    """All text of a request's messages."""
    texts = []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:
            texts += [c["text"] for c in content if c["type"] == "text"]
    return "\n".join(texts)


def picture_of(body: Body) -> str:
    """The data URL of a request's picture, "" for none."""
    for message in body["messages"]:
        if not isinstance(message["content"], str):
            for part in message["content"]:
                if part["type"] == "image_url":
                    return part["image_url"]["url"]
    return ""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are what tests do, not what they print."""


class _Handler(http.server.BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.chat.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._send(404, {"detail": "Not Found"})
        models = [{"id": m, "object": "model"} for m in self.chat.models]
        return self._send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/chat/completions":
            return self._send(404, {"detail": "Not Found"})
        chat, body = self.chat, json.loads(raw)
        with chat.lock:
            number = len(chat.requests)
            chat.requests.append(body)
            chat.headers.append({k.lower(): v for k, v in self.headers.items()})
            fault = chat.fault(number, body)
            chat.inside += 1
            chat.most = max(chat.most, chat.inside)
        try:
            chat.closing.wait(chat.seconds)
            self._reply(body, fault)
        finally:
            with chat.lock:
                chat.inside -= 1
        return None

    def _reply(self, body: Body, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            error = {"message": "injected", "type": "test", "code": None}
            told = fault.body if fault.body is not None else {"error": error}
            return self._send(fault.status, told, fault.headers)
        refusal = self.chat.refusal(body, self.headers["authorization"])
        if refusal:
            code, message = refusal
            error = {"message": message, "type": "refused", "code": str(code)}
            return self._send(code, {"error": error})
        return self._complete(body, kind, fault.seconds if fault else 0.0)

    def _complete(self, body: Body, kind: str, seconds: float) -> None:
        content: str | None = self.chat.answer(body)
        reason, refusal = "stop", None
        if kind == "empty":
            content = None
        if kind == "refusal":
            content, refusal = None, "I cannot help with that."
        if kind == "length":
            content, reason = (content or "")[:10], "length"
        message = {"role": "assistant", "content": content, "refusal": refusal}
        whole = json.dumps(
            {
                "id": "chat-1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {"index": 0, "message": message, "finish_reason": reason}
                ],
                "usage": {
                    "prompt_tokens": len(words_of(body).split()),
                    "completion_tokens": len((content or "").split()),
                    "prompt_tokens_details": {"cached_tokens": 1},
                },
            }
        ).encode()
        # Before it waits: all may be over by the time that it has.
        self.chat.statuses[kind or 200] += 1
        if kind == "slow":
            self.chat.closing.wait(seconds)
        if kind == "drop":
            return self._hang_up()
        if kind == "html":
            return self._write(200, b"<html>It works!</html>", {}, "text/html")
        if kind == "garbage":
            return self._write(200, whole[: len(whole) // 2], {})
        if kind == "truncate":
            length = {"content-length": str(len(whole))}
            self._write(200, whole[: len(whole) // 2], length)
            return self._hang_up()
        if kind == "drip":
            return self._drip(whole, seconds)
        return self._write(200, whole, {})

    def _drip(self, whole: bytes, seconds: float) -> None:
        self._write(200, b"", {"content-length": str(len(whole))})
        for byte in whole:
            if self.chat.closing.wait(seconds):
                break
            self.wfile.write(bytes([byte]))

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(
        self, code: int, told: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        self.chat.statuses[code] += 1
        self._write(code, json.dumps(told).encode(), headers or {})

    def _write(
        self,
        code: int,
        data: bytes,
        headers: Mapping[str, str],
        kind: str = "application/json",
    ) -> None:
        self.send_response(code)
        lengths = {"content-length": str(len(data)), "content-type": kind}
        for name, value in (lengths | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
