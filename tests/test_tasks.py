"""The work list: what is asked of whom, and what is refused."""

import collections
import dataclasses
import os

import pytest
from contents import make_records
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.errors import InputError
from neggen_jax.generation import tasks
from neggen_jax.generation.values import mining, seen
from neggen_jax.generation.writers.attributes import Attributes

SHOWN = ("colour", "shade", "pattern")
SHADES = {"Navy": "Dark", "Black": "Dark", "White": "Light", "Pink": "Light"}
GROUPS = {"Skirt": "Lower", "Jeans": "Lower", "Coat": "Upper", "Vest": "Upper"}


def make_shop(number=96):
    """Clothes: shade follows colour, and group follows product_type."""
    colours, kinds = list(SHADES), list(GROUPS)
    attributes = []
    for i in range(number):
        colour, kind = colours[i % 4], kinds[i // 4 % 4]
        attributes.append(
            {
                "product_type": kind,
                "product_group": GROUPS[kind],
                "colour": colour,
                "shade": SHADES[colour],
                "pattern": ("Plain", "Striped", "Dotted")[i // 7 % 3],
                "season": ("Summer", "Winter")[i // 5 % 2],
            }
        )
    texts = [f"A thing for {a['season'].lower()} days." for a in attributes]
    images = [f"{i}.png" for i in range(number)]
    records = make_records(texts, images, "/pictures", attributes)
    titles = [f"{a['product_type']} {i}" for i, a in enumerate(attributes)]
    return dataclasses.replace(records, titles=titles)


SHOP = make_shop()


def test_each_item_has_a_task_of_each_modality_in_order():
    plan = tasks.plan(SHOP, image_attributes=SHOWN)
    made = list(tasks.make(SHOP, plan))
    assert [(t.item, t.modality) for t in made] == [
        (i, m) for i in range(len(SHOP)) for m in ("text", "image")
    ]
    assert [t.id for t in made[::2]] == SHOP.ids


def test_some_items_have_the_same_tasks_as_all():
    plan = tasks.plan(SHOP, image_attributes=SHOWN)
    made = list(tasks.make(SHOP, plan))
    assert list(tasks.make(SHOP, plan, tasks.places(plan, [3, 7]))) == [
        *made[6:8],
        *made[14:16],
    ]


def test_pictures_show_what_they_are_said_to_and_texts_the_rest():
    plan = tasks.plan(SHOP, image_attributes=SHOWN)
    text, image = tasks.make(SHOP, plan, tasks.places(plan, [0]))
    assert set(image.attributes) == set(SHOWN)
    assert set(text.attributes) == {"season"}
    assert image.image == os.path.join("/pictures", "0.png")
    assert text.image == ""
    assert text.text == (
        "Skirt 0. A thing for summer days. product type: Skirt; "
        "product group: Lower; season: Summer"
    )
    for name in SHOWN:
        assert SHOP.attributes[0][name] in image.text
        assert SHOP.attributes[0][name] not in text.text


def test_an_attribute_may_be_seen_in_both():
    plan = tasks.plan(
        SHOP,
        image_attributes=SHOWN,
        text_attributes=["product_type", "season", "colour"],
    )
    text, image = tasks.make(SHOP, plan, tasks.places(plan, [0]))
    assert text.attributes["colour"] == image.attributes["colour"] == "Navy"
    assert "product_group" not in text.text


def test_the_kind_stays_and_so_does_what_follows_from_it():
    plan = tasks.plan(SHOP, image_attributes=SHOWN)
    assert plan.kept == ("product_type",)
    assert plan.again == ("product_group",)
    text, image = tasks.make(SHOP, plan, tasks.places(plan, [5]))
    assert text.kept == {"product_type": "Jeans", "product_group": "Lower"}
    assert image.kept == {"product_type": "Jeans"}


def test_only_what_may_be_changed_is_an_attribute():
    plan = tasks.plan(SHOP, image_attributes=SHOWN, changeable=["pattern"])
    text, image = tasks.make(SHOP, plan, tasks.places(plan, [0]))
    assert text.attributes == {}
    assert image.attributes == {"pattern": "Plain"}
    assert image.kept["colour"] == "Navy"


def test_what_is_asked_for_may_be_changed_though_the_kind_tells_it():
    plan = tasks.plan(SHOP, changeable=["product_group"], modalities=["text"])
    (task,) = tasks.make(SHOP, plan, tasks.places(plan, [0]))
    assert task.attributes == {"product_group": "Lower"}


def test_values_that_say_nothing_are_no_attributes():
    attributes = [{"colour": "Unknown", "size": "L"}, {"colour": " "}]
    records = make_records(["a", "b"], attributes=attributes)
    plan = tasks.plan(records)
    assert [t.attributes for t in tasks.make(records, plan)] == [
        {"size": "L"},
        {},
    ]


def test_what_is_missing_is_a_task_that_says_so():
    records = make_records(["words", ""], ["", "1.png"])
    plan = tasks.plan(records)
    assert [t.missing for t in tasks.make(records, plan)] == [
        "",
        "the item has no picture",
        "the item has no text",
        "",
    ]


def test_without_pictures_there_is_only_text():
    plan = tasks.plan(make_records(["one", "two"]))
    assert plan.modalities == ("text",)


def test_settings_tell_everything():
    plan = tasks.plan(SHOP, image_attributes=SHOWN, kept=["season"])
    settings = plan.settings()
    assert settings["modalities"] == ["text", "image"]
    assert settings["kept"] == ["season"]
    assert settings["shown"]["image"] == list(SHOWN)
    assert settings["changeable"]["image"] == list(SHOWN)
    assert settings != tasks.plan(SHOP, image_attributes=SHOWN).settings()


@pytest.mark.parametrize(
    ("options", "where", "hint"),
    [
        ({"image_attributes": ["color"]}, "--image_attributes", "'colour'"),
        ({"kept": ["product_typ"]}, "--kept", "'product_type'"),
        ({"changeable": ["paterns"]}, "--changeable", "'pattern'"),
        ({"text_attributes": ["seasons"]}, "--text_attributes", "'season'"),
        ({"told": ["seasons"]}, "--told", "'season'"),
        ({"modalities": ["picture"]}, "--modalities", "image"),
        ({"modalities": []}, "--modalities", "text,image"),
    ],
)
def test_unknown_words_are_refused(options, where, hint):
    with pytest.raises(InputError) as caught:
        tasks.plan(SHOP, **options)
    assert where in str(caught.value)
    assert hint in str(caught.value)


def test_a_modality_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="No item has the modality 'image'"):
        tasks.plan(make_records(["one"]), modalities=["image"])


# -- what goes with what -----------------------------------------------------


def test_what_is_a_function_of_the_other_is_found():
    relations = seen.Dependencies(SHOP.attributes)
    assert relations.share("product_type", "product_group") == 1.0
    assert relations.share("colour", "shade") == 1.0
    assert not relations.determines("shade", "colour")
    assert relations.share("season", "colour") < 0.2
    groups = seen.together(("pattern", "colour", "season", "shade"), relations)
    assert groups == (("pattern",), ("colour", "shade"), ("season",))


def guessed(items, known, other):
    """Share of items whose `other` the rest of the items gives away."""
    right = 0
    for i, item in enumerate(items):
        rest = collections.Counter(
            x[other]
            for j, x in enumerate(items)
            if j != i and (known is None or x[known] == item[known])
        )
        first = rest.most_common(2)
        tie = len(first) > 1 and first[0][1] == first[1][1]
        right += bool(first) and not tie and first[0][0] == item[other]
    return right / len(items)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
        min_size=20,
        max_size=40,
    )
)
def test_dependency_is_lambda_with_one_left_out(pairs):
    items = [{"known": one, "other": two} for one, two in pairs]
    blind = guessed(items, None, "other")
    expected = 0.0
    if blind < 1:
        expected = 1 - (1 - guessed(items, "known", "other")) / (1 - blind)
    share = seen.Dependencies(items).share("known", "other")
    # Both are quotients of counts below 40.
    assert share == pytest.approx(expected, abs=1e-9)


