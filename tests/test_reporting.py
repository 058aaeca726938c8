"""Reports of runs: what they say is what the run left, and only text."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ITEMS, make_catalog
from contents import paint
from inspected import HOSTILE
from logs import write_log
from pages import Reader
from test_cli import call, refused
from training import make_config

from neggen_jax import config as configs
from neggen_jax import history, metrics
from neggen_jax.catalog import ItemRecords
from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.intervals import bootstrap
from neggen_jax.reporting import as_html, as_markdown, examples, shop, write
from neggen_jax.reporting.told import Told
from neggen_jax.train import train_and_evaluate

# Of all other items.
FORGED = "[a](http://evil/x) ![p](http://evil/p.png) <b>b</b> | `c` **d**"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset with hostile titles, of which some items have pictures."""
    path = tmp_path_factory.mktemp("reporting")
    (path / "pictures").mkdir()
    titles = [HOSTILE.get(i, f"{FORGED} {i}") for i in range(ITEMS)]
    titles[8:12] = "", " ", "a" * 400, "\u0634\u0627\u0644"
    items = ItemRecords(
        ids=[f"A{i}" for i in range(ITEMS)],
        titles=titles,
        texts=["of wool"] * ITEMS,
        attributes=[{}] * ITEMS,
        images=[f"{i}.jpg" if i % 3 else "" for i in range(ITEMS)],
        image_root=str(path / "pictures"),
    )
    for item, name in enumerate(items.images):
        # One is named and is not there, as when a dataset is moved.
        if name and item != 4:
            paint(path / "pictures" / name, "red", True, item)
    catalog = dataclasses.replace(make_catalog(), records=items)
    store.save(catalog, path / "data", source={})
    return path / "data"


