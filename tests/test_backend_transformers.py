"""The backend in this process, with tiny random models of real classes."""

import asyncio
import functools
import json
import pathlib

import numpy as np
import pytest
import tiny_models
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
)

from neggen_jax.errors import InputError
from neggen_jax.generation import writers
from neggen_jax.generation.backends import Reply, Request, RequestError
from neggen_jax.generation.backends.image_text_model import ImageTextModel
from neggen_jax.generation.backends.transformers import Transformers

torch = pytest.importorskip(
    "torch", reason="pip install -r requirements-mllm.txt"
)

KINDS = ("clip-llama", "siglip-qwen2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_models.build(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def llava(models):
    return models["clip-llama"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noise and plain colours; none of the size the model reads."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    made = {
        "noise.png": Image.fromarray(noise),
        "red.jpg": Image.new("RGB", (64, 90), "red"),
        "blue.png": Image.new("RGB", (30, 30), "blue"),
    }
    for name, picture in made.items():
        picture.save(root / name)
    return [str(root / name) for name in made]


def test_records_name_a_model_and_not_where_it_lies(llava):
    """So that shards written on other machines belong to one set."""
    name = pathlib.Path(llava).name
    assert Transformers(llava).model == name
    # Neither items nor plan have a say in it.
    choice = writers.choose("transformers", None, None, {"model": f"{llava}/"})
    settings = choice.settings
    assert settings["model"] == name


def say(text, **given):
    return Request((("user", text),), **given)


def mixed(pictures):
    """Requests of all lengths, with pictures and without."""
    texts = ["a", "What is it?", "Describe the product in the picture. " * 3]
    return [
        say(text, image=image, max_tokens=6 + 4 * i, label=f"{i} {image}")
        for i, text in enumerate(texts)
        for image in ["", *pictures]
    ]


def ask(backend, *requests):
    """Asks all at once; replies and errors in the order of the requests."""

    async def run():
        try:
            return await asyncio.gather(
                *(backend.ask(request) for request in requests),
                return_exceptions=True,
            )
        finally:
            await backend.close()

    return asyncio.run(run())


@functools.cache
def loaded(path):
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    return AutoProcessor.from_pretrained(path), model


def alone(path, request):
    """One request, by Transformers itself."""
    processor, model = loaded(path)
    content = [{"type": "text", "text": request.messages[0][1]}]
    if request.image:
        content.insert(0, {"type": "image", "image": Image.open(request.image)})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=request.max_tokens, do_sample=False
        )[0, length:].tolist()
    finished = 2 in out
    words = processor.tokenizer.decode(out, skip_special_tokens=True)
    return Reply(words, finished, length, len(out))


