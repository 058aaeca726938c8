"""The writer without a model: what it changes, to what, and what stays."""

import asyncio
import collections
import dataclasses
import re

import pytest
from contents import make_records
from hypothesis import given
from hypothesis import strategies as st
from test_tasks import GROUPS, SHADES, SHOP, SHOWN

from neggen_jax.errors import InputError
from neggen_jax.generation import records, tasks
from neggen_jax.generation.values import contrast, seen
from neggen_jax.generation.writers import edits
from neggen_jax.generation.writers.attributes import Attributes, caption

PLAN = tasks.plan(SHOP, image_attributes=SHOWN)
TASKS = list(tasks.make(SHOP, PLAN))


def write(options=None, plan=PLAN, shop=SHOP, which=None):
    writer = Attributes(shop, plan, **(options or {}))
    if which is not None:
        which = tasks.places(plan, which)
    return [writer.record(task) for task in tasks.make(shop, plan, which)]


RECORDS = write({"alternatives": 3, "changes": 1})


def filled(record, values):
    """The masked text with values in the places of its masks."""
    names = list(record.attributes)
    return re.sub(
        r"\[MASK_(\d+)\]",
        lambda mask: values[names[int(mask[1]) - 1]],
        record.masked,
    )


def test_every_record_is_one_that_can_be_read_again():
    for record in RECORDS:
        assert records.parse(record.to_line(), "here") == record
        assert record.accepted
        assert (record.backend, record.attempts) == ("attributes", 0)


def test_masks_stand_where_the_changed_values_are():
    for record in RECORDS:
        old = dict(record.attributes)
        assert filled(record, old).lower() == record.description.lower()
        for made in record.negatives:
            new = {name: value for name, (_, value) in made.changes.items()}
            assert filled(record, old | new).lower() == made.text.lower()


def test_values_are_of_the_catalogue_and_differ():
    for record in RECORDS:
        own = SHOP.attributes[record.item]
        for made in record.negatives:
            for name, (old, new) in made.changes.items():
                assert own[name] == old
                assert not contrast.same_value(old, new)
                assert new in {a[name] for a in SHOP.attributes}


def test_alternatives_are_all_different():
    for record in RECORDS:
        texts = [made.text for made in record.negatives]
        assert len({record.description, *texts}) == len(texts) + 1
    # A picture shows 5 other colours and patterns; a text 1 other season.
    images = [len(r.negatives) for r in RECORDS if r.modality == "image"]
    assert set(images) == {3}
    assert {len(r.negatives) for r in RECORDS if r.modality == "text"} == {1}


def test_the_kind_stays():
    for record in RECORDS:
        for made in record.negatives:
            assert not {"product_type", "product_group"} & set(made.changes)


def test_what_belongs_together_changes_together():
    seen_changes = collections.Counter()
    for record in RECORDS:
        for made in record.negatives:
            seen_changes[tuple(sorted(made.changes))] += 1
            if "colour" in made.changes:
                colour = made.changes["colour"][1]
                # Where both shades would do, the contrast is in both.
                assert made.changes["shade"][1] == SHADES[colour]
    assert set(seen_changes) == {("colour", "shade"), ("pattern",), ("season",)}


def test_values_come_from_the_same_kind_if_it_has_others():
    values = {"Skirt": ["Red", "Blue"], "Hat": ["Straw", "Felt"]}
    attributes = [
        {"category": kind, "look": values[kind][i % 2]}
        for i in range(40)
        for kind in values
    ]
    attributes.append({"category": "Cape", "look": "Long"})
    shop = make_records(["x"] * len(attributes), attributes=attributes)
    made = write({"alternatives": 2}, tasks.plan(shop), shop)
    for record in made[:-1]:
        kind = shop.attributes[record.item]["category"]
        news = [m.changes["look"][1] for m in record.negatives]
        own = shop.attributes[record.item]["look"]
        assert news == [v for v in values[kind] if v != own]
    # Nothing else is known of capes: any value will do.
    assert made[-1].negatives[0].changes["look"][1] in {
        *values["Skirt"],
        *values["Hat"],
    }


def test_what_stays_of_a_group_stays_true_if_it_can():
    plan = tasks.plan(SHOP, image_attributes=SHOWN, changeable=["colour"])
    plan = dataclasses.replace(plan, modalities=("image",))
    for record in write({}, plan):
        (old, new) = record.negatives[0].changes["colour"]
        assert SHADES[old] == SHADES[new]
    # Where no other colour has that shade, one of the same kind will do.
    attributes = [
        {"category": kind, "colour": colour, "shade": shade}
        for kind, pairs in {
            "Hat": {"Black": "Dark", "Red": "Bright"},
            "Cap": {"Black": "Dark", "Sand": "Pale"},
        }.items()
        for colour, shade in pairs.items()
    ] * 9
    shop = make_records(["x"] * len(attributes), attributes=attributes)
    for record in write({}, tasks.plan(shop, changeable=["colour"]), shop):
        own = shop.attributes[record.item]
        others = {"Black", "Red" if own["category"] == "Hat" else "Sand"}
        (old, new) = record.negatives[0].changes["colour"]
        assert {old, new} == others