def train(data, workdir, words, **changes):
    usual = {"train__epochs": 2, "evaluate__report": True}
    config = make_config(words, data__path=str(data), **(usual | changes))
    return train_and_evaluate(config, workdir)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Two finished runs, the first of which reads modalities."""
    parent = tmp_path_factory.mktemp("runs")
    train(data, parent / "vbpr", "vbpr")
    train(data, parent / "mf", "mf")
    return parent / "vbpr", parent / "mf"


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs[0], tmp_path / "vbpr")


def page_of(path):
    return Reader(path.read_text("utf-8"))


def rows_of(markdown, caption):
    """The cells of a table, by what its rows are called."""
    table = markdown.split(f"{caption}:\n\n")[1].split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells[0] != "---"}


# -- what it says ------------------------------------------------------------


def test_a_finished_run_has_a_report_with_everything(runs):
    page = page_of(runs[0] / "report.html")
    text = (runs[0] / "report.md").read_text("utf-8")
    for title in (
        "Learning curves",
        "Accuracy",
        "By popularity",
        "Beyond accuracy",
        "Modality balance",
        "Users and their lists",
        "How it was run",
    ):
        assert title in page.text
        assert f"\n## {title}\n" in text
    # What links point at is there, and plots of the Markdown are.
    ids = set(page.attributes["section", "id"])
    assert {link.strip("#") for link in page.attributes["a", "href"]} == ids
    files = re.findall(r"!\[[^]]*\]\(<([^>]+)>\)", text)
    assert {f.split("/")[-1] for f in files} == {
        "learning_curves.png",
        "recall_by_popularity.png",
        "balance.png",
    }
    assert all((runs[0] / file).is_file() for file in files)


def test_numbers_are_those_of_the_results_with_their_intervals(runs):
    results = history.read_results(runs[0])
    text = (runs[0] / "report.md").read_text("utf-8")
    page = page_of(runs[0] / "report.html")
    for split in ("test", "valid"):
        columns = history.read_users(runs[0], split)
        rows = rows_of(text, f"Accuracy on {split}")
        for name in ("recall", "ndcg", "precision", "map", "mrr", "hitrate"):
            for place, k in enumerate((5, 20)):
                key = f"{name}@{k}"
                (low,), (high,) = bootstrap(columns[key][:, None])
                between = f"{low:.4f} to {high:.4f}"
                cell = f"{results[split][key]:.4f} {between}"
                assert rows[name][place] == cell
                assert cell in page.text
    deciles = results["deciles"]
    rows = rows_of(
        text, "recall@20 on test by popularity of the items in train"
    )
    first = rows["1 least popular tenth"]
    assert first[0] == f"{deciles['heldout'][0]}"
    shown = [rows[str(place)][1] for place in range(2, 10)]
    want = [
        "none held out" if r is None else f"{r:.4f}"
        for r in deciles["recall@20"][1:9]
    ]
    assert shown == want
    lost = rows_of(text, "Without each modality")
    for name in ("text", "image"):
        drop = 100 * results["test"][f"modality_drop_{name}"]
        assert lost[name][1] == f"{drop:+.1f} %".replace("+0.0", "0.0")


def test_the_config_is_what_differs_and_the_whole_of_it(runs):
    text = (runs[0] / "report.md").read_text("utf-8")
    rows = rows_of(text, "Keys that are not at their default, or have none")
    assert rows["train.epochs"] == ["2", "300"]
    assert rows["encoder.name"] == ["vbpr", "lightgcn"]
    assert "seed" not in rows
    assert '"block_size": 4096' in text


def test_negatives_by_level_are_means_up_to_the_best_step(copy):
    results = history.read_results(copy)
    step = results["step"]
    lines = history.read_metrics(copy)
    for line in lines:
        if "train/loss" in line:
            at = line["step"] / step
            line["train/odd/hardness/1-text"] = at
            line["train/odd/hardness/2-text+image"] = 2 * at
            line["train/odd/false_negatives/1-text"] = 0.25
            line["train/gradient_norm/text"] = 3 * at
    write_log(copy, lines)
    page, twin = write.write(copy)
    (caption,) = re.findall(
        "odd: by level, means of .+(?=:\n)", twin.read_text()
    )
    rows = rows_of(twin.read_text(), caption)
    known = [x["train/odd/hardness/1-text"] for x in lines if "train/loss" in x]
    # All lines up to the best step belong to the epochs of the mean.
    mean = np.mean([v for v in known if v <= 1])
    by_epoch = history.by_epoch(lines, "train/odd/hardness/1-text")
    if len(by_epoch[0]) == 1 or step == lines[-1]["step"]:
        mean = np.mean(by_epoch[1])
    assert rows["1-text"] == [f"{mean:.4f}", "0.2500"]
    assert float(rows["2-text+image"][0]) == pytest.approx(2 * mean, rel=1e-3)
    assert rows["2-text+image"][1] == "-"
    assert "odd: hardness" in page_of(page).text
    norms = rows_of(twin.read_text(), "Without each modality")
    until = [v for v in known if v <= 1][-1]
    assert [norms[m][2] for m in ("text", "image")] == [f"{3 * until:.3f}", "-"]
    assert "gradient norm" in page_of(page).attributes["svg", "aria-label"]


def test_hits_are_what_was_held_out_and_recommended(runs, data):
    catalog = store.load(data)
    users = history.read_users(runs[0], "test")
    page = page_of(runs[0] / "report.html")
    text = page.text
    shown = [int(user) for user in re.findall(r"User (\d+):", text)]
    assert len(shown) == len(set(shown)) == 3 * examples.EACH
    hits = 0
    for user in shown:
        (row,) = np.flatnonzero(users["users"] == user)
        part = catalog.splits["test"]
        heldout = part.items[part.users == user]
        assert np.isin(users["lists"][row], heldout).sum() == (
            users["recall@20"][row] * len(heldout)
        )
        hits += np.isin(users["lists"][row][: examples.SHOWN], heldout).sum()
    assert len(re.findall(r"\bhit\b(?! in)", text)) == hits > 0
    values = dict(zip(users["users"].tolist(), users["ndcg@20"], strict=True))
    random, best, worst = shown[:2], shown[2:4], shown[4:]
    others = [v for u, v in values.items() if u not in (*random, *best)]
    assert min(values[user] for user in best) >= max(others)
    assert {values[u] for u in worst} == {min(values.values())}


def test_histories_come_latest_first_and_end_before_the_split(data):
    catalog = store.load(data)
    timed = {}
    for name, part in catalog.splits.items():
        times = np.arange(len(part)) * (1 if name == "train" else 2) % 97
        timed[name] = dataclasses.replace(part, timestamps=times)
    known = shop.Shop(dataclasses.replace(catalog, splits=timed), None)
    for user in (0, 17, 60):
        found = known.history(user)
        pairs = [
            (time, item)
            for name in ("train", "valid")
            for u, item, time in zip(
                timed[name].users,
                timed[name].items,
                timed[name].timestamps,
                strict=True,
            )
            if u == user
        ]
        assert sorted(found) == sorted(item for _, item in pairs)
        times = {item: time for time, item in pairs}
        assert [times[i] for i in found] == sorted(times.values(), reverse=True)
        assert not set(found) & set(known.heldout(user))


def test_choices_are_seeded_extreme_and_of_nobody_twice():
    values = np.array([0.0, 0.0, 0.0, 0.3, 0.3, 1.0, 1.0, 1.0])
    known = np.array([1, 9, 5, 1, 1, 1, 1, 1])
    kinds = {"any": (), "best": (-values,), "worst": (values, -known)}
    few = {"any": (), "best": (-values[:3],), "worst": (values[:3], -known[:3])}
    found = [examples.choose(kinds, 8, seed) for seed in range(40)]
    assert found[3] == examples.choose(kinds, 8, 3)
    assert len({tuple(c.row for c in some) for some in found}) > 10
    for some in found:
        rows = [chosen.row for chosen in some]
        assert len(set(rows)) == 6
        rest = set(range(8)) - set(rows[:2])
        best = sorted((values[row] for row in rest), reverse=True)[:2]
        assert sorted(values[rows[2:4]], reverse=True) == best
    # Of those with nothing, those of whom most is known.
    plain = examples.choose({"worst": kinds["worst"]}, 8, 0)
    assert [chosen.row for chosen in plain] == [1, 2]
    assert len(examples.choose(few, 3, 0)) == 3


# -- how it says it ----------------------------------------------------------


def test_what_others_wrote_is_text_in_the_page(runs):
    text = (runs[0] / "report.html").read_text("utf-8")
    page = Reader(text)
    assert page.tags["h1"] == 1
    assert not {"script", "iframe", "link", "object"} & page.tags.keys()
    for name in ("img", "svg", "i", "li", "a"):
        for _, attribute in (x for x in page.attributes if x[0] == name):
            assert not attribute.startswith("on")
    assert "[a](http://evil/x)" in page.text
    assert page.tags["b"] == page.attributes["span", "class"].count("blank")


def test_the_page_needs_nothing_else(runs):
    text = (runs[0] / "report.html").read_text("utf-8")
    page = Reader(text)
    rest = text.replace("http://evil", "")
    for word in ("http:", "https:", "//cdn", "<link", "@import", "xmlns"):
        assert word not in rest
    assert set(re.findall(r"url\((.)", rest)) <= {"#"}
    for (_, name), values in page.attributes.items():
        if name == "src":
            assert all(v.startswith("data:image/jpeg;base64,") for v in values)
        if name in ("href", "xlink:href"):
            assert all(value.startswith("#") for value in values)
    policy = page.attributes["meta", "content"][0]
    assert "default-src 'none'" in policy


def test_every_drawing_says_what_it_shows_and_no_two_share_ids(runs):
    page = page_of(runs[0] / "report.html")
    labels = page.attributes["svg", "aria-label"]
    assert len(set(labels)) == len(labels) == page.tags["svg"] > 3
    assert any("recall@20 on valid: 0." in label for label in labels)
    ids = [
        v for (_, n), some in page.attributes.items() if n == "id" for v in some
    ]
    assert len(ids) == len(set(ids))
    # Wide tables can be scrolled with the keyboard.
    assert page.attributes["div", "tabindex"].count("0") >= 4


def test_what_others_wrote_is_text_in_markdown(runs):
    from markdown_it import MarkdownIt

    text = (runs[0] / "report.md").read_text("utf-8")
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inner = [t for token in tokens for t in token.children or ()]
    assert not [t for t in inner if t.type == "link_open"]
    images = [t.attrs["src"] for t in inner if t.type == "image"]
    assert all(source.startswith("plots/") for source in images)
    raw = [t.content for t in (*tokens, *inner) if t.type.startswith("html")]
    assert all(re.fullmatch(r"</?details>.*\n?", tag) for tag in raw)
    said = "".join(t.content for t in inner if t.type.startswith("text"))
    assert "[a](http" in said.replace("\u200b", "")
    assert "<b>b</b> | `c` **d**" in said


def test_items_without_a_picture_have_a_tile_with_their_title(runs, data):
    page = page_of(runs[0] / "report.html")
    tiles = page.tags["li"] - len(page.attributes["a", "href"])
    blanks = page.attributes["span", "class"].count("blank")
    assert blanks > 0
    assert tiles == page.tags["img"] + blanks
    known = shop.Shop(store.load(data, records=True), store.read_records(data))
    assert known.title(8) == "item 8"
    assert known.title(9) == "item 9"
    assert not known.picture(3)
    assert not known.picture(4)
    assert len(known.picture(5)) < 20_000


def test_pictures_have_so_much_room_and_no_more(copy, monkeypatch):
    monkeypatch.setattr(shop, "ROOM", 5_000)
    path, _ = write.write(copy)
    pictures = page_of(path).attributes["img", "src"]
    assert 0 < sum(map(len, pictures)) <= 5_000


def test_the_same_run_gives_the_same_report(copy):
    before = [path.read_bytes() for path in write.write(copy)]
    paths = write.write(copy)
    assert [path.read_bytes() for path in paths] == before
    other = write.write(copy, output=copy / "other.html", seed=3)
    assert other[0].read_bytes() != before[0]


@pytest.mark.parametrize(
    ("words", "markdown"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("two\nlines\r\n# x", r"two lines \# x"),
        ("<i>|</i>", r"\<i\>\|\</i\>"),
        ("\u202ex\0", "\ufffdx\ufffd"),
        ("see www.evil", "see www&#8203;.evil"),
    ],
)
def test_markdown_is_escaped(words, markdown):
    assert as_markdown.escape(words) == markdown


# -- what is not there -------------------------------------------------------


def test_without_the_dataset_there_are_no_examples(copy, tmp_path):
    results = history.read_results(copy)
    results["config"]["data"]["path"] = str(tmp_path / "moved")
    (copy / "results.json").write_text(json.dumps(results))
    page, _ = write.write(copy)
    assert "The dataset was not there" in page_of(page).text
    assert page_of(page).tags["img"] == 0
    with pytest.raises(InputError, match="no such dataset"):
        write.write(copy, data=str(tmp_path / "elsewhere"))


def test_another_dataset_is_refused(copy, bazaar):
    with pytest.raises(InputError, match="not the dataset that the run"):
        write.write(copy, data=str(bazaar))


def test_a_run_of_an_earlier_version_has_a_report_too(copy):
    """Without lists, and before that without users' own metrics."""
    path = copy / "per_user_test.npz"
    columns = history.read_users(copy, "test")
    del columns["lists"]
    np.savez(path, **columns)
    page, _ = write.write(copy)
    assert "does not tell what it recommended" in page_of(page).text
    for split in ("valid", "test"):
        (copy / f"per_user_{split}.npz").unlink()
    page, twin = write.write(copy)
    assert "no intervals" in page_of(page).text
    assert " to " not in rows_of(twin.read_text(), "Accuracy on test")["recall"]


