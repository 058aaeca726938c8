"""The page about a set: its figures, what is on it, and what is not."""

import collections
import dataclasses
import re
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from conftest import ITEMS, make_catalog
from contents import paint
from inspected import COLOURS, FAILED, HOSTILE, make_records, write_set
from pages import Reader

from neggen_jax.catalog import ItemRecords
from neggen_jax.data import store
from neggen_jax.data.counterfactuals import locate
from neggen_jax.errors import InputError
from neggen_jax.generation.inspection import inspect as inspecting
from neggen_jax.generation.inspection import summary as figures_of
from neggen_jax.generation.inspection.inspect import inspect, read
from neggen_jax.generation.inspection.page import drawn as headline
from neggen_jax.generation.inspection.summary import summary
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.generation.sets.encode import encode


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A dataset with pictures, of which two cannot be shown."""
    path = tmp_path_factory.mktemp("inspect") / "data"
    items = ItemRecords(
        ids=[f"A<u>{i}" for i in range(ITEMS)],
        titles=[HOSTILE.get(i, f"thing {i}") for i in range(ITEMS)],
        texts=["of wool"] * ITEMS,
        attributes=[{"colour": COLOURS[i % 4]} for i in range(ITEMS)],
        images=[f"{i}.jpg" if i % 4 else "" for i in range(ITEMS)],
        image_root=str(path.parent / "pictures"),
    )
    (path.parent / "pictures").mkdir()
    for item, name in enumerate(items.images):
        if name and item not in (9, 11):
            paint(path.parent / "pictures" / name, "red", True, item)
    (path.parent / "pictures/11.jpg").write_bytes(b"no picture")
    catalog = dataclasses.replace(make_catalog(), records=items)
    store.save(catalog, path, source={})
    write_set(path, make_records())
    return path


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "data")


def page_of(directory, **options):
    path, figures = inspect(directory, **options)
    return Reader(path.read_text("utf-8")), figures


@pytest.fixture(scope="module")
def whole(saved, tmp_path_factory):
    """The page of all items: its text as it is, and as it is seen."""
    target = tmp_path_factory.mktemp("page") / "whole.html"
    inspect(saved, items=ITEMS, output=target)
    text = target.read_text("utf-8")
    return text, Reader(text)


def test_the_terminal_is_told_the_same(directory):
    path = locate(directory, "rule")
    encode(directory, "rule", progress=False)
    made = store.load(directory, counterfactuals="rule").counterfactuals
    figures = summary((r for *_, r in read(path)), made)
    lines = figures_of.lines(figures)
    assert lines[0].split() == ["text", "image"]
    assert lines[1].split() == ["records", "41", "41"]
    assert lines[2].split() == ["accepted", "36", "(87.8%)", "41", "(100.0%)"]
    assert "text failed" in "\n".join(lines)
    ratio = figures["balance"]["ratio"]
    assert lines[-1].startswith(f"{ratio:.2f} balance of the modalities")


# The page -------------------------------------------------------------------

# What a page is made of, and with which attributes.
TAGS = {
    "html": {"lang"},
    "meta": {"charset", "http-equiv", "content", "name"},
    "img": {"alt", "src", "loading"},
    "p": {"class", "dir"},
    "h3": {"dir"},
    "td": {"dir"},
    "th": {"scope"},
    "details": {"class", "open"},
    **{
        key: {"class"}
        for key in ("div", "article", "table", "ul", "section", "span")
    },
}
PLAIN = re.compile(
    "head|title|style|body|h1|h2|h4|b|thead|tbody|tr|dl|dt|dd|header|figure"
    "|bdi|mark|small|ins|del|li|summary"
)


def test_what_others_wrote_is_text_and_nothing_else(whole):
    _, page = whole
    assert all(tag in TAGS or PLAIN.fullmatch(tag) for tag in page.tags)
    for tag, name in page.attributes:
        assert name in TAGS.get(tag, ()), f"<{tag} {name}=...>"
    assert page.tags["h1"] == 1
    assert all(
        u.startswith("data:image/") for u in page.attributes["img", "src"]
    )
    policy = page.attributes["meta", "content"][0]
    assert "default-src 'none'" in policy
    assert not re.search(r"url\(|@import|expression", page.styles)
    for item, title in HOSTILE.items():
        if item != 4:
            assert " ".join(title.split()) in page.text
    # What would turn the rest of the page around, or is no text.
    assert "right\ufffdto left, \ufffd[31mred\ufffd" in page.text
    for label in ("<i>stuff</i>", "A<u>5", "<u>kind</u>", "length; <b>"):
        assert label in page.text


def test_the_page_needs_nothing_else(whole):
    text, _ = whole
    for word in ("http:", "https:", "//cdn", "<script", "<link", "url("):
        assert word not in text.replace("http://evil", "")


def test_all_failures_are_listed(whole):
    _, page = whole
    assert "5 failed records" in page.text
    _, _, failures = page.text.partition("5 failed records")
    assert failures
    for item in FAILED:
        assert f"item {item}, A<u>{item}" in failures
    assert "length; <b>&lt;b&gt; & <b>bold</b></b>" in failures
    # Each kind once, with its count.
    assert "length 3 " in failures
    assert "no words 2 " in failures


def test_many_failures_are_listed_by_kind(directory, monkeypatch):
    monkeypatch.setattr(inspecting, "LISTED", 4)
    kinds = ["often", "often", "as often", "rare"]
    made = [
        Record(
            i, f"A{i}", "text", error=f"{kinds[(i == 40) * 3 or i % 3]}; {i}"
        )
        for i in range(ITEMS)
    ]
    path = write_set(directory, made, "other")
    page, _ = page_of(directory, set_name="other")
    counts = collections.Counter(r.error.split(";")[0] for r in made)
    assert "41 failed records" in page.text
    assert "rare 1 item 40" in page.text
    assert f"often {counts['often']} item 0" in page.text
    assert f"and {counts['often'] - 4} more" in page.text
    assert f"and {counts['as often'] - 4} more" in page.text
    text = (path / "inspect.html").read_text("utf-8")
    assert text.count("<tr><td>item") == 4 + 4 + 1


def test_items_are_random_and_those_that_failed_are_among_them(directory):
    def shown(number, seed=0):
        path = locate(directory, "rule")
        return inspecting._collect(directory, path, number, seed)

    several = [[i.item for i in shown(8, seed).items] for seed in (0, 0, 1)]
    for numbers in several:
        assert len(set(numbers)) == 8
        assert set(numbers[6:]) <= set(FAILED)
        assert not set(numbers[:6]) & set(FAILED)
    assert several[0] == several[1] != several[2]
    assert (
        headline(shown(8)) == "8 random items, 2 of them from the 5 that failed"
    )
    assert len(shown(1000).items) == ITEMS
    assert shown(0).items == ()
    assert [item.failed for item in shown(1).items] == [True]
    # Where nearly all have failed, so have nearly all that are shown.
    made = [
        record
        if record.item < 2
        else Record(record.item, "A", record.modality, error="none")
        for record in make_records()
    ]
    path = write_set(directory, made, "bad")
    page = inspecting._collect(directory, path, 20, 0)
    assert sum(item.failed for item in page.items) >= 18


def test_changes_are_highlighted(whole):
    text, _ = whole
    assert (
        "thing 8: a <mark>red <small>colour</small></mark> text of wool" in text
    )
    assert "thing 8: a <del>red</del><ins>blue</ins> text of wool" in text
    assert "colour: <del>red</del> &rarr; <ins>blue</ins>" in text
    assert text.count("<article") == ITEMS


def test_pictures_are_small_or_say_why_there_is_none(whole):
    _, page = whole
    pictures = [
        url
        for url in page.attributes["img", "src"]
        if url.startswith("data:image/jpeg;base64,/9j/")
    ]
    without = sum(i % 4 == 0 for i in range(ITEMS))
    assert len(pictures) == ITEMS - without - 2
    assert max(map(len, pictures)) < 20_000
    assert page.text.count("no picture") == without
    assert page.text.count("The picture cannot be read: No such file") == 1
    assert page.text.count("cannot be read: UnidentifiedImageError") == 1


def test_without_any_picture_there_is_no_room_for_one(tmp_path):
    store.save(make_catalog(), tmp_path / "data", source={})
    write_set(tmp_path / "data", make_records())
    page, _ = page_of(tmp_path / "data")
    assert "no picture" not in page.text
    # Nor are there titles: the ids still tell items apart.
    assert page.text.count("without a title") == 20
    assert page.tags["figure"] == 0


def test_similarities_are_shown_once_there_are_vectors(directory):
    page, figures = page_of(directory)
    assert figures["modalities"]["text"]["similarity"] is None
    assert (
        "Without similarities: The counterfactuals have not been" in page.text
    )
    plots = page.attributes["img", "alt"]
    assert "words changed" in plots
    assert "similarity to the description" not in plots
    encode(directory, "rule", progress=False)
    page, figures = page_of(directory)
    known = figures["modalities"]["text"]["similarity"]
    low, high = known["quantiles"]["5"], known["quantiles"]["95"]
    assert f"{known['mean']:.2f} ({low:.2f} to {high:.2f})" in page.text
    assert f"{figures['balance']['ratio']:.2f} balance of" in page.text
    assert "Without" not in page.text
    assert "similarity to the description" in page.attributes["img", "alt"]


def test_the_same_set_gives_the_same_page(directory):
    path, _ = inspect(directory)
    assert path == locate(directory, "rule") / "inspect.html"
    first = path.read_bytes()
    inspect(directory)
    assert path.read_bytes() == first


# Sets that are being written ------------------------------------------------


def start(directory, name="begun"):
    path = locate(directory, name)
    path.mkdir(parents=True)
    (path / "shard-0-of-2.json").write_text('{"model": "Tiny"}')
    made = make_records()
    lines = [record.to_line() for record in made[:20]]
    (path / "records-0-of-2.jsonl").write_text("".join(lines[::-1]), "utf-8")
    (path / "records-1-of-2.jsonl").write_text(
        made[-1].to_line() + made[40].to_line()[:50], "utf-8"
    )
    return path, made


def test_a_set_that_is_being_written_can_be_inspected(directory):
    path, made = start(directory)
    page, figures = page_of(directory, set_name="begun")
    assert figures["records"] == 21  # the torn line is none
    assert "The set is not complete" in page.text
    assert "model Tiny" in page.text
    assert f"item {ITEMS - 1}, " in page.text
    # A task that failed at first counts as what became of it at last.
    assert figures["failed"] == 1
    mended = dataclasses.replace(made[7], item=3, modality="text", id="A<u>3")
    with (path / "records-0-of-2.jsonl").open("a") as file:
        file.write(mended.to_line())
    _, figures = page_of(directory, set_name="begun")
    assert (figures["records"], figures["failed"]) == (21, 0)


def empty(directory):
    start(directory)
    for file in locate(directory, "begun").glob("records*"):
        file.write_bytes(b"")


def other_items(directory):
    write_set(directory, make_records(), "begun", source="0" * 32)


def more_items(directory):
    made = [Record(ITEMS, "A", "text", error="none")]
    write_set(directory, made, "begun")


def no_record(directory):
    path, _ = start(directory)
    (path / "records-0-of-2.jsonl").write_text("{}\n")


def a_file_in_the_way(directory):
    (directory / "page").write_text("")
    write_set(directory, make_records(), "begun")
    return {"output": directory / "page/inspect.html"}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (empty, {}, "has no records yet"),
        (other_items, {}, "made of other items"),
        (more_items, {}, "does not have.*below 41.*41"),
        (no_record, {}, r"not a record.*records-0-of-2\.jsonl, line 1"),
        (a_file_in_the_way, {}, "cannot be written"),
        (start, {"items": -1}, "so many items.*-1"),
        (start, {"set_name": "began"}, "no set.*did you mean 'begun'"),
        (start, {"set_name": None}, "several sets.*begun, rule.*--set"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(
    directory, change, options, message
):
    given = change(directory)
    given = given if isinstance(given, dict) else {}
    options = {"set_name": "begun", **options, **given}
    with pytest.raises(InputError, match=f"(?s){message}"):
        inspect(directory, **options)


def test_memory_does_not_grow_with_the_set(saved, tmp_path):
    """Records are read one by one; a few numbers of each are kept."""
    path = tmp_path / "set"
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    one = Record(
        0,
        "A",
        "text",
        description="x " * 2_000,
        negatives=(Alternative("y " * 2_000, {"a": ("x", "y")}),),
    )
    with (path / "records.jsonl").open("w") as file:
        for item in range(4_000):
            file.write(dataclasses.replace(one, item=item).to_line())
    size = (path / "records.jsonl").stat().st_size
    assert size > 3e7
    tracemalloc.start()
    count = sum(1 for _ in read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < size / 20


# The command ----------------------------------------------------------------


def test_command(directory, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "launch/inspect_records.py",
            f"--data={directory}",
            "--items=3",
            f"--output={tmp_path / 'page.html'}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().count("<article") == 3
    *lines, last = done.stdout.splitlines()
    assert last == str(tmp_path / "page.html")
    assert lines[2].split() == ["accepted", "36", "(87.8%)", "41", "(100.0%)"]