def test_a_value_that_only_says_more_contrasts_less():
    colours = ["blue", "dark blue", "navy blue", "light blue", "red"]
    attributes = [{"colour": c} for c in colours] * 5
    shop = make_records(["x"] * len(attributes), attributes=attributes)
    for seed in range(8):
        record = write({"seed": seed}, tasks.plan(shop), shop, [0])[0]
        assert record.negatives[0].changes["colour"] == ("blue", "red")
        # There is nothing else.
        few = make_records(["x", "x"], attributes=attributes[:2])
        record = write({"seed": seed}, tasks.plan(few), few, [0])[0]
        assert record.negatives[0].changes["colour"] == ("blue", "dark blue")


def test_no_more_groups_change_than_allowed():
    for changes in (1, 2):
        for record in write({"changes": changes}, which=range(20)):
            names = set(record.negatives[0].changes)
            groups = names - {"shade"}
            wanted = 1 if record.modality == "text" else changes
            assert len(groups) == wanted


def test_words_in_the_text_change_with_the_value():
    attributes = [{"colour": c, "category": "Mug"} for c in ("red", "teal")]
    texts = [
        "Red mug, so RED and red; reddish, red-hot, infra-red.",
        "A teal mug",
    ]
    shop = make_records(texts, attributes=attributes)
    made = write({}, tasks.plan(shop), shop)[0].negatives[0]
    assert made.text == (
        "Teal mug, so TEAL and teal; reddish, red-hot, infra-red. "
        "colour: teal; category: Mug"
    )


def test_a_value_that_is_not_told_is_appended_in_both():
    attributes = [{"colour": c} for c in ("red", "teal")]
    shop = make_records(["A mug", "Another"], attributes=attributes)
    plan = tasks.plan(shop, told=[])
    record = write({}, plan, shop)[0]
    assert record.description == "A mug. colour: red"
    assert record.masked == "A mug. colour: [MASK_1]"
    assert record.negatives[0].text == "A mug. colour: teal"


def test_words_that_may_be_of_the_kind_are_left_alone():
    attributes = [
        {"category": "Trousers", "department": "Trousers"},
        {"category": "Trousers", "department": "Denim"},
    ]
    shop = make_records(["Trousers to wear", "x"], attributes=attributes)
    record = write({}, tasks.plan(shop), shop)[0]
    assert record.negatives[0].text == (
        "Trousers to wear. category: Trousers; department: Denim"
    )


def test_a_text_is_not_told_what_it_says_already():
    attributes = [{"colour": c} for c in ("red", *["teal"] * 50, "blue")]
    texts = ["A red and teal mug", *["A mug"] * 51]
    shop = make_records(texts, attributes=attributes)
    for seed in range(8):
        record = write({"seed": seed}, tasks.plan(shop), shop, [0])[0]
        assert record.negatives[0].changes == {"colour": ("red", "blue")}


def test_a_caption_says_the_kind_and_all_that_is_seen():
    task = next(t for t in TASKS if t.modality == "image")
    told = caption(task, PLAN.kept, {"pattern": "Plain"})
    assert told.factual() == (
        "Skirt. The colour is navy, the shade is dark and the pattern is plain."
    )
    assert told.masked(["pattern"]).endswith("the pattern is [MASK_1].")
    assert told.changed({"pattern": "Dotted"}).endswith("is dotted.")


def test_a_caption_leaves_out_what_nobody_knows():
    task = dataclasses.replace(
        TASKS[1],
        kept={"product_type": "Unknown"},
        attributes={"pattern": "Plain"},
    )
    told = caption(task, PLAN.kept, {}).factual()
    assert told == "Product. The pattern is plain."


# -- what it depends on ------------------------------------------------------


def test_it_depends_on_the_item_alone():
    again = {r.key: r for r in write({"alternatives": 3, "changes": 1})}
    writer = Attributes(SHOP, PLAN, alternatives=3, changes=1)
    for task in reversed(TASKS[40:80]):
        record = asyncio.run(writer.write(task))
        assert record == again[record.key]


def test_the_first_alternative_is_the_same_however_many_there_are():
    one = write({"alternatives": 1, "changes": 1})
    assert [r.negatives[0].changes for r in one] == [
        r.negatives[0].changes for r in RECORDS
    ]


def test_another_seed_draws_others():
    assert write({"seed": 1}) != write({"seed": 0})


def test_the_drawn_values_are_not_to_change():
    # What was written once can be gone on with by a later version.
    record = write({"changes": 1}, which=[5])[1]
    assert record.negatives[0].changes == {
        "colour": ("Black", "White"),
        "shade": ("Dark", "Light"),
    }


