"""The templates: the package's own, and what is wrong with others."""

import importlib.resources
import json
import pathlib
import re

import pytest

from neggen_jax.errors import InputError
from neggen_jax.generation.writers import prompts

OWN = (
    importlib.resources.files("neggen_jax.generation.writers")
    .joinpath("prompts.toml")
    .read_text("utf-8")
)


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def test_own_templates_are_loaded_and_filled():
    loaded = prompts.load()
    filled = loaded.mask.messages(
        description="A red dress.", kept="category: dress", masks=3
    )
    ((role, text),) = filled
    assert role == "user"
    assert text.endswith("category: dress\nDescription: A red dress.")
    assert "at most 3 attributes" in text
    assert "{{" not in text
    for name in ("describe", "mask", "complete", "correction"):
        # Lines are folded in the file, not in what is said.
        assert "\\" not in getattr(loaded, name).user


def test_what_differs_between_items_comes_last():
    # Servers compute what requests have in common from the beginning once.
    loaded = prompts.load()
    for template, names in (
        (loaded.describe, ("known",)),
        (loaded.mask, ("kept", "description")),
        (loaded.complete, ("masked", "values")),
    ):
        first = min(template.user.index(f"{{{{{name}}}}}") for name in names)
        assert first > 0.85 * len(template.user)


def test_filling_in_does_not_fill_in_what_was_filled_in():
    template = prompts.Template("{{kept}}: {{ description }}", "S {{kept}}")
    assert template.messages(description="{{kept}} \\1", kept="dress") == (
        ("system", "S dress"),
        ("user", "dress: {{kept}} \\1"),
    )


def test_a_file_of_ones_own(tmp_path):
    own = prompts.load()
    assert prompts.load(write(tmp_path, OWN)) == own
    other = prompts.load(write(tmp_path, OWN.replace("slim", "thin")))
    assert other.version != own.version
    assert other.version.startswith("1-")
    assert len(other.version) == len("1-") + 8
    second = OWN.replace('version = "1"', 'version = "2"')
    assert prompts.load(write(tmp_path, second)).version.startswith("2-")


def test_line_ends_of_another_system_make_no_other_version(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(OWN.replace("\n", "\r\n").encode())
    assert prompts.load(path) == prompts.load()


def drop(name):
    """The file without one of its tables."""
    return re.sub(rf'\[{name}\]\nuser = """.*?"""\n', "", OWN, flags=re.S)


REFUSED = [
    (OWN.replace('version = "1"', ""), "version"),
    (OWN.replace('version = "1"', 'version = ""'), "version"),
    (OWN.replace('version = "1"', "version = 1"), "version"),
    (drop("describe"), "'describe' is missing"),
    (drop("mask"), "'mask' is missing"),
    (drop("complete"), "'complete' is missing"),
    (drop("correction"), "'correction' is missing"),
    (OWN.replace("[mask]\nuser", "[mask]\nsystem"), "'mask' is missing"),
    (drop("describe") + "[describe]\nuser = ''\n", "'describe' is missing"),
    (OWN.replace("[mask]\nuser", "[mask]\nusr = 'x'\nuser"), "mask.usr"),
    (OWN.replace("[mask]\nuser", "[mask]\nsystem = 1\nuser"), "mask.system"),
    (OWN + "system = 'Mind.'\n", "correction.system"),
    (OWN.replace("[mask]", "[musk]"), "did you mean 'mask'"),
    (OWN.replace("[MASK_1] laptop", "{{maks}} laptop"), "{{maks}}"),
    (OWN.replace("stays: {{kept}}", "stays"), "{{kept}}"),
    (OWN.replace("Description: {{description}}", ""), "{{description}}"),
    (OWN.replace("Description: {{masked}}", ""), "{{masked}}"),
    (OWN.replace("Values:\n{{values}}", ""), "{{values}}"),
    (OWN.replace("Alternatives: {{alt", "{{alt").replace(
        "{{alternatives}}, each with {{count}} values", ""
    ), "{{alternatives}}"),
    (OWN.replace("be used. {{reason}}", "be used."), "{{reason}}"),
    (OWN + "[", "not TOML"),
    (OWN + "[more]\nuser = ''\n", "'more'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        prompts.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_placeholders_of_taste_may_be_left_out(tmp_path):
    text = OWN.replace("{{known}}", "nothing").replace("{{words}}", "30")
    text = text.replace("{{masks}}", "3").replace(", each with {{count}}", "")
    prompts.load(write(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        prompts.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        prompts.load(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not TOML"):
        prompts.load(path)


def test_the_file_belongs_to_the_package():
    import tomllib

    root = pathlib.Path(__file__).parents[1]
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    data = settings["tool"]["setuptools"]["package-data"]
    room = root / "neggen_jax/generation"
    files = [p for at in data["neggen_jax.generation"] for p in room.glob(at)]
    known = {"prompts.toml", "words.toml", "page.css"}
    assert {path.name for path in files} == known


def test_examples_are_json():
    for step in ("mask", "complete"):
        text = getattr(prompts.load(), step).user
        (example,) = re.findall(r"^Reply: (.*)$", text, re.M)
        json.loads(example)
