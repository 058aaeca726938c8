"""From records to features: what is read, marked absent or refused."""

import subprocess
import sys

import numpy as np
import pytest
from contents import (
    TEXTS,
    check_invariants,
    make_records,
    paint,
    paint_shop,
    quick,
)
from PIL import Image

from neggen_jax.catalog import ItemRecords
from neggen_jax.data.features import extract, item_text
from neggen_jax.data.images import open_image
from neggen_jax.errors import InputError


@pytest.fixture
def shop(tmp_path):
    return paint_shop(tmp_path)


# ---- what an encoder reads


@pytest.mark.parametrize(
    ("title", "text", "attributes", "chosen", "expected"),
    [
        (" Hat ", "Warm.", {}, None, "Hat. Warm."),
        ("Hat!", "Warm. ", {"a": "x"}, None, "Hat! Warm. a: x"),
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
    assert "2 of 12 images cannot be read" in message
    assert str(tmp_path / "05.jpg") in message
    assert "id5" in message
    assert "BytesIO" not in message
    assert "--bad_images=absent" in caught.value.fix
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