def test_usual_values_come_more_often_and_rare_ones_come():
    looks = ["Plain"] + ["Dotted"] * 324 + ["Striped"] * 4
    attributes = [{"look": look} for look in looks]
    shop = make_records(["x"] * len(looks), attributes=attributes)
    plan = tasks.plan(shop)
    task = next(tasks.make(shop, plan, tasks.places(plan, [0])))
    drawn = collections.Counter(
        Attributes(shop, plan, seed=seed)
        .record(task)
        .negatives[0]
        .changes["look"][1]
        for seed in range(200)
    )
    # Roots of 324 and 4: nine to one; a fair binomial of 200 at .1 stays
    # within five standard deviations (4.2 each) of 20.
    assert 1 <= drawn["Striped"] <= 41


# -- the ablation, and probes ------------------------------------------------


def test_random_changes_as_many_of_any_attributes():
    real = write({"changes": 2})
    made = write({"changes": 2, "contrast": "random"})
    names, contradictions = collections.Counter(), 0
    for record, model in zip(made, real, strict=True):
        changes = record.negatives[0].changes
        assert len(changes) == len(model.negatives[0].changes)
        names.update(changes.keys())
        now = {n: new for n, (_, new) in changes.items()}
        both = SHOP.attributes[record.item] | now
        contradictions += SHADES[both["colour"]] != both["shade"]
        contradictions += GROUPS[both["product_type"]] != both["product_group"]
        for name, (old, new) in changes.items():
            assert not contrast.same_value(old, new)
            assert new in {a[name] for a in SHOP.attributes}
    assert names["product_type"] > 20  # Kept ones too.
    assert contradictions > 40


def test_a_probe_changes_one_attribute_alone():
    plan = tasks.plan(SHOP, image_attributes=SHOWN)
    writer = Attributes(SHOP, plan, probe=True)
    assert writer.settings()["probes"] == {
        "text": ["season"],
        "image": list(SHOWN),
    }
    for task in TASKS[:40]:
        record = writer.record(task)
        changed = [list(made.changes) for made in record.negatives]
        assert changed == [[n] for n in plan.changeable[task.modality]]
        old = {n: edits.lowered(v) for n, v in record.attributes.items()}
        for made in record.negatives:
            ((name, (_, new)),) = made.changes.items()
            if record.modality == "image":
                want = filled(record, old | {name: edits.lowered(new)})
                assert made.text == want


def test_a_probe_that_an_item_does_not_have_is_left_out():
    attributes = [{"a": "x", "b": "u"}, {"b": "v"}, {"a": "y", "b": "u"}]
    shop = make_records(["t"] * 3, attributes=attributes)
    made = write({"probe": True}, tasks.plan(shop), shop)
    names = [[next(iter(n.changes)) for n in r.negatives] for r in made]
    assert names == [["a", "b"], ["b"], ["a", "b"]]


# -- what cannot be done -----------------------------------------------------


def test_what_cannot_be_changed_is_said():
    attributes = [
        {"brand": "One", "category": "Mug"},
        {"brand": "One", "category": "Mug"},
        {"brand": "Unknown", "category": "Mug"},
    ]
    shop = make_records(["a", "b", "c"], attributes=attributes)
    made = write({}, tasks.plan(shop), shop)
    assert [r.error for r in made] == [
        "no other value in the catalogue",
        "no other value in the catalogue",
        "no attribute that may be changed",
    ]
    assert [r.description for r in made] == [
        t.text for t in tasks.make(shop, tasks.plan(shop))
    ]
    for record in made:
        assert records.parse(record.to_line(), "here") == record


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"contrast": "randomly"}, "did you mean 'random'"),
        ({"alternatives": 0}, "--alternatives"),
        ({"changes": 0}, "--changes"),
    ],
)
def test_bad_options_are_refused(options, hint):
    with pytest.raises(InputError) as caught:
        Attributes(SHOP, PLAN, **options)
    assert hint in str(caught.value)


def test_items_without_attributes_are_refused():
    shop = make_records(["a", "b"])
    with pytest.raises(InputError) as caught:
        Attributes(shop, tasks.plan(shop))
    assert "--backend=openai" in str(caught.value)


def test_a_modality_of_which_all_is_kept_is_refused():
    plan = tasks.plan(SHOP, image_attributes=["product_type"])
    with pytest.raises(InputError) as caught:
        Attributes(SHOP, plan)
    assert "--image_attributes=a,b" in str(caught.value)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "category": st.sampled_from(["Mug", "Cup", "Pot"]),
                "colour": st.sampled_from(["red", "Red", "blue", "Unknown"]),
            },
            optional={"size": st.sampled_from(["S", "M", "L"])},
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
)
def test_whatever_the_items_records_are_sound(items, alternatives, most, rand):
    shop = make_records(["A red mug of size M"] * len(items), attributes=items)
    options = {"alternatives": alternatives, "changes": most}
    options["contrast"] = "random" if rand else "contrasting"
    for record in write(options, tasks.plan(shop), shop):
        assert records.parse(record.to_line(), "here") == record
        assert len(record.negatives) <= alternatives
        for made in record.negatives:
            assert len(made.changes) <= most
            for old, new in made.changes.values():
                assert not contrast.same_value(old, new)
                assert not seen.vague(new)
