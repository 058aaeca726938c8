"""The backend for OpenAI's protocol, against a real server that misbehaves."""

import asyncio
import base64
import dataclasses
import io
import json
import time

import pytest
from chat_server import ChatServer, Fault, picture_of, scripted, status
from PIL import Image

from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Reply, Request, RequestError
from neggen_jax.generation.backends.chat_protocol import of_body
from neggen_jax.generation.backends.openai import OpenAI
from neggen_jax.generation.backends.pacing import (
    Retry,
)

pytest.importorskip("openai", reason="pip install -r requirements-openai.txt")

HELLO = Request((("system", "Be brief."), ("user", "Hello there")), label="hi")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
# Retries within milliseconds; what is waited for is asserted by counts.
QUICK = Retry(tries=4, first=0.01, longest=0.02, patience=5.0)


def echo(body):
    return f"reply to {body['messages'][-1]['content']}"


def ask(server, *requests, url=None, **options):
    """Asks all at once; replies and errors in the order of the requests."""

    async def run():
        given = {"retry": QUICK, "timeout": 5.0} | options
        backend = OpenAI("shop-vl", base_url=url or server.url, **given)
        try:
            return await asyncio.gather(
                *(backend.ask(request) for request in requests),
                return_exceptions=True,
            )
        finally:
            await backend.close()

    return asyncio.run(run())


def one(server, request=HELLO, **options):
    (result,) = ask(server, request, **options)
    if isinstance(result, BaseException):
        raise result
    return result


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- one request


def test_a_request_says_what_it_should():
    with ChatServer(echo) as server:
        reply = one(server, seed=7, sampling={"top_p": 0.5})
    assert reply == Reply("reply to Hello there", True, 4, 4, 1)
    (body,) = server.requests
    assert body == {
        "model": "shop-vl",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello there"},
        ],
        "temperature": 0.0,
        "seed": 7,
        "top_p": 0.5,
        "max_tokens": 256,
    }


def test_fields_can_be_left_out_and_renamed():
    with ChatServer(echo) as server:
        one(
            server,
            sampling={"seed": None, "temperature": 0.3},
            max_tokens_field="max_completion_tokens",
        )
    body = server.requests[0]
    assert body["max_completion_tokens"] == 256
    assert body["temperature"] == 0.3
    assert not {"seed", "max_tokens"} & set(body)


def test_fields_that_requests_set_themselves_are_refused():
    with pytest.raises(InputError, match="cannot work") as caught:
        OpenAI(
            "shop-vl",
            base_url="http://localhost:1/v1",
            sampling={"max_tokens": 9, "top_p": 0.5},
        )
    assert (caught.value.where, caught.value.found) == (
        "sampling",
        "max_tokens",
    )


def test_the_key_goes_where_it_belongs(monkeypatch):
    monkeypatch.setenv("SHOP_KEY", "sk-123\n")
    with ChatServer(echo, key="sk-123") as server:
        assert one(server, api_key_env="SHOP_KEY").finished
    assert server.headers[0]["authorization"] == "Bearer sk-123"


def test_a_picture_is_sent_once_upright_and_shrunk(tmp_path):
    path = tmp_path / "wide.png"
    # White transparency, blue below: composited, not black.
    picture = Image.new("RGBA", (2000, 500), (0, 0, 255, 0))
    picture.paste((0, 0, 255, 255), (0, 250, 2000, 500))
    picture.save(path)
    turns = (("user", "What is it?"), ("assistant", "{"), ("user", "Again."))
    with ChatServer(lambda body: "seen") as server:
        one(server, Request(turns, image=str(path)), image_side=300)
    first, second, third = server.requests[0]["messages"]
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert (second["content"], third["content"]) == ("{", "Again.")
    head, _, data = picture_of(server.requests[0]).partition(",")
    assert head == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (sent.format, sent.size) == ("JPEG", (300, 75))
    assert min(sent.getpixel((150, 10))) > 240
    assert sent.getpixel((150, 65))[2] > 200 > 60 > sent.getpixel((150, 65))[0]


def test_a_small_picture_keeps_its_size(tmp_path):
    path = tmp_path / "small.jpg"
    Image.new("RGB", (40, 30), "red").save(path)
    with ChatServer(lambda body: "seen") as server:
        one(server, dataclasses.replace(HELLO, image=str(path)))
    data = picture_of(server.requests[0]).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 30)


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_broken_picture_costs_one_request(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    broken = dataclasses.replace(HELLO, image=str(path))
    with ChatServer(echo) as server:
        failed, answered = ask(server, broken, HELLO)
    assert isinstance(failed, RequestError)
    assert str(path) in str(failed)
    assert answered.text == "reply to Hello there"


# ---- replies that are none


@pytest.mark.parametrize(
    ("kind", "text"), [("empty", ""), ("length", "reply to H")]
)
def test_cut_and_empty_replies_are_unfinished(kind, text):
    with ChatServer(echo, fault=scripted(Fault(kind))) as server:
        reply = one(server)
    assert (reply.text, reply.finished) == (text, False)
    assert len(server.requests) == 1


def test_a_refusal_costs_one_request():
    with (
        ChatServer(echo, fault=scripted(Fault("refusal"))) as server,
        pytest.raises(RequestError, match="cannot help"),
    ):
        one(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        '"text"',
        "{",
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": 3}}]}',
        '{"choices": [{"message": {"content": [3]}}]}',
        '{"choices": [{"message": {"content": [{"text": 3}]}}]}',
        '{"choices": [{"message": {"content": "x"}}], "usage": []}',
        '{"choices": [{"message": {"content": "x"}}],'
        ' "usage": {"prompt_tokens": "many"}}',
        '{"choices": [{"message": {"content": "x"}}],'
        ' "usage": {"prompt_tokens_details": "none"}}',
        '{"error": {"message": "overloaded"}}',
        "[" * 100_000,
    ],
)
def test_bodies_of_other_shapes_are_faults(body):
    outcome = of_body(body)
    if body.endswith('"usage": []}'):  # as good as none
        assert outcome.reply == Reply("x")
    else:
        assert (outcome.kind, outcome.reply) == ("fault", None)


