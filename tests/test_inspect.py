"""The page about a set: its figures, what is on it, and what is not."""

import collections
import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import ITEMS, make_catalog
from contents import paint

from neggen_jax.catalog import Counterfactuals, ItemRecords, Rewritten
from neggen_jax.data import store
from neggen_jax.data.counterfactuals import locate
from neggen_jax.errors import InputError
from neggen_jax.generation.inspection import inspect as inspecting
from neggen_jax.generation.inspection import summary as figures_of
from neggen_jax.generation.inspection.inspect import inspect, read
from neggen_jax.generation.inspection.page import drawn as headline
from neggen_jax.generation.inspection.summary import percent, summary
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.generation.sets.encode import encode

COLOURS = ["red", "blue", "green", "black"]
HOSTILE = {
    0: '<script>alert("0")</script>',
    1: "\"><img src=x onerror='alert(1)'>",
    2: "</article></body><h1>fake</h1>",
    3: "&lt;b&gt; & <b>bold</b>",
    4: "right\u202eto left, \x1b[31mred\x00",
    5: "[link](javascript:alert(5)) **bold** `code` ![x](http://evil/x.png)",
    6: "# Heading\n\n- list | cell\n\n---",
    7: "$\\frac{1}{0}$",
}
FAILED = (3, 10, 17, 24, 31)


def make_records(items=ITEMS) -> list[Record]:
    made = []
    for item in range(items):
        for modality in ("text", "image"):
            old, new = COLOURS[item % 4], COLOURS[(item + 1) % 4]
            title = HOSTILE.get(item, f"thing {item}")
            about = {"item": item, "id": f"A<u>{item}", "modality": modality}
            words = f"{title}: a {old} {modality} of wool"
            if item in FAILED and modality == "text":
                reason = f"length; <b>{title}</b>" if item % 2 else "no words"
                made.append(
                    Record(
                        **about,
                        description=words if item > 10 else "",
                        attempts=3,
                        error=reason,
                    )
                )
                continue
            changes = {"colour": (old, new)}
            if item % 3 == 0:
                changes["<i>stuff</i>"] = ("wool", title)
            text = words.replace(f"a {old}", f"a {new}")
            made.append(
                Record(
                    **about,
                    description=words,
                    attributes={"colour": old},
                    masked=words.replace(f"a {old}", "a [MASK_1]"),
                    negatives=(Alternative(text, changes),),
                    attempts=1 + item % 2,
                )
            )
    return made


