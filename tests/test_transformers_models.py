"""Models that can, and models that cannot be used in this process."""

import json
import sys

import pytest
import tiny_models
from contents import make_records, paint
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from neggen_jax.errors import InputError
from neggen_jax.generation import tasks
from neggen_jax.generation.backends.transformers import Transformers
from neggen_jax.generation.sets import pipeline
from neggen_jax.generation.writers import prompts
from neggen_jax.generation.writers.prompted import Options, Prompted

torch = pytest.importorskip(
    "torch", reason="pip install -r requirements-mllm.txt"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("models"), "clip-llama")


# ---- from an image file to a record


def test_from_picture_to_record(tmp_path):
    # Its words are noise, so what shows is how that ends.
    path = tiny_models.build(tmp_path / "model", context=8192)
    log = tmp_path / "requests.jsonl"
    paint(tmp_path / "red.png", "red", True)
    records = make_records(
        ["A red cotton dress.", "A blue woollen scarf."],
        ["red.png", "none.png"],
        tmp_path,
    )
    written = []
    pipeline.run(
        tasks.make(records, tasks.plan(records)),
        Prompted(
            Transformers(path, batch_size=2, log=log),
            prompts.load(),
            Options(retries=1, max_masks=1),
        ),
        written.append,
    )
    assert sorted(record.key for record in written) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    by_key = {record.key: record for record in written}
    assert not any(record.accepted for record in written)
    for item in (0, 1):
        text = by_key[item, 0]
        assert text.error.startswith("mask: ")
        assert (text.attempts, text.description) == (2, records.texts[item])
    assert by_key[0, 1].error.partition(":")[0] in ("describe", "mask")
    assert by_key[0, 1].attempts >= 2
    assert "none.png" in by_key[1, 1].error or "No such" in by_key[1, 1].error
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = sum(record.attempts for record in written)
    assert lines[-1]["totals"]["requests"] == len(lines) - 1 == asked
    assert lines[-1]["totals"]["answered"] == asked
    labels = {line["label"] for line in lines[:-1]}
    assert {"item 0 text: mask", "item 0 image: describe"} <= labels


# ---- models that cannot be used


def test_missing_torch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="requirements-mllm"):
        Transformers("any")


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        Transformers(tmp_path / "none")
    assert caught.value.where == str(tmp_path / "none")
    assert caught.value.found == "no such directory"


def test_a_model_without_chat_template_is_told(tmp_path):
    path = tiny_models.build(tmp_path, chat=None)
    with pytest.raises(InputError, match="a chat template"):
        Transformers(path)


def test_a_model_of_texts_alone_is_told(tmp_path):
    tokenizer = tiny_models.make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=len(tokenizer),
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"texts and pictures|image-text"):
        Transformers(tmp_path)


def test_missing_weights_are_told(llava, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tiny_models.build(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(n for n in weights if "mlp" in n)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 missing"):
        Transformers(path)


def test_a_template_that_shows_no_picture_is_told(tmp_path):
    blind = tiny_models.CHAT.replace("<image>", "")
    path = tiny_models.build(tmp_path, chat=blind)
    with pytest.raises(InputError, match="an answer about a picture"):
        Transformers(path)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"image_side": 3}, {"dtype": "float99"}, {"model": ""}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_arguments_without_sense_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Transformers(**{"model": "any"} | wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told(llava):
    with pytest.raises(InputError, match="cannot be loaded"):
        Transformers(llava, device="cuda")