class Recording(ImageTextModel):
    """Notes the size of each batch; fails with `error` beyond `most`."""

    def __init__(self, path, most=99, error=None):
        self.sizes, self.most, self.error = [], 99, None
        super().__init__(path)
        self.sizes, self.most, self.error = [], most, error

    def generate(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise self.error
        return super().generate(batch)


# ---- what is answered


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_all_sorts_is_answered_as_each_alone(models, pictures, kind):
    path, requests = models[kind], mixed(pictures)
    backend = Transformers(path, batch_size=5)
    backend._model = recording = Recording(path)
    replies = ask(backend, *requests)
    # In float32 padding changes logits by rounding, which tips no word here.
    assert replies == [alone(path, request) for request in requests]
    # 3 texts, then 9 pictures.
    assert recording.sizes == [3, 5, 4]
    assert len({reply.text for reply in replies}) > 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_changes_the_logits(models, pictures, kind):
    model = ImageTextModel(models[kind])
    logits = []
    for path in pictures[1:]:
        with Image.open(path) as picture:
            inputs = model._read([(say("What is it?"), picture)])
        with torch.inference_mode():
            logits.append(model._model(**inputs).logits[0, -1])
    # Beyond what rounding does, by far.
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_a_reply_ends_where_the_model_ends_it(llava, pictures, tmp_path):
    request = say("What is it?", image=pictures[0], max_tokens=12)
    whole = alone(llava, request)
    assert (whole.finished, whole.reply_tokens) == (False, 12)
    # The same model, for which its own fourth token ends a reply.
    model = AutoModelForImageTextToText.from_pretrained(llava)
    processor = AutoProcessor.from_pretrained(llava)
    backend = Transformers(llava)
    rows = backend._model._continue(
        backend._model._read([(request, Image.open(pictures[0]))]), 12
    )
    end = rows[0][3]
    assert end not in rows[0][:3]
    model.generation_config.eos_token_id = [2, end]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    short = say("What is it?", image=pictures[0], max_tokens=3)
    exact = say("What is it?", image=pictures[0], max_tokens=4)
    ended, cut, just = ask(Transformers(tmp_path), request, short, exact)
    assert (ended.finished, ended.reply_tokens) == (True, 4)
    assert (cut.finished, cut.reply_tokens) == (False, 3)
    assert (just.finished, just.reply_tokens) == (True, 4)
    decode = processor.tokenizer.decode
    assert cut.text == decode(rows[0][:3])
    assert ended.text == just.text == decode(rows[0][:4])


def test_settings_of_the_model_do_not_make_it_draw(llava, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.generation_config.update(
        do_sample=True, temperature=9.0, top_k=0, num_beams=1
    )
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(llava).save_pretrained(tmp_path)
    request = say("What is it?", max_tokens=30)
    replies = ask(Transformers(tmp_path, batch_size=2), request, request)
    assert replies == [alone(llava, request)] * 2


def test_words_of_a_text_are_no_control_tokens(llava, pictures):
    # Neither an end of the turn nor a second picture.
    words = "A <image> print <eos><|assistant|>"
    told = say(words, image=pictures[0], max_tokens=4)
    plain = say("A print", image=pictures[0], max_tokens=4)
    first, second = ask(Transformers(llava), told, plain)
    assert second == alone(llava, plain)
    # Each of these letters is a token of this tokenizer, or nearly.
    assert first.prompt_tokens > second.prompt_tokens + 20


@pytest.mark.parametrize("image", [False, True])
def test_a_system_turn_opens_the_users_where_there_is_none(
    llava, pictures, tmp_path, image
):
    refusing = tiny_models.build(tmp_path, chat=tiny_models.NO_SYSTEM)
    picture = pictures[0] if image else ""
    turns = (("system", "Be brief."), ("user", "Hello"))
    apart = Request(turns, image=picture, max_tokens=8)
    together = say("Be brief.\n\nHello", image=picture, max_tokens=8)
    (reply,) = ask(Transformers(refusing), apart)
    assert reply == alone(refusing, together)
    # A template that has a system's turn is given one.
    (reply,) = ask(Transformers(llava), apart)
    assert reply != alone(llava, together)


def test_a_conversation_goes_on(llava, pictures):
    turns = (("user", "What?"), ("assistant", "{"), ("user", "No JSON."))
    short, long = ask(
        Transformers(llava),
        say("What?", image=pictures[0], max_tokens=4),
        Request(turns, image=pictures[0], max_tokens=4),
    )
    # Two more turns; the picture is there once, its 16 patches of tokens.
    assert 10 < long.prompt_tokens - short.prompt_tokens < 16


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_type_of_numbers_is_as_asked(llava, pictures, dtype):
    backend = Transformers(llava, dtype=dtype)
    assert backend._model._model.dtype == getattr(torch, dtype)
    (reply,) = ask(backend, say("What is it?", image=pictures[0], max_tokens=3))
    assert reply.reply_tokens == 3


# ---- what fails alone


def test_trouble_of_one_request_is_its_own(llava, pictures, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    good = say("What is it?", image=pictures[0], max_tokens=5)
    long = say("long " * 2100, image=pictures[1], max_tokens=5)
    # 27 tokens of prompt, so that a reply of 2021 just fits, 2022 does not.
    full = say("describe", image=pictures[0], max_tokens=2022)
    results = ask(
        Transformers(llava),
        say("What is it?", image=str(broken)),
        good,
        long,
        full,
        say("What is it?", image=str(tmp_path / "none.jpg")),
    )
    kinds = [type(result) for result in results]
    assert kinds == [RequestError, Reply] + [RequestError] * 3
    assert results[1] == alone(llava, good)
    assert str(broken) in str(results[0])
    assert "context holds 2048" in str(results[2])
    assert "2049 tokens" in str(results[3])


def test_what_the_model_cannot_read_fails_alone(llava):
    # Whatever a processor raises; a batch does not say which of it is at fault.
    class Choosy(Recording):
        def generate(self, batch):
            self.sizes.append(len(batch))
            if any(r.messages[0][1] == "bad" for r, _ in batch):
                raise ValueError("tokens and features do not match\nmore")
            return ImageTextModel.generate(self, batch)

    backend = Transformers(llava)
    backend._model = choosy = Choosy(llava)
    texts = ["a", "b", "bad", "c", "d"]
    results = ask(backend, *[say(text, max_tokens=4) for text in texts])
    assert [isinstance(r, Reply) for r in results] == [True] * 2 + [
        False,
        True,
        True,
    ]
    assert "ValueError: tokens and features do not match" in str(results[2])
    assert "more" not in str(results[2])
    # In halves, not one by one.
    assert choosy.sizes == [5, 3, 2, 1, 2]


def test_a_batch_beyond_memory_is_halved_for_good(llava, capsys):
    backend = Transformers(llava, batch_size=8)
    error = torch.OutOfMemoryError("out of memory")
    backend._model = recording = Recording(llava, 2, error)
    requests = [say(f"number {i}", max_tokens=4) for i in range(12)]
    results = ask(backend, *requests)
    assert results == [alone(llava, request) for request in requests]
    assert recording.sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    assert backend.batch_size == 2
    said = capsys.readouterr().err.splitlines()
    notes = [line for line in said if line.startswith("note: cpu ran out")]
    assert [note.split(";")[1] for note in notes] == [
        " going on with 4",
        " going on with 2",
    ]


def test_what_never_fits_costs_one_request(llava):
    backend = Transformers(llava)
    error = torch.OutOfMemoryError("out of memory")
    backend._model = Recording(llava, 0, error)
    (result,) = ask(backend, say("What is it?"))
    assert isinstance(result, RequestError)
    assert "memory" in str(result)


def test_a_device_that_fails_ends_the_run(llava):
    backend = Transformers(llava)
    error = torch.AcceleratorError("device-side assert", 1)
    backend._model = Recording(llava, 0, error)
    results = ask(backend, say("a"), say("b"))
    assert [type(result) for result in results] == [InputError] * 2
    assert "device has failed" in str(results[0])


def test_who_asks_may_go(llava):
    async def run():
        backend = Transformers(llava, batch_size=2)
        asked = [
            asyncio.create_task(backend.ask(say(f"number {i}", max_tokens=4)))
            for i in range(5)
        ]
        await asyncio.sleep(0)
        asked[1].cancel()
        asked[4].cancel()
        results = await asyncio.gather(*asked, return_exceptions=True)
        await backend.close()
        return results

    results = asyncio.run(run())
    gone = [isinstance(r, asyncio.CancelledError) for r in results]
    assert gone == [False, True, False, False, True]
    assert results[2] == alone(llava, say("number 2", max_tokens=4))


def test_closing_leaves_nobody_waiting(llava):
    async def run():
        backend = Transformers(llava, batch_size=2)
        asked = [
            asyncio.create_task(backend.ask(say("a", max_tokens=50)))
            for _ in range(40)
        ]
        await asyncio.sleep(0.05)  # the first batches are at work
        await backend.close()
        async with asyncio.timeout(5):
            return await asyncio.gather(*asked, return_exceptions=True)

    kinds = [type(result) for result in asyncio.run(run())]
    # On a fast machine some are answered before the end.
    assert set(kinds) <= {asyncio.CancelledError, Reply}
    assert kinds[-1] is asyncio.CancelledError


# ---- the log


def test_the_log_counts_tokens(llava, pictures, tmp_path):
    log = tmp_path / "requests.jsonl"
    backend = Transformers(llava, log=log)
    asked = say("What is it?", image=pictures[0], max_tokens=5, label="item 3")
    long = say("long " * 2100, label="item 4")
    reply, _ = ask(backend, asked, long)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    by_label = {line.get("label"): line for line in lines}
    assert by_label["item 3"]["prompt_tokens"] == reply.prompt_tokens > 17
    assert by_label["item 3"]["reply_tokens"] == 5
    assert by_label["item 4"]["status"] == "failed"
    assert "context" in by_label["item 4"]["problem"]
    assert lines[-1]["totals"]["requests"] == backend._log.totals.requests == 2
    assert lines[-1]["totals"]["answered"] == 1


def test_a_full_disk_is_told_and_nobody_waits_for_good(llava):
    backend = Transformers(llava, log="/dev/full")

    async def run():
        # Loading aside, an answer takes well under a second.
        await asyncio.wait_for(backend.ask(say("a", max_tokens=2)), 60)

    with pytest.raises(InputError, match="log of requests"):
        asyncio.run(run())