def write_set(directory, made, name="rule", **manifest):
    path = locate(directory, name)
    path.mkdir(parents=True)
    lines = "".join(record.to_line() for record in made)
    (path / "records.jsonl").write_text(lines, "utf-8")
    manifest = {"backend": "rule", "kept": ["<u>kind</u>"], **manifest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


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


class Reader(html.parser.HTMLParser):
    """What a browser would see of a page."""

    void = ("meta", "img", "hr")
    inline = ("bdi", "mark", "ins", "del", "small", "b", "strong", "s")

    def __init__(self, text):
        super().__init__()
        self.tags = collections.Counter()
        self.attributes = collections.defaultdict(list)
        self.told, self.open, self.styles = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag not in self.inline:
            self.told.append(" ")
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attributes:
            self.attributes[tag, name].append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.told.append(data)

    @property
    def text(self):
        return " ".join("".join(self.told).split())


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


# Figures --------------------------------------------------------------------


def test_counts_equal_plain_ones():
    made = make_records()
    figures = summary(iter(made))
    assert figures["records"] == len(made) == 2 * ITEMS
    assert figures["failed"] == len(FAILED)
    assert figures["accepted"] == len(made) - len(FAILED)
    assert figures["rate"] == pytest.approx(1 - len(FAILED) / len(made))
    assert figures["attempts"] == sum(r.attempts for r in made)
    assert figures["items"] == {"1": len(FAILED), "2": ITEMS - len(FAILED)}
    assert figures["balance"] is None
    text = figures["modalities"]["text"]
    assert (text["records"], text["failed"]) == (ITEMS, len(FAILED))
    odd = sum(item % 2 for item in FAILED)
    assert text["reasons"] == {"length": odd, "no words": len(FAILED) - odd}
    accepted = [r for r in made if r.modality == "text" and r.accepted]
    both = sum(r.item % 3 == 0 for r in accepted)
    assert text["attributes_changed"] == {
        "1": len(accepted) - both,
        "2": both,
    }
    assert text["changed"] == {"colour": len(accepted), "<i>stuff</i>": both}
    assert text["described"] == ITEMS - 2
    assert text["different_descriptions"] == ITEMS - 2
    assert text["different"] == text["counterfactuals"] == len(accepted)
    image = figures["modalities"]["image"]
    assert image["rate"] == 1
    assert image["reasons"] == {}
    assert json.loads(json.dumps(figures)) == figures


def test_words_changed_equal_plain_ones():
    made = [r for r in make_records() if r.modality == "image"]
    known = summary(made)["modalities"]["image"]["words_changed"]
    shares = []
    for record in made:
        before = re.findall(r"\w+", record.description)
        # One word of each is replaced by another.
        shares.append(1 - 2 * (len(before) - 1) / (2 * len(before)))
    assert known["number"] == len(shares)
    assert known["mean"] == pytest.approx(np.mean(shares))
    for q, value in known["quantiles"].items():
        assert value == pytest.approx(np.percentile(shares, float(q)))
    counts, _ = np.histogram(shares, figures_of.BINS, (0, 1))
    assert known["histogram"] == counts.tolist()


def test_repeated_texts_are_counted():
    changes = {"colour": ("red", "blue")}
    made = [
        Record(
            item,
            "A",
            "text",
            description="a red dress" if item < 2 else f"dress {item}",
            negatives=tuple(Alternative(text, changes) for text in texts),
        )
        for item, texts in enumerate(
            [
                ("a blue dress", "a  Blue dress"),  # the same, but for letters
                ("a blue dress", "A RED dress"),  # of another, of its own
                ("x",),
            ]
        )
    ]
    known = summary(made)["modalities"]["text"]
    assert known["counterfactuals"] == 5
    assert known["different"] == 3
    assert known["repeated"] == 1
    assert known["unchanged"] == 1
    assert known["different_descriptions"] == 2


def make_vectors(seed, items=30, alternatives=2, width=5, spread=0.1):
    rng = np.random.default_rng(seed)
    described = rng.random(items) < 0.9
    present = (rng.random((items, alternatives)) < 0.7) & described[:, None]
    factual = rng.normal(size=(items, width)) * described[:, None]
    made = factual[:, None] + spread * rng.normal(
        size=(items, alternatives, width)
    )
    made *= present[..., None]

    def unit(x):
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return (x / np.where(length > 0, length, 1)).astype(np.float32)

    return Rewritten(unit(factual), described, unit(made), present)


def test_similarities_equal_plain_ones(monkeypatch):
    monkeypatch.setattr(figures_of, "_BLOCK", 7)
    rows = {"text": make_vectors(1), "image": make_vectors(2, spread=0.7)}
    made = Counterfactuals("rule", rows).validate(30)
    figures = summary(make_records(30), made, seed=4)
    distances = {}
    for modality, part in rows.items():
        cosines = [
            np.dot(
                part.factual[i].astype(float),
                part.counterfactual[i, k].astype(float),
            )
            for i, k in np.argwhere(part.present)
        ]
        known = figures["modalities"][modality]["similarity"]
        assert known["number"] == len(cosines)
        # float32 products of unit vectors.
        assert known["mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
        for q, value in known["quantiles"].items():
            want = np.percentile(cosines, float(q))
            assert value == pytest.approx(want, abs=1e-6)
        assert sum(known["histogram"]) == len(cosines)
        distances[modality] = known["distance"]
        assert known["distance"] == pytest.approx(
            1 - np.mean(cosines), abs=1e-6
        )
        # Items that are not described are not compared: all have a length.
        assert known["items"]["number"] == part.described.sum() - 1
        assert abs(known["items"]["mean"]) < known["mean"]
    balance = figures["balance"]
    assert balance["distance"] == distances
    want = distances["text"] / distances["image"]
    assert balance["ratio"] == pytest.approx(want)
    assert 0 < want < 0.5


def test_a_modality_that_stays_has_no_balance():
    part = make_vectors(1)
    same = dataclasses.replace(
        part,
        counterfactual=part.factual[:, None] * part.present[..., None],
    )
    made = Counterfactuals("rule", {"text": same, "image": same})
    figures = summary(make_records(30), made)
    assert figures["balance"]["ratio"] is None or figures["balance"][
        "ratio"
    ] == pytest.approx(1, rel=0.5)
    one = Counterfactuals("rule", {"text": part})
    assert summary(make_records(30), one)["balance"]["ratio"] is None


def test_costly_figures_are_of_a_random_sample(monkeypatch):
    monkeypatch.setattr(figures_of, "SAMPLE", 10)
    made = [
        Record(
            item,
            "A",
            "text",
            description="a b c d",
            negatives=(
                Alternative(
                    "a b c x" if item < 200 else "a y z x", {"a": ("d", "x")}
                ),
            ),
        )
        for item in range(400)
    ]
    several = [summary(made, seed=s)["modalities"]["text"] for s in range(40)]
    assert {about["counterfactuals"] for about in several} == {400}
    assert {about["words_changed"]["number"] for about in several} == {10}
    means = [about["words_changed"]["mean"] for about in several]
    # Shares are 1/4 and 3/4 alike: of 400 drawn, the mean has a deviation of
    # 0.25 / 20.
    assert np.mean(means) == pytest.approx(0.5, abs=0.05)
    assert len(set(means)) > 1
    again = summary(made, seed=3)["modalities"]["text"]
    assert again["words_changed"]["mean"] == means[3]


def test_nothing_at_all_has_figures_too():
    figures = summary([])
    assert figures["rate"] is None
    assert figures["modalities"] == {}
    assert figures_of.lines(figures) == []


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
    assert lines[-1].endswith(f"{ratio:.2f}")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"),
        (0, "0.0%"),
        (1, "100.0%"),
        (0.5, "50.0%"),
        (0.12345, "12.3%"),
        (1 - 1e-6, "> 99.9%"),
        (1e-6, "< 0.1%"),
    ],
)
def test_rounding_hides_no_failure(share, text):
    assert percent(share) == text


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
