"""The backend for OpenAI's protocol, against a real server that misbehaves."""

import asyncio
import base64
import dataclasses
import email.utils
import io
import json
import socket
import sys
import time

import pytest
from chat_server import ChatServer, Fault, picture_of, scripted, seeded, status
from PIL import Image

from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Reply, Request, RequestError
from neggen_jax.generation.backends.chat_protocol import of_body
from neggen_jax.generation.backends.openai import OpenAI
from neggen_jax.generation.backends.pacing import (
    Gate,
    Retry,
    backoff,
    retry_after,
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


# ---- what ends the run


def test_a_server_that_is_not_there_is_named(tmp_path):
    with socket.socket() as taken:  # bound, so nobody else is; not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        log = tmp_path / "requests.jsonl"
        with pytest.raises(InputError, match="cannot be reached") as caught:
            one(None, url=url, log=log)
    assert caught.value.where == url
    # Sooner than one that was there and went away.
    assert lines(log)[-1]["totals"]["requests"] == 3 < QUICK.tries


def test_a_server_that_went_away_is_waited_for_then_named():
    async def run():
        with ChatServer(echo) as server:
            backend = OpenAI("shop-vl", base_url=server.url, retry=QUICK)
            await backend.ask(HELLO)
        begun = backend._log.totals.requests
        with pytest.raises(InputError, match="cannot be reached"):
            await backend.ask(HELLO)
        await backend.close()
        return backend._log.totals.requests - begun

    # A connection that was kept open may break before the first refusal.
    assert asyncio.run(run()) == QUICK.tries


@pytest.mark.parametrize("code", [401, 402, 403])
def test_a_refused_key_ends_the_run(code, monkeypatch):
    monkeypatch.setenv("SHOP_KEY", "sk-secret-1")
    body = {"error": {"message": "bad key sk-secret-1", "code": "bad_key"}}
    with (
        ChatServer(echo, fault=scripted(status(code, body))) as server,
        pytest.raises(InputError, match="refuses the key") as caught,
    ):
        one(server, api_key_env="SHOP_KEY")
    assert "SHOP_KEY" in str(caught.value)
    assert "sk-secret-1" not in str(caught.value)
    assert len(server.requests) == 1


def test_an_unknown_model_is_answered_with_those_there_are():
    with (
        ChatServer(echo, models=["shop-vl-2"]) as server,
        pytest.raises(InputError, match="no model 'shop-vl'") as caught,
    ):
        one(server)
    assert "did you mean 'shop-vl-2'" in caught.value.fix


def test_a_wrong_path_is_told():
    with (
        ChatServer(echo) as server,
        pytest.raises(InputError, match="not at this URL") as caught,
    ):
        one(server, url=server.url.removesuffix("/v1"))
    assert "Not Found" in caught.value.found


def test_a_spent_quota_ends_the_run():
    error = {"error": {"message": "spent", "code": "insufficient_quota"}}
    with (
        ChatServer(echo, fault=scripted(status(429, error))) as server,
        pytest.raises(InputError, match="takes no more"),
    ):
        one(server)


def test_a_wait_beyond_patience_ends_the_run():
    with (
        ChatServer(
            echo, fault=scripted(status(429, retry_after="3600"))
        ) as server,
        pytest.raises(InputError, match="asks to wait 3600 s"),
    ):
        one(server)


def test_a_server_that_is_always_busy_ends_the_run():
    retry = dataclasses.replace(QUICK, patience=0.3)
    with (
        ChatServer(echo, fault=lambda *_: status(429)) as server,
        pytest.raises(InputError, match="takes no more"),
    ):
        one(server, retry=retry)


@pytest.mark.parametrize("code", [400, 500])
def test_a_server_that_answers_nobody_ends_the_run(code):
    retry = dataclasses.replace(QUICK, tries=2, give_up=3)
    with ChatServer(echo, fault=lambda *_: status(code)) as server:
        results = ask(server, *[HELLO] * 4, retry=retry, concurrency=1)
    # Whose last try comes first is up to the waits between tries.
    ended = [str(r) for r in results if isinstance(r, InputError)]
    failed = [r for r in results if isinstance(r, RequestError)]
    assert (len(ended), len(failed)) == (2, 2)
    assert any("3 requests in a row" in words for words in ended)


@pytest.mark.parametrize("code", [400, 500])
def test_a_row_of_bad_requests_does_not_end_the_run(code, tmp_path):
    def unlucky(number, body):
        return status(code) if "unlucky" in str(body["messages"]) else None

    log = tmp_path / "requests.jsonl"
    retry = dataclasses.replace(QUICK, tries=1, give_up=3)
    bad = Request((("user", "unlucky"),))
    with ChatServer(echo, fault=unlucky) as server:
        results = ask(server, *[bad] * 10, retry=retry, concurrency=1, log=log)
    assert [type(result) for result in results] == [RequestError] * 10
    probes = [line for line in lines(log) if line.get("label") == "probe"]
    assert len(probes) == 3


def test_one_answer_restores_confidence(tmp_path):
    log = tmp_path / "requests.jsonl"
    retry = dataclasses.replace(QUICK, tries=1, give_up=2)
    faults = [status(400), None, status(400), None]
    with ChatServer(echo, fault=scripted(*faults)) as server:
        results = ask(server, *[HELLO] * 4, retry=retry, concurrency=1, log=log)
    kinds = [type(result) for result in results]
    assert kinds == [RequestError, Reply, RequestError, Reply]
    assert "probe" not in log.read_text()


def test_refusals_repeat_neither_picture_nor_at_length():
    told = {"detail": [{"input": "data:image/jpeg;base64," + "A" * 9000}]}
    with (
        ChatServer(
            echo,
            fault=scripted(status(422, told), status(422, {"x": "y" * 900})),
        ) as server,
    ):
        first, second = ask(server, HELLO, HELLO, concurrency=1)
    assert "AAAA" not in str(first)
    assert "<picture>" in str(first)
    assert len(str(second)) < 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://host/v1"},
        {"concurrency": 0},
        {"timeout": 0.0},
        {"image_side": 0},
        {"model": ""},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_arguments_without_sense_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        OpenAI(**{"model": "shop-vl"} | wrong)


def test_a_key_of_other_letters_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("SHOP_KEY", "schlüssel")
    with pytest.raises(InputError, match="SHOP_KEY") as caught:
        OpenAI("shop-vl", api_key_env="SHOP_KEY")
    assert "schl" not in str(caught.value)


def test_a_missing_sdk_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match="requirements-openai"):
        OpenAI("shop-vl")