def test_values_that_occur_once_tell_nothing():
    attributes = [{"sku": str(i), "colour": "ab"[i % 2]} for i in range(60)]
    assert seen.Dependencies(attributes).share("sku", "colour") <= 0


def test_few_items_tell_nothing():
    attributes = [{"a": "xy"[i % 2], "b": "uv"[i % 2]} for i in range(10)]
    assert seen.Dependencies(attributes).share("a", "b") == 0


@pytest.mark.parametrize(
    "value", ["Unknown", "undefined", "n/a", "Other", "Other pattern", "", "-"]
)
def test_a_vague_value_tells_nothing(value):
    assert seen.vague(value)


@pytest.mark.parametrize("value", ["Another Brand", "Black", "0", "Otherworld"])
def test_other_values_tell_something(value):
    assert not seen.vague(value)


# -- attributes that nobody has written down ---------------------------------


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Acme Removable Labels, 1-Inch, White, Pack of 600 (05410)", "label"),
        ("Tx 30-X Scientific Calculator with Cover", "calculator"),
        ("Blue Fountain Pen - Extra Fine", "pen"),
        ("Acme 12 Stapler&quot;", "stapler"),
        ("Labels for Laser Printers", "label"),
        ("Pack of 12", ""),
        ("", ""),
    ],
)
def test_a_title_names_its_kind(title, kind):
    titles = [title, "x Label", "x Calculator", "x Pen", "x Stapler"] * 4
    records = dataclasses.replace(
        make_records([""] * len(titles)), titles=titles
    )
    found = mining.with_kinds(records)
    assert found.attributes[0].get("kind", "") == kind


