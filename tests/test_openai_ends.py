"""What a server can do that ends a record, or a run; and what the log tells."""

import asyncio
import dataclasses
import json
import socket
import sys

import pytest
from chat_server import ChatServer, Fault, scripted, seeded, status
from PIL import Image
from test_backend_openai import HELLO, QUICK, ask, echo, lines, one

from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Reply, Request, RequestError
from neggen_jax.generation.backends.openai import OpenAI

pytest.importorskip("openai", reason="pip install -r requirements-openai.txt")


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


def test_a_full_disk_is_told():
    with (
        ChatServer(echo) as server,
        pytest.raises(InputError, match="log of requests"),
    ):
        one(server, log="/dev/full")


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
