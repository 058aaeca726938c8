"""Both backends and one model: served by Transformers' own server, and here.

`transformers serve` is a server that others keep, of the same protocol as
vLLM and SGLang, and runs on a CPU.
"""

import asyncio
import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import tiny_models
from PIL import Image

from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Reply, Request, RequestError
from neggen_jax.generation.backends.openai import OpenAI
from neggen_jax.generation.backends.pacing import Retry
from neggen_jax.generation.backends.transformers import Transformers

for needed in ("torch", "openai", "accelerate", "fastapi", "uvicorn"):
    pytest.importorskip(needed, reason="see requirements-dev.txt")

pytestmark = pytest.mark.slow

_SERVE = "import sys; from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """Where a server of the model listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-c", _SERVE, "serve", model]
    command += [f"--port={port}", "--host=127.0.0.1", "--device=cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log
        )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, said.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{base}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        else:
            raise TimeoutError(said.read_text()[-2000:])
        yield f"{base}/v1"
    finally:
        process.terminate()
        process.wait(20)


def ask(backend, *requests):
    async def run():
        try:
            return await asyncio.gather(
                *(backend.ask(request) for request in requests),
                return_exceptions=True,
            )
        finally:
            await backend.close()

    return asyncio.run(run())


def requests_of(tmp_path):
    # One colour survives JPEG, so that both backends show the same picture.
    path = tmp_path / "grey.jpg"
    Image.new("RGB", (64, 64), (128, 128, 128)).save(path, quality=95)
    texts = ["a", "What is it?", "Describe the product. " * 4]
    turns = (("user", "What?"), ("assistant", "{"), ("user", "In words."))
    asked = [Request((("user", text),), max_tokens=9) for text in texts]
    asked.append(Request(turns, max_tokens=9))
    asked.append(
        Request((("system", "Be brief."), ("user", "Hello")), max_tokens=9)
    )
    return asked + [
        dataclasses.replace(request, image=str(path)) for request in asked
    ]


def test_a_server_that_others_keep_answers_as_the_model_here(
    model, url, tmp_path
):
    asked = requests_of(tmp_path)
    log = tmp_path / "requests.jsonl"
    served = ask(OpenAI(model, base_url=url, timeout=60, log=log), *asked)
    here = ask(Transformers(model), *asked)
    assert all(isinstance(reply, Reply) for reply in served)
    # What it has read before, the model here does not say.
    served = [dataclasses.replace(r, cached_tokens=0) for r in served]
    assert served == here
    assert len({reply.text for reply in served}) > 5
    assert len(log.read_text().splitlines()) == len(asked) + 1


def test_a_schema_does_no_harm(model, url):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    asked = Request((("user", "a"),), max_tokens=5, schema=schema)
    (reply,) = ask(OpenAI(model, base_url=url, timeout=60), asked)
    assert reply.reply_tokens == 5


def test_another_model_than_is_served_ends_the_run(url):
    # This server says 400 where others say 404; a simple question shows that
    # it is not for these requests.
    retry = Retry(first=0.01, give_up=3)
    backend = OpenAI("other", base_url=url, retry=retry, concurrency=1)
    asked = Request((("user", "a"),))
    results = ask(backend, *[asked] * 4)
    kinds = [type(result) for result in results]
    assert kinds == [RequestError, RequestError, InputError, InputError]
    assert "other" in str(results[2])