def test_an_unfinished_run_is_refused(copy):
    (copy / "results.json").unlink()
    with pytest.raises(InputError, match=r"no results\.json"):
        write.write(copy)


def test_a_page_is_not_overwritten_by_its_markdown(copy):
    with pytest.raises(InputError, match=r"ends with \.html"):
        write.write(copy, output=copy / "page.md")


# -- at the end of a run -----------------------------------------------------


def test_a_report_that_fails_is_a_warning(data, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no ink\nat all")

    monkeypatch.setattr(as_html, "render", fail)
    results = train(data, tmp_path / "run", "mf")
    said = capsys.readouterr().err
    assert "warning: the run has finished, but its report" in said
    assert "(RuntimeError: no ink)" in said
    assert results["step"] > 0
    assert not (tmp_path / "run" / "report.html").exists()
    # The same command writes what is missing, and no more.
    monkeypatch.undo()
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    assert train(data, tmp_path / "run", "mf") == results
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before
    # Who does not want one has none.
    (tmp_path / "run" / "report.html").unlink()
    train(data, tmp_path / "run", "mf", evaluate__report=False)
    assert not (tmp_path / "run" / "report.html").exists()


def test_nothing_that_trains_waits_for_what_draws():
    code = (
        "import sys, neggen_jax.train; "
        "print([m for m in ('matplotlib', 'neggen_jax.reporting', 'PIL') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_run_can_be_made_again_from_its_workdir(runs):
    config = configs.load(f"configs/rerun.py:{runs[0]}")
    known = json.loads((runs[0] / "run.json").read_text())["config"]
    assert json.loads(json.dumps(config.to_dict())) == known
    text = (runs[0] / "report.md").read_text("utf-8")
    assert f"--config=configs/rerun.py:{runs[0]}" in text
    with pytest.raises(InputError, match="No run is named"):
        configs.load("configs/rerun.py")


# -- two runs ----------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(runs, tmp_path_factory):
    target = tmp_path_factory.mktemp("pair") / "two.html"
    return write.write(*runs, output=target)


def test_two_runs_differ_by_what_a_paired_test_says(runs, pair):
    page, twin = pair
    one, two = (history.read_users(run, "test") for run in runs)
    rows = rows_of(twin.read_text("utf-8"), "Accuracy on test")
    assert rows["metric"] == ["vbpr", "mf", "difference", "p"]
    for key in ("recall@5", "ndcg@20", "mrr@20"):
        want = metrics.paired_test(two[key], one[key])
        between = f"{want['ci_low']:+.4f} to {want['ci_high']:+.4f}"
        p = want["t_p"]
        assert rows[key] == [
            f"{one[key].mean():.4f}",
            f"{two[key].mean():.4f}",
            f"{want['mean_difference']:+.4f} {between}".replace(
                "+0.0000", "0.0000"
            ),
            "\\< 0.001" if p < 0.001 else f"{p:.3f}",
        ]
    text = page_of(page).text
    assert "vbpr and mf" in text
    assert "encoder.name vbpr mf" in text
    assert "recommended by vbpr" in text
    assert "better served by mf" in text
    assert (page.parent / "two_plots" / "curves.png").is_file()
    assert "](<two_plots/curves.png>)" in twin.read_text("utf-8")


def test_differences_by_popularity_add_up(runs, pair):
    rows = rows_of(
        pair[1].read_text("utf-8"),
        "recall@20 on test by popularity of the items in train",
    )
    deciles = [history.read_results(run)["deciles"] for run in runs]
    a, b = (d["recall@20"][9] for d in deciles)
    cells = rows["10 most popular tenth"]
    assert cells[1:3] == [f"{a:.4f}", f"{b:.4f}"]
    assert float(cells[3]) == pytest.approx(b - a, abs=6e-5)


def test_runs_on_other_data_are_refused(runs, copy):
    results = history.read_results(copy)
    results["dataset"]["fingerprint"] = "0" * 32
    (copy / "results.json").write_text(json.dumps(results))
    done = call("report", f"--workdir={runs[1]}", f"--beside={copy}")
    said = refused(done)
    assert "Runs on other data cannot stand side by side" in said
    assert "0" * 32 in said
    assert not list(runs[1].glob("beside*"))


def test_runs_of_other_users_are_refused(runs, copy):
    columns = history.read_users(copy, "test")
    short = {key: column[1:] for key, column in columns.items()}
    np.savez(copy / "per_user_test.npz", **short)
    with pytest.raises(InputError, match="same users"):
        write.write(runs[1], copy)


def test_headlines_take_the_cutoff_that_there_is(runs):
    told = Told.read(runs[0])
    assert told.headline("ndcg") == "ndcg@20"
    few = {"recall@30": 0.1, "recall@50": 0.2}
    results = {**told.results, "test": few}
    assert (
        dataclasses.replace(told, results=results).headline("map") == "map@30"
    )