def test_content_in_parts_is_one_text():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "dress"}]
    body = {"choices": [{"message": {"content": parts}}]}
    assert of_body(json.dumps(body)).reply == Reply("a dress")


# ---- faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(502, body="<html>Bad gateway</html>"),
        status(503),
        status(408),
        status(429),
        status(429, retry_after="0.05"),
        Fault("drop"),
        Fault("truncate"),
        Fault("garbage"),
        Fault("html"),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status or ''}",
)
def test_faults_that_pass_are_tried_again(fault, tmp_path):
    log = tmp_path / "requests.jsonl"
    with ChatServer(echo, fault=scripted(fault, fault)) as server:
        assert one(server, log=log).text == "reply to Hello there"
    assert len(server.requests) == 3
    first, second, third, totals = lines(log)
    assert [first["attempt"], second["attempt"], third["attempt"]] == [1, 2, 3]
    assert first["problem"]
    assert third["status"] == 200
    assert "problem" not in third
    assert totals["totals"]["requests"] == 3


@pytest.mark.parametrize("kind", ["slow", "drip"])
def test_slow_replies_time_out(kind):
    # 200 bytes and more, each well within the limit for one read.
    seconds = 10.0 if kind == "slow" else 0.05
    fault = Fault(kind, seconds=seconds)
    with ChatServer(echo, fault=scripted(fault)) as server:
        begun = time.monotonic()
        assert one(server, timeout=0.5).finished
        # Ten seconds of dripping, cut after half a one.
        assert 0.5 < time.monotonic() - begun < 6
    assert len(server.requests) >= 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(500), "HTTP 500: injected, 4 times"),
        (Fault("drop"), "the connection broke"),
        (Fault("truncate"), "the connection broke"),
        (Fault("garbage"), "JSONDecodeError"),
        (Fault("html"), "It works!"),
    ],
    ids=lambda case: getattr(case, "kind", None),
)
def test_a_fault_that_stays_costs_one_request(fault, words):
    def unlucky(number, body):
        return fault if "unlucky" in str(body["messages"]) else None

    with ChatServer(echo, fault=unlucky) as server:
        bad = Request((("user", "unlucky"),))
        failed, good = ask(server, bad, HELLO)
    assert isinstance(failed, RequestError)
    assert words in str(failed)
    assert good.finished
    assert len(server.requests) == QUICK.tries + 1


def test_retry_after_is_waited_for_by_all():
    # One is refused; the others, which arrive meanwhile, wait with it.
    wait = 0.4
    with ChatServer(
        echo, fault=scripted(status(429, retry_after=str(wait)))
    ) as server:

        async def run():
            backend = OpenAI("shop-vl", base_url=server.url, retry=QUICK)
            begun = time.monotonic()
            first = asyncio.create_task(backend.ask(HELLO))
            while not server.statuses[429]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # the refusal has been read
            await backend.ask(HELLO)
            await first
            await backend.close()
            return time.monotonic() - begun

        assert asyncio.run(run()) >= wait
    assert server.statuses == {429: 1, 200: 2}


def test_a_rate_limit_is_found_without_being_told():
    # A server that bears two at once and refuses the rest. Halving finds
    # that, so that most requests are not wasted on refusals.
    count = 60

    def crowded(number, body):
        return status(429) if server.inside > 2 else None

    requests = [Request((("user", f"number {i}"),)) for i in range(count)]
    with ChatServer(echo, fault=crowded, seconds=0.005) as server:
        replies = ask(server, *requests, concurrency=32)
    assert [r.text for r in replies] == [
        f"reply to number {i}" for i in range(count)
    ]
    assert server.statuses[200] == count
    assert server.statuses[429] < 3 * count


def test_no_more_in_flight_than_allowed():
    with ChatServer(echo, seconds=0.02) as server:
        replies = ask(server, *[HELLO] * 24, concurrency=3)
    assert all(reply.finished for reply in replies)
    assert server.most == 3


@pytest.mark.parametrize("structured", [True, False])
def test_schema_is_asked_for_until_it_is_refused(structured, capsys):
    asked = dataclasses.replace(HELLO, schema=SCHEMA)
    with ChatServer(echo, structured=structured) as server:

        async def run():
            backend = OpenAI("shop-vl", base_url=server.url, retry=QUICK)
            replies = [await backend.ask(asked) for _ in range(3)]
            await backend.close()
            return replies

        assert all(reply.finished for reply in asyncio.run(run()))
    sent = ["response_format" in body for body in server.requests]
    assert sent == ([True] * 3 if structured else [True, False, False, False])
    assert ("response_format" in capsys.readouterr().err) is not structured
    form = server.requests[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == SCHEMA


def test_schema_is_blamed_only_if_its_absence_helps():
    # Too long with and without: the next is asked for its schema again.
    long = Request((("user", "x" * 500),), schema=SCHEMA)
    short = dataclasses.replace(HELLO, schema=SCHEMA)
    with ChatServer(echo, context=100) as server:

        async def run():
            backend = OpenAI("shop-vl", base_url=server.url, retry=QUICK)
            with pytest.raises(RequestError, match="maximum context"):
                await backend.ask(long)
            await backend.ask(short)
            await backend.close()

        asyncio.run(run())
    sent = ["response_format" in body for body in server.requests]
    assert sent == [True, False, True]