# ---- the log


def test_the_log_tells_what_was_spent_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-2")
    log, path = tmp_path / "sub" / "requests.jsonl", tmp_path / "a.png"
    Image.new("RGB", (30, 30), "red").save(path)
    request = dataclasses.replace(HELLO, image=str(path))
    echoed = {"error": {"message": "sk-secret-2 data:image/png;base64,AAAA"}}
    with ChatServer(echo, fault=scripted(status(500, echoed))) as server:
        one(server, request, log=log)
        one(server, request, log=log)  # a later run goes on in the same file
    text = log.read_text()
    for secret in ("sk-secret-2", "base64", "Hello there"):
        assert secret not in text
    failed, answered, totals, again, totals_again = lines(log)
    assert (failed["status"], failed["attempt"]) == (500, 1)
    assert answered == again | {
        "attempt": 2,
        "seconds": answered["seconds"],
    }
    assert answered["label"] == "hi"
    assert (answered["prompt_tokens"], answered["cached_tokens"]) == (4, 1)
    assert totals["totals"]["requests"] == 2
    assert totals["totals"]["answered"] == 1
    assert totals_again["totals"]["prompt_tokens"] == again["prompt_tokens"]


def test_the_log_goes_on_after_a_torn_line(tmp_path):
    log = tmp_path / "requests.jsonl"
    log.write_text('{"label": "to')
    with ChatServer(echo) as server:
        one(server, log=log)
    torn, *whole = log.read_text().splitlines()
    assert torn == '{"label": "to'
    assert len([json.loads(line) for line in whole]) == 2


# ---- pacing


def test_a_burst_of_refusals_halves_the_limit_once():
    async def run():
        gate = Gate(8)
        entered = []
        async with gate.enter() as first, gate.enter() as second:
            entered += [first, second]
        for moment in entered:
            gate.refused(moment, 0.0)
        once = gate.limit
        async with gate.enter() as third:
            gate.refused(third, 0.0)
        return once, gate.limit

    assert asyncio.run(run()) == (4, 2)


def test_the_limit_recovers_and_stays_within_bounds():
    async def run():
        gate = Gate(2)
        for _ in range(5):
            async with gate.enter() as entered:
                gate.refused(entered, 0.0)
        low = gate.limit
        for _ in range(50):
            gate.answered()
        return low, gate.limit

    assert asyncio.run(run()) == (1, 2)


def test_a_cancelled_request_leaves_its_place():
    async def run():
        gate = Gate(1)
        async with gate.enter():
            waiting = asyncio.create_task(gate.enter().__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(1), gate.enter():
            return True

    assert asyncio.run(run())


def test_waits_double_up_to_their_bound():
    for tried, whole in ((1, 1.0), (2, 2.0), (4, 8.0), (9, 60.0), (10**6, 60)):
        waits = [backoff(tried, 1.0, 60.0) for _ in range(200)]
        assert whole / 2 <= min(waits) <= max(waits) <= whole
        # 200 draws over a half of the whole lie not all in its middle.
        assert max(waits) - min(waits) > whole / 4


def test_retry_after_in_all_its_forms():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    past = email.utils.formatdate(time.time() - 100, usegmt=True)
    assert retry_after({}) is None
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "0.5"}) == 0.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    # The date has whole seconds.
    assert 98 < retry_after({"retry-after": date}) <= 100
    assert retry_after({"retry-after": past}) == 0
    for nonsense in ("", "soon", "nan", "inf", "-inf", "Mon, 99 Foo"):
        assert retry_after({"retry-after": nonsense}) is None


# ---- many requests, many faults


@pytest.mark.parametrize("seed", [0, 1])
def test_every_request_has_one_end(seed):
    faults = [
        status(429),
        status(429, retry_after="0.02"),
        status(500),
        status(503, retry_after="0"),
        Fault("slow", seconds=9.0),
        Fault("drop"),
        Fault("truncate"),
        Fault("garbage"),
        Fault("refusal"),
        Fault("empty"),
        Fault("length"),
    ]
    requests = [Request((("user", f"number {i}"),)) for i in range(100)]
    with ChatServer(echo, fault=seeded(seed, 0.4, faults)) as server:
        results = ask(server, *requests, timeout=1.5, concurrency=12)
    assert all(isinstance(r, Reply | RequestError) for r in results)
    for i, result in enumerate(results):
        if isinstance(result, Reply) and result.finished:
            assert result.text == f"reply to number {i}"
    # At most three faults a request, of which most are retried away.
    whole = [r for r in results if isinstance(r, Reply) and r.finished]
    assert 60 < len(whole) < 100