def test_a_kind_that_is_known_is_not_looked_for():
    assert mining.with_kinds(SHOP) is SHOP


def test_a_brand_is_no_kind():
    titles = ["Ink for Canon", "Toner by Canon", "Canon", "Canon"] * 4
    attributes = [{"brand": "Canon"}] * len(titles)
    records = make_records([""] * len(titles), attributes=attributes)
    records = dataclasses.replace(records, titles=titles)
    kinds = {a.get("kind") for a in mining.with_kinds(records).attributes}
    assert kinds == {"ink", "toner", None}


def found_in(records):
    return mining.with_told(records, mining.read_words()[0]).attributes


def test_texts_tell_attributes():
    records = make_records(
        [
            "Dress in imitation leather with Long Sleeves",
            "Lace-up boots",
            "It prints black text.",
            "Pens, pack of 12",
            "A tablet with a Satin dress",
        ],
        attributes=[
            {"size": "L"},
            {"size": "M"},
            {"maker": "Black & Co"},
            {"size": "S"},
            {"cloth": "velvet"},
        ],
    )
    titles = ["", "", "Printer by Black & Co, in silver", "", ""]
    records = dataclasses.replace(records, titles=titles)
    found = found_in(records)
    assert found[0] == {
        "size": "L",
        "leather": "imitation leather",
        "sleeves": "long sleeves",
    }
    assert found[1] == {"size": "M"}
    assert found[2] == {"maker": "Black & Co", "colour": "silver"}
    assert found[3] == {"size": "S", "pack size": "pack of 12"}
    # Items have a cloth of their own.
    assert found[4] == {"cloth": "velvet"}


def test_what_is_far_down_a_description_is_of_something_else():
    far = make_records(["A printer. " + "It prints. " * 60 + "Glossy paper."])
    assert found_in(far) == [{}]


def test_a_file_of_words_of_ones_own(tmp_path):
    path = tmp_path / "words.toml"
    path.write_text('[mood]\nvalues = ["happy", "sad"]\n')
    records = make_records(["A happy vase", "A sad vase"])
    items, mined, digest = mining.enriched(records, str(path))
    assert [a["mood"] for a in items.attributes] == ["happy", "sad"]
    assert mined == ("mood",)
    assert digest == mining.read_words(path)[1] != mining.read_words()[1]
    plan = tasks.plan(items, mined=mined)
    assert plan.told == ()
    record = Attributes(items, plan).record(next(tasks.make(items, plan)))
    assert record.negatives[0].text == "A sad vase"


def test_no_words_are_looked_for_if_nobody_wants_it():
    items, mined, digest = mining.enriched(make_records(["in silk"]), "none")
    assert (items.attributes, mined, digest) == ([{}], (), "")


@pytest.mark.parametrize(
    "text", ["[colour]\nvalue = ['red']", "colour = 3", "[colour", "[a]\n"]
)
def test_a_bad_file_of_words_is_refused(tmp_path, text):
    path = tmp_path / "words.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="file of words cannot be read"):
        mining.read_words(path)
    with pytest.raises(InputError, match="file of words cannot be read"):
        mining.read_words(tmp_path / "other.toml")
